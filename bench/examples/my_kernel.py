"""Your own kernel in the same run as ours, in twenty lines of PyTorch; my_triton_kernel.py is one in Triton.

    python -m bench.dequant --gpu cpu --format int4-g128 --batches 1 --kernel bench.examples.my_kernel:kernel

It is verified against the float64 reference, timed in the same blocks, and shown beside stream, native and
ours. A wrong, crashing or hanging kernel (bad_kernels.py) costs its own row and nothing else.
"""

import torch

from kernels.formats import WeightFormat
from kernels.kernel import Kernel, Launch, Tensors, Traffic
from kernels.packing import Weights

GROUP = 128


def pack(weights: Weights) -> Tensors:
    """Your own layout, made once from codes [n, k] and scales [n, k / 128]; it may also be `weights.words`."""
    codes = torch.from_numpy(weights.codes).to(torch.int8) - 8
    return {"codes": codes, "scales": torch.from_numpy(weights.scales).to(torch.bfloat16)}


def bind(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """Everything that can be done once is done here; the launch takes nothing and writes y[batch, n]."""
    codes, scales = tensors["codes"].unflatten(1, (-1, GROUP)), tensors["scales"][:, :, None]

    def launch() -> None:
        torch.mm(x, (codes.to(x.dtype) * scales).flatten(1).T, out=out)

    return launch


def traffic(weight_format: WeightFormat, n: int, k: int, batch: int) -> Traffic:
    """What a launch moves, since it is not what the format stores.

    A code takes a byte, and two matrices of 16 bits are written and read again: the codes as numbers, and
    their products with the scales.
    """
    matrix, scales = 2 * n * k, 2 * n * k // GROUP
    return Traffic(
        bytes_read=n * k + scales + 2 * matrix + 2 * batch * k,
        bytes_written=2 * matrix + 2 * batch * n,
        flops=2 * batch * n * k,
    )


kernel = Kernel(
    arm="unfused",  # its place in the ladder: it writes all weights to memory, then multiplies
    implementation="mine",
    device="cpu",
    formats=("int4-g128",),
    activations=("bf16",),
    batches=(1, 256),
    pack=pack,
    bind=bind,
    traffic=traffic,  # left out: counted from format and shapes
)
