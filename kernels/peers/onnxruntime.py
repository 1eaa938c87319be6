"""ONNX Runtime's MatMulNBits: int4 and int8 in groups, with or without zero points, on a CPU (arm `vendor`).

Two rows, by its attribute `accuracy_level`: 0 multiplies in fp32 (the variant is the version), 4 quantizes x to
int8 ("...-int8"). A session of one node has the weights as constants, so that it packs them as it likes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kernels.kernel import Kernel, Launch, Tensors
from kernels.packing import Weights

if TYPE_CHECKING:
    from kernels.peers import DeviceKind

FORMATS = ("int4-g128", "int4-g128-zp", "int8-g128")
BATCHES = (1, 256)


def records(device: DeviceKind, release: str) -> dict[str, Kernel]:
    """Its rows on a CPU, by name."""
    return {
        name: Kernel(
            *("vendor", "onnxruntime", device, FORMATS, ("bf16",), BATCHES),
            *(pack, partial(bind, level), f"{release}{suffix}"),
        )
        for name, level, suffix in (("onnxruntime", 0, ""), ("onnxruntime_int8", 4, "-int8"))
    }


def pack(weights: Weights) -> Tensors:
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


def bind(level: int, tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """A session of one node whose weights are constants, bound to buffers of fp32.

    Args:
        level: accuracy_level of MatMulNBits: 0 multiplies in fp32, 4 quantizes x to int8.
        tensors: `pack`.
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
