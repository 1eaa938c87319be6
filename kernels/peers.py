"""The field's kernels beside ours, through the public API of their packages: what `--peers` adds.

    python -m pip install -e '.[peers]'
    python -m bench.dequant --gpu cpu --format int4-g128 --peers

    onnxruntime     MatMulNBits: int4 and int8 in groups; in fp32, or with x quantized to int8 ("-int8")
    bitsandbytes    matmul_4bit: NF4, fused where bitsandbytes fuses, dequantize and linear where it does not

PyTorch's own int4 and int8 products are part of every run on a CPU (kernels/cpu/torch_ops.py). All take the
weights that ours take, re-packed, and are held against the same reference before they are timed. The variant
of a row is the version of the package. x is brought into a peer's dtype once, when it is bound.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from kernels.codebooks import codebook
from kernels.kernel import Kernel, Launch, Tensors
from kernels.packing import Weights

BATCHES = (1, 256)
NEEDS = {"onnxruntime": ("onnxruntime", "onnx"), "bitsandbytes": ("bitsandbytes",)}


def missing(package: str) -> list[str]:
    """What has to be installed for a peer and is not."""
    return [name for name in NEEDS[package] if importlib.util.find_spec(name) is None]


def absent() -> list[str]:
    """A clause for each peer that is not installed."""
    return [
        f"{package} (needs {', '.join(lacks)})" for package in NEEDS if (lacks := missing(package))
    ]


def names(device: str) -> list[str]:
    """The installed peers of a device, by the names that kernels/user.py takes."""
    return [f"kernels.peers:{name}" for name, kernel in _records(device).items()]


def __getattr__(name: str) -> Kernel:
    """A peer's record, made when it is asked for: its version is known only where it is installed."""
    for device in ("cpu", "cuda"):
        records = _records(device)
        if name in records:
            return records[name]
    raise AttributeError(f"there is no installed peer {name!r}")


def _records(device: str) -> dict[str, Kernel]:
    found: dict[str, Kernel] = {}
    if device == "cpu" and not missing("onnxruntime"):
        stored = ("int4-g128", "int4-g128-zp", "int8-g128")
        release = version("onnxruntime")
        for name, level in (("onnxruntime", 0), ("onnxruntime_int8", 4)):
            variant = f"{release}-int8" if level else release
            found[name] = _kernel(
                "onnxruntime", variant, device, stored, pack_onnx, partial(bind_onnx, level)
            )
    if not missing("bitsandbytes"):
        release = version("bitsandbytes")
        found[f"bitsandbytes_{device}"] = _kernel(
            "bitsandbytes", release, device, ("nf4-b64",), pack_nf4, bind_nf4
        )
    return found


def _kernel(
    implementation: str, variant: str, device: Any, formats: tuple[str, ...], pack: Any, bind: Any
) -> Kernel:
    activations = ("bf16",) if device == "cpu" else ("fp16", "bf16")
    return Kernel(
        "vendor", implementation, device, formats, activations, BATCHES, pack, bind, variant
    )  # fmt: skip


def pack_onnx(weights: Weights) -> Tensors:
    """MatMulNBits' B [n, groups, bytes], scales and zero points; the first code is lowest in its byte."""
    n, k = weights.shape
    groups = weights.format.groups(k)
    tensors = {
        "words": torch.from_numpy(
            _bytes(weights.codes, weights.format.bits).reshape(n, groups, -1)
        ),
        "scales": torch.from_numpy(weights.scales.astype(np.float32)),
    }
    if weights.zeros is not None:
        even = np.pad(
            weights.zeros, ((0, 0), (0, groups % 2))
        )  # a row begins with a byte of its own
        tensors["zeros"] = torch.from_numpy(_bytes(even, weights.format.bits))
    return tensors


def _bytes(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Codes [n, k] as bytes [n, k * bits / 8]."""
    return codes.copy() if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4


def bind_onnx(level: int, tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """A session of one node whose weights are constants, bound to buffers of fp32.

    Args:
        level: accuracy_level of MatMulNBits: 0 multiplies in fp32, 4 quantizes x to int8.
        tensors: `pack_onnx`.
        x: activations [batch, k].
        out: [batch, n]; only its shape matters, since y is fp32.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (batch, k), n = x.shape, out.shape[1]
    groups = tensors["scales"].shape[1]
    bits = 8 * tensors["words"].shape[2] * groups // k
    constants = {"B": tensors["words"], "scales": tensors["scales"].flatten()}
    if "zeros" in tensors:
        constants["zeros"] = tensors["zeros"].flatten()
    node = helper.make_node(
        "MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft",
        K=k, N=n, bits=bits, block_size=k // groups, accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, k))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, n))],
        [numpy_helper.from_array(t.numpy(), name) for name, t in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    given, y = x.float().contiguous(), torch.empty(batch, n)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, (batch, k), given.data_ptr())
    binding.bind_output("y", "cpu", 0, np.float32, (batch, n), y.data_ptr())

    def launch(kept_alive: object = (given, y)) -> torch.Tensor:
        session.run_with_iobinding(binding)
        return y

    return launch


def pack_nf4(weights: Weights) -> Tensors:
    """Bitsandbytes' layout: two codes in a byte, the first in the upper half; fp32 scales; the levels."""
    codes = weights.codes.reshape(-1, 2)
    return {
        "words": torch.from_numpy(codes[:, :1] << 4 | codes[:, 1:]),
        "scales": torch.from_numpy(weights.scales.astype(np.float32)),
        "levels": torch.from_numpy(codebook("nf4").copy()),
    }


def bind_nf4(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """Bitsandbytes' own choice of kernel for these weights, that batch and this device."""
    import bitsandbytes
    from bitsandbytes.functional import QuantState

    (_, k), n = x.shape, out.shape[1]
    state = QuantState(
        absmax=tensors["scales"].flatten(),
        shape=torch.Size((n, k)),
        code=tensors["levels"],
        blocksize=n * k // tensors["scales"].numel(),
        quant_type="nf4",
        dtype=x.dtype,
    )
    return partial(bitsandbytes.matmul_4bit, x, tensors["words"].t(), quant_state=state)
