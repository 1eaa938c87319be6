"""ONNX Runtime's MatMulNBits: int4 and int8 in groups, with or without zero points, on a CPU (arm `vendor`).

Two rows, by its attribute `accuracy_level`: 0 multiplies in fp32 ("onnxruntime"), 4 quantizes x to int8
("onnxruntime-int8"). A session of one node has the weights as constants, so that it packs them as it likes. It
knows no scale per row: int8-ch is given to it in groups of 128, all of a row with the scale of the row.

A copy of the weights has one session for all batches, and all sessions share one pool of threads: those of a
session of its own go on spinning when the next one runs.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from kernels.kernel import Kernel, Launch, Tensors, Traffic
from kernels.packing import Weights

if TYPE_CHECKING:
    from kernels.formats import WeightFormat
    from kernels.peers import DeviceKind

FORMATS = ("int4-g128", "int4-g128-zp", "int8-g128", "int8-ch")
BATCHES = (1, 256)
GROUP = 128  # where the format has a scale per row
FP32_BYTES = 4


def records(device: DeviceKind, release: str) -> dict[str, Kernel]:
    """Its rows on a CPU, by name."""
    return {
        name: Kernel(
            *("vendor", name.replace("_", "-"), device, FORMATS, ("bf16",), BATCHES),
            *(pack, partial(bind, level), release),
            traffic=traffic,
        )
        for name, level in (("onnxruntime", 0), ("onnxruntime_int8", 4))
    }


def traffic(weight_format: WeightFormat, n: int, k: int, batch: int) -> Traffic:
    """What a launch moves: scales, x and y are fp32; zero points are as wide as codes, in whole bytes a row."""
    groups = weight_format.groups(k) if weight_format.group_size else k // GROUP
    zeros = -(-groups * weight_format.bits // 8) if weight_format.zero_point else 0
    return Traffic(
        bytes_read=n * (k * weight_format.bits // 8 + zeros)
        + FP32_BYTES * (n * groups + batch * k),
        bytes_written=FP32_BYTES * batch * n,
        flops=2 * batch * n * k,
    )


def pack(weights: Weights) -> Tensors:
    """MatMulNBits' B [n, groups, bytes], scales and zero points; the first code is lowest in its byte.

    Raises:
        ValueError: a row with one scale is not made of whole groups.
    """
    (n, k), scales = weights.shape, weights.scales.astype(np.float32)
    if weights.format.group_size is None:
        if k % GROUP:
            raise ValueError(f"it is given rows with one scale in groups of {GROUP}, and k is {k}.")
        scales = scales.repeat(k // GROUP, axis=1)
    groups = scales.shape[1]
    tensors = {
        "words": torch.from_numpy(
            _bytes(weights.codes, weights.format.bits).reshape(n, groups, -1)
        ),
        "scales": torch.from_numpy(scales),
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


@cache
def _package() -> Any:
    """The package, with one pool of threads for all sessions, as many as PyTorch has."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
    return onnxruntime


@cache
def _sessions(level: int) -> WeakIdKeyDictionary:
    """Sessions of a level by the words of the copy, for as long as these are there."""
    return WeakIdKeyDictionary()


def _session(level: int, tensors: Tensors, n: int, k: int) -> Any:
    """A session of one node whose weights are constants, for any batch."""
    onnxruntime = _package()
    from onnx import TensorProto, helper, numpy_helper

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
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", k))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", n))],
        [numpy_helper.from_array(t.numpy(), name) for name, t in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def bind(level: int, tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """A session on these weights, bound to buffers of fp32.

    Args:
        level: accuracy_level of MatMulNBits: 0 multiplies in fp32, 4 quantizes x to int8.
        tensors: `pack`.
        x: activations [batch, k].
        out: [batch, n]; only its shape matters, since y is fp32.
    """
    (batch, k), n = x.shape, out.shape[1]
    known, words = _sessions(level), tensors["words"]
    session = known[words] if words in known else _session(level, tensors, n, k)
    known[words] = session
    given, y = x.float().contiguous(), torch.empty(batch, n)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, (batch, k), given.data_ptr())
    binding.bind_output("y", "cpu", 0, np.float32, (batch, n), y.data_ptr())

    def launch(kept_alive: object = (given, y)) -> torch.Tensor:
        session.run_with_iobinding(binding)
        return y

    return launch
