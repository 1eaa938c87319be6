"""Weight formats: what is stored per weight, and how many bits that comes to.

A format is data. `packing.py` says what the bits mean; kernels say how they are read. Names are those of
the field:

    int4-g128       4-bit integers, one 16-bit scale per 128 weights along k; -zp adds a zero point per
                    group, -ch has one scale per output channel (a row of W)
    nf4-b64         bitsandbytes' NF4: one fp32 scale, the largest magnitude, per block of 64; fp4-b64 is
                    its FP4; -s16 keeps that scale in 16 bits, -dq quantizes it again ("double quantization")
    fp8_e4m3-b128   one fp32 scale per 128 weights along k of one row (not per square of 128 x 128)
    mxfp4           OCP Microscaling: a power of two (e8m0) per 32 weights; mxfp6, mxfp8, mxint8 likewise
    nvfp4           an FP8 (e4m3) scale per 16 weights and one fp32 per matrix; nvint4 likewise
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.codebooks import Encoding
from kernels.scales import NESTED_BLOCK, SCALE_BITS, ScaleType

ZERO_POINT_BITS = 8  # an integer zero point, one byte
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


@dataclass(frozen=True)
class WeightFormat:
    """How one weight matrix W[n, k] is stored.

    Attributes:
        name: the name used on the command line and in profiles.
        bits: nominal bits per weight, the `p` people speak of.
        alias: the field's shorthand, weight bits and activation bits: W4A16.
        group_size: weights along k that share a scale; None for one scale per row.
        zero_point: whether a group has its own zero point; otherwise it is `zero`.
        encoding: what a code stands for: an integer, or a number of a codebook.
        scale_type: how a group's scale is stored, see scales.py.
    """

    name: str
    bits: int
    alias: str
    group_size: int | None = None
    zero_point: bool = False
    encoding: Encoding = "int"
    scale_type: ScaleType = "activation"

    @property
    def meaning(self) -> str:
        """What is stored of a weight, in a line of words."""
        if not self.quantized:
            return "a 16-bit weight" if self.bits == 16 else "an upcast weight"
        codes = {
            "int": "integers" if self.bits > 1 else "signs",
            "nf4": "levels of NF4",
            "fp4": "FP4 of bitsandbytes",
        }.get(self.encoding, f"{self.encoding} floats")
        scale = {
            "activation": "16-bit scale",
            "fp32": "fp32 scale",
            "e8m0": "power of two",
            "e4m3": "e4m3 scale",
            "nested": "quantized scale",
        }[self.scale_type]
        zero = " and zero" if self.zero_point else ""
        weights = f"per {self.group_size}" if self.group_size else "per row"
        matrix = ", one fp32" if self.scale_type == "e4m3" else ""
        return f"{codes}, {scale}{zero} {weights}{matrix}"

    @property
    def quantized(self) -> bool:
        """Whether there is anything to dequantize."""
        return self.bits < 16

    @property
    def planes(self) -> tuple[int, ...]:
        """Widths in bits of the planes that codes are stored in, the most significant first."""
        return PLANES[self.bits]

    @property
    def weights_per_word(self) -> int:
        """Weights in one packed 32-bit word; of several planes, in one of the widest."""
        return 32 // self.planes[0]

    @property
    def weights_per_whole(self) -> int:
        """Weights that fill whole words of every plane."""
        return 32 // self.planes[-1]

    @property
    def zero(self) -> float:
        """What is subtracted from an integer's code where no zero point is stored: the middle code.

        One bit has no middle code: 0 and 1 stand for -1/2 and 1/2.
        """
        return 2.0 ** (self.bits - 1) if self.bits > 1 else 0.5

    @property
    def scale_bits(self) -> int:
        """Bits of one stored scale."""
        return SCALE_BITS[self.scale_type]

    def groups(self, k: int) -> int:
        """Scales per row of length k.

        Raises:
            ValueError: k does not divide into whole groups and whole words.
        """
        group_size = self.group_size or k
        if k % group_size or k % self.weights_per_whole:
            raise ValueError(
                f"{self.name} needs k divisible by its group size {group_size} and by the "
                f"{self.weights_per_whole} weights of a packed word, but k is {k}. "
                f"Choose a model whose input widths divide, or a format with smaller groups."
            )
        return k // group_size

    @property
    def group_bits(self) -> int:
        """Bits stored per group: the scale, and the zero point if there is one."""
        return self.scale_bits + (ZERO_POINT_BITS if self.zero_point else 0)

    def bits_stored(self, k: int) -> float:
        """Bits moved per weight, scales and zero points included (METHOD: p counts stored bits).

        Of a second level of scales, what grows with the matrix: an fp32 per 256 nested scales.
        """
        if not self.quantized:
            return float(self.bits)
        nested = 32 / NESTED_BLOCK if self.scale_type == "nested" else 0.0
        return self.bits + (self.group_bits + nested) * self.groups(k) / k


FORMATS = (
    WeightFormat("fp16", 16, "W16A16"),
    WeightFormat("bf16", 16, "W16A16"),
    WeightFormat("fp32", 32, "W32A32"),
    WeightFormat("int8-g128", 8, "W8A16", group_size=128),
    WeightFormat("int8-g128-zp", 8, "W8A16", group_size=128, zero_point=True),
    WeightFormat("int8-g64", 8, "W8A16", group_size=64),
    WeightFormat("int8-g64-zp", 8, "W8A16", group_size=64, zero_point=True),
    WeightFormat("int8-g32", 8, "W8A16", group_size=32),
    WeightFormat("int8-g32-zp", 8, "W8A16", group_size=32, zero_point=True),
    WeightFormat("int8-ch", 8, "W8A16"),
    WeightFormat("int8-ch-zp", 8, "W8A16", zero_point=True),
    WeightFormat("int4-g128", 4, "W4A16", group_size=128),
    WeightFormat("int4-g128-zp", 4, "W4A16", group_size=128, zero_point=True),
    WeightFormat("int4-g64", 4, "W4A16", group_size=64),
    WeightFormat("int4-g64-zp", 4, "W4A16", group_size=64, zero_point=True),
    WeightFormat("int4-g32", 4, "W4A16", group_size=32),
    WeightFormat("int4-g32-zp", 4, "W4A16", group_size=32, zero_point=True),
    WeightFormat("int4-ch", 4, "W4A16"),
    WeightFormat("int4-ch-zp", 4, "W4A16", zero_point=True),
    WeightFormat("int7-g128", 7, "W7A16", group_size=128),
    WeightFormat("int6-g128", 6, "W6A16", group_size=128),
    WeightFormat("int5-g128", 5, "W5A16", group_size=128),
    WeightFormat("int3-g128", 3, "W3A16", group_size=128),
    WeightFormat("int2-g128", 2, "W2A16", group_size=128),
    WeightFormat("int1-g128", 1, "W1A16", group_size=128),
    WeightFormat("nf4-b64", 4, "W4A16", group_size=64, encoding="nf4", scale_type="fp32"),
    WeightFormat("nf4-b64-s16", 4, "W4A16", group_size=64, encoding="nf4"),
    WeightFormat("nf4-b64-dq", 4, "W4A16", group_size=64, encoding="nf4", scale_type="nested"),
    WeightFormat("fp4-b64", 4, "W4A16", group_size=64, encoding="fp4", scale_type="fp32"),
    WeightFormat("fp4-b64-dq", 4, "W4A16", group_size=64, encoding="fp4", scale_type="nested"),
    WeightFormat("fp8_e4m3-ch", 8, "W8A16", encoding="e4m3", scale_type="fp32"),
    WeightFormat("fp8_e4m3-b128", 8, "W8A16", group_size=128, encoding="e4m3", scale_type="fp32"),
    WeightFormat("fp8_e5m2-ch", 8, "W8A16", encoding="e5m2", scale_type="fp32"),
    WeightFormat("fp8_e5m2-b128", 8, "W8A16", group_size=128, encoding="e5m2", scale_type="fp32"),
    WeightFormat("mxfp8_e4m3", 8, "W8A16", group_size=32, encoding="e4m3", scale_type="e8m0"),
    WeightFormat("mxfp8_e5m2", 8, "W8A16", group_size=32, encoding="e5m2", scale_type="e8m0"),
    WeightFormat("mxint8", 8, "W8A16", group_size=32, scale_type="e8m0"),
    WeightFormat("mxfp6_e2m3", 6, "W6A16", group_size=32, encoding="e2m3", scale_type="e8m0"),
    WeightFormat("mxfp6_e3m2", 6, "W6A16", group_size=32, encoding="e3m2", scale_type="e8m0"),
    WeightFormat("mxfp4", 4, "W4A16", group_size=32, encoding="e2m1", scale_type="e8m0"),
    WeightFormat("nvfp4", 4, "W4A16", group_size=16, encoding="e2m1", scale_type="e4m3"),
    WeightFormat("nvint4", 4, "W4A16", group_size=16, scale_type="e4m3"),
)


LOWP_ALIASES = {  # formats whose codes tensor cores multiply as they are, with activations like them
    "int8-ch": "W8A8",
    "fp8_e4m3-ch": "W8A8",
    "mxfp8_e4m3": "W8A8",
    "mxfp4": "W4A4",
    "nvfp4": "W4A4",
}


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


def formats_called(name: str) -> tuple[WeightFormat, ...]:
    """The format of that name, or every quantized format of an alias such as W4A16.

    Raises:
        ValueError: there is neither; the message lists those that exist.
    """
    return tuple(f for f in FORMATS if f.alias == name.upper() and f.quantized) or (
        find_format(name),
    )


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
