"""Weight formats: what is stored per weight, and how many bits that comes to.

A format is data. `packing.py` says what the bits mean; kernels say how they are read. Names are those of
the field: `int4-g128` is a 4-bit integer with one 16-bit scale per 128 weights along k, `-zp` adds a zero
point per group, `-ch` has one scale per output channel (a row of W). `nf4-b64` is bitsandbytes' NF4: one
fp32 scale, the largest magnitude, per block of 64; `nf4-b64-s16` keeps that in 16 bits.
`fp8_e4m3-b128` has one scale per 128 weights along k of one row (not per square of 128 x 128).
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.codebooks import Encoding

ZERO_POINT_BITS = 8  # an integer zero point, one byte


@dataclass(frozen=True)
class WeightFormat:
    """How one weight matrix W[n, k] is stored.

    Attributes:
        name: the name used on the command line and in profiles.
        bits: nominal bits per weight, the `p` people speak of.
        alias: the field's shorthand, weight bits and activation bits: W4A16.
        group_size: weights along k that share a scale; None for one scale per row.
        zero_point: whether a group has its own zero point; otherwise it is `zero_code`.
        encoding: what a code stands for: an integer, or a number of a codebook.
        scale_bits: 16 for scales in the activation dtype, fp16 or bf16; 32 for fp32.
    """

    name: str
    bits: int
    alias: str
    group_size: int | None = None
    zero_point: bool = False
    encoding: Encoding = "int"
    scale_bits: int = 16

    @property
    def quantized(self) -> bool:
        """Whether there is anything to dequantize."""
        return self.bits < 16

    @property
    def weights_per_word(self) -> int:
        """Weights in one packed 32-bit word."""
        return 32 // self.bits

    @property
    def zero_code(self) -> int:
        """The code that means zero when there is no stored zero point: the middle one of an integer."""
        return {"int": 1 << (self.bits - 1), "nf4": 7, "e4m3": 0, "e5m2": 0}[self.encoding]

    def groups(self, k: int) -> int:
        """Scales per row of length k.

        Raises:
            ValueError: k does not divide into whole groups and whole words.
        """
        group_size = self.group_size or k
        if k % group_size or k % self.weights_per_word:
            raise ValueError(
                f"{self.name} needs k divisible by its group size {group_size} and by the "
                f"{self.weights_per_word} weights of a packed word, but k is {k}. "
                f"Choose a model whose input widths divide, or a format with smaller groups."
            )
        return k // group_size

    @property
    def group_bits(self) -> int:
        """Bits stored per group: the scale, and the zero point if there is one."""
        return self.scale_bits + (ZERO_POINT_BITS if self.zero_point else 0)

    def bits_stored(self, k: int) -> float:
        """Bits moved per weight, scales and zero points included (METHOD: p counts stored bits)."""
        if not self.quantized:
            return float(self.bits)
        return self.bits + self.group_bits * self.groups(k) / k


FORMATS = (
    WeightFormat("fp16", 16, "W16A16"),
    WeightFormat("bf16", 16, "W16A16"),
    WeightFormat("fp32", 32, "W32A32"),
    WeightFormat("int8-ch", 8, "W8A16"),
    WeightFormat("int8-g128", 8, "W8A16", group_size=128),
    WeightFormat("int4-g128", 4, "W4A16", group_size=128),
    WeightFormat("int4-g128-zp", 4, "W4A16", group_size=128, zero_point=True),
    WeightFormat("nf4-b64", 4, "W4A16", group_size=64, encoding="nf4", scale_bits=32),
    WeightFormat("nf4-b64-s16", 4, "W4A16", group_size=64, encoding="nf4"),
    WeightFormat("fp8_e4m3-ch", 8, "W8A16", encoding="e4m3", scale_bits=32),
    WeightFormat("fp8_e4m3-b128", 8, "W8A16", group_size=128, encoding="e4m3", scale_bits=32),
    WeightFormat("fp8_e5m2-ch", 8, "W8A16", encoding="e5m2", scale_bits=32),
    WeightFormat("fp8_e5m2-b128", 8, "W8A16", group_size=128, encoding="e5m2", scale_bits=32),
)


def find_format(name: str) -> WeightFormat:
    """The format of that name.

    Raises:
        ValueError: no such format; the message lists those that exist.
    """
    for weight_format in FORMATS:
        if weight_format.name == name:
            return weight_format
    known = ", ".join(f.name for f in FORMATS)
    raise ValueError(f"there is no weight format named {name!r}; choose one of {known}.")


def formats_with_bits(bits: int) -> tuple[WeightFormat, ...]:
    """Every quantized format of that nominal width.

    Raises:
        ValueError: no format has that many bits; the message lists the widths that exist.
    """
    found = tuple(f for f in FORMATS if f.bits == bits and f.quantized)
    if not found:
        widths = ", ".join(str(b) for b in sorted({f.bits for f in FORMATS if f.quantized}))
        raise ValueError(
            f"no quantized weight format has {bits} bits; choose --bits from {widths}."
        )
    return found
