"""y[B, n] = x[B, k] . W[n, k]^T with 16-bit weights, cast to fp32 in registers and multiplied in fp32.

The question: what does casting cost at the other end? LayerCast ("Give Me FP32 or Give Me Death?", arXiv
2506.09501) stores weights in 16 bits and computes in fp32, so that results depend less on the batch. The bytes
of the weights are those of `native`; what is added is the cast, fp32 activations, and that tensor cores have no
fp32: a product in "ieee" precision is multiply-adds at every batch.

The kernels are those of native.py, given x and y in fp32. The first widens its operands anyway, so that up to
batch 8 `upcast - native` is no more than the wider loads of x; from batch 16 on it is tensor cores or none.
More than 8 rows of fp32 would not fit the registers of the first kernel, so from 9 on the second takes over,
while `native` keeps the first up to 16. x has the values of every other arm, widened once, when it is bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import triton

from kernels.kernel import Kernel
from kernels.triton import gemm, gemv, native
from kernels.triton.plan import ACTIVATIONS, Plan, check_batch, check_matrix

if TYPE_CHECKING:
    from kernels.kernel import Launch, Tensors

GEMV_BATCHES = (1, 8)
GEMM_BATCHES = (9, 256)
TOLERANCE = 1e-4  # of the largest |y|: fp32 throughout


def default_gemm_config(batch: int) -> gemm.Config:
    """Conservative and untuned: both operands lie in shared memory in fp32, so steps are short."""
    block_b = min(max(16, triton.next_power_of_2(batch)), 64)
    return gemm.Config(block_b, block_n=64, block_k=32, num_warps=4, num_stages=3)


def plan_gemv(
    activation: str, n: int, k: int, batch: int, config: gemv.Config | None = None
) -> Plan:
    """What `bind_gemv` launches and what the ahead-of-time compiler compiles."""
    return widened(native.plan_gemv(activation, n, k, batch, config))


def plan_gemm(
    activation: str, n: int, k: int, batch: int, config: gemm.Config | None = None
) -> Plan:
    """What `bind_gemm` launches and what the ahead-of-time compiler compiles."""
    config = config or default_gemm_config(batch)
    return widened(native.plan_gemm(activation, n, k, batch, config))


def widened(plan: Plan) -> Plan:
    """The plan of a 16-bit kernel with x and y in fp32."""
    return replace(plan, signature={**plan.signature, "x_ptr": "*fp32", "out_ptr": "*fp32"})


def bind_gemv(
    tensors: Tensors, x: torch.Tensor, out: torch.Tensor, config: gemv.Config | None = None
) -> Launch:
    """Check the arguments of one launch, once: weights [n, k], x [batch, k], out fp32 [batch, n].

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    activation, n, k, batch = check_matrix(tensors, x, out, torch.float32)
    check_batch("upcast gemv", batch, GEMV_BATCHES)
    return plan_gemv(activation, n, k, batch, config).launch(tensors["weights"], x.float(), out, k)


def bind_gemm(
    tensors: Tensors, x: torch.Tensor, out: torch.Tensor, config: gemm.Config | None = None
) -> Launch:
    """Check the arguments of one launch, once: weights [n, k], x [batch, k], out fp32 [batch, n].

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    activation, n, k, batch = check_matrix(tensors, x, out, torch.float32)
    check_batch("upcast gemm", batch, GEMM_BATCHES)
    return plan_gemm(activation, n, k, batch, config).launch(tensors["weights"], x.float(), out, k)


KERNELS = tuple(
    Kernel(
        arm="upcast",
        implementation="triton",
        device="cuda",
        formats=ACTIVATIONS,
        activations=ACTIVATIONS,
        batches=batches,
        pack=native.pack,
        bind=bind,
        variant=variant,
        tolerance=TOLERANCE,
    )
    for variant, batches, bind in (
        ("gemv", GEMV_BATCHES, bind_gemv),
        ("gemm", GEMM_BATCHES, bind_gemm),
    )
)
