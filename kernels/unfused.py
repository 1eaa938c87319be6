"""The unfused path: dequantize into one reused scratch matrix, then the best 16-bit kernel. Two launches.

Which 16-bit kernel is best depends on the machine and the batch, so the bench decides and composes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

from kernels.formats import WeightFormat, find_format
from kernels.kernel import Configuration, Kernel, Launch, Tensors

if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=8)
def _scratch(n: int, k: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One matrix per shape, shared by all copies of the weights: no allocation inside a launch."""
    import torch  # not above: a simulated device composes kernels too, and has no use for it

    return torch.empty((n, k), dtype=dtype, device=device)


def _given(config: object | None) -> dict[str, object]:
    """A configuration as an argument of `bind`, which kernels without any do not take."""
    return {} if config is None else {"config": config}


def compose(dequantize: Kernel, sixteen: Kernel) -> Kernel:
    """The `unfused` kernel made of a dequantize kernel and a 16-bit kernel of the same device.

    Raises:
        ValueError: the parts are not a dequantize kernel and a 16-bit kernel of one device.
    """
    if (
        dequantize.arm != "dequantize"
        or sixteen.weight_bits != 16
        or sixteen.arm == "upcast"
        or dequantize.device != sixteen.device
    ):
        raise ValueError(
            "unfused is made of a dequantize kernel and a 16-bit kernel of one device, "
            f"not of {dequantize.arm} ({dequantize.device}) and {sixteen.arm} ({sixteen.device})."
        )

    def bind(
        tensors: Tensors, x: torch.Tensor, out: torch.Tensor, config: object | None = None
    ) -> Launch:
        matrix = _scratch(out.shape[1], x.shape[1], x.dtype, x.device)
        first, second = cast("tuple[object, object]", config or (None, None))
        expand = dequantize.bind(tensors, x, matrix, **_given(first))
        multiply = sixteen.bind({"weights": matrix}, x, out, **_given(second))

        def launch() -> object:
            expand()
            return multiply()

        return launch

    def configuration(
        weight_format: WeightFormat, activation: str, n: int, k: int, batch: int
    ) -> Configuration:
        """Those of both launches; the 16-bit kernel's is that for its own weights."""
        first = dequantize.configuration(weight_format, activation, n, k, batch)
        second = sixteen.configuration(find_format(activation), activation, n, k, batch)
        configs = (first.config, second.config)
        named = ((first, "dequantize"), (second, sixteen.arm))
        said = [f"{found.text} ({arm})" for found, arm in named if found.text]
        said.sort(reverse=True)  # what is untuned first
        return Configuration(None if configs == (None, None) else configs, "; ".join(said))

    return Kernel(
        arm="unfused",
        implementation=f"{dequantize.implementation}+{sixteen.implementation}",
        device=dequantize.device,
        formats=dequantize.formats,
        activations=dequantize.activations,
        batches=sixteen.batches,
        pack=dequantize.pack,
        bind=bind,
        variant=sixteen.variant,
        configuration=configuration,
    )
