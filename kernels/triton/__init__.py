"""The Triton kernels and the library beside them: `KERNELS`, in the order of the ladder.

Two regimes share the ladder: `gemv` serves batches 1 to 16 with multiply-adds, `gemm` batches 16 to 256
with tensor cores. At batch 16 both have a row. Each comes in two variants that differ by a constexpr:
as Triton's own operations make it, and `-ptx`, with the tile functions of `tuned.py`. What the second is
faster by is what writing the instructions by hand is worth.
"""

from functools import partial
from typing import Any

from kernels import lowp_vendor
from kernels.codebooks import Encoding
from kernels.cuda_vendor import VENDOR
from kernels.formats import FORMATS, WeightFormat
from kernels.kernel import LADDER, Arm, Kernel
from kernels.layercast import layercast
from kernels.packing import BypassReading, Float16
from kernels.triton import dequantize, gemm, gemv, lowp, native, tuned, upcast
from kernels.triton.configs import configured
from kernels.triton.plan import ACTIVATIONS, Plan, packed_tensors

ENCODINGS: tuple[Encoding, ...] = ("int", "nf4", "fp4", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
VARIANTS = ("gemv", "gemv-ptx", "gemm", "gemm-ptx")
TOLERANCE = 1e-2  # of the largest |y|: bf16 rounds y to 8 bits, fp16 is far inside


def stage(arm: Arm, variant: str, activation: Float16, encoding: Encoding) -> Kernel:
    """One stage of the ladder in one of the VARIANTS."""
    module = gemm if variant.startswith("gemm") else gemv
    is_tuned = variant.endswith("-ptx")
    return Kernel(
        arm=arm,
        implementation="triton",
        device="cuda",
        formats=encoded(encoding),
        activations=(activation,),
        batches=module.BATCHES,
        pack=partial(packed_tensors, bypass=True) if arm == "bypass" else packed_tensors,
        bind=partial(module.bind, arm, encoding=encoding, tuned=is_tuned),
        variant=variant,
        reading=reading_of(variant, activation, encoding),
        tolerance=TOLERANCE,
    )


def reading_of(variant: str, activation: str, encoding: Encoding) -> BypassReading:
    """How the bypass arm of a variant reads its words: as pairs where it multiplies pairs."""
    half2 = variant == "gemv-ptx" and activation == "fp16" and tuned.makes_pairs(encoding)
    return "halves" if variant.startswith("gemm") or half2 else "fp32"


def encoded(encoding: Encoding) -> tuple[str, ...]:
    """The names of the formats of an encoding."""
    return tuple(f.name for f in FORMATS if f.quantized and f.encoding == encoding)


def dequantizer(variant: str, encoding: Encoding) -> Kernel:
    """The kernel that writes 16-bit weights: "default", or "ptx" for the tile functions in PTX."""
    return Kernel(
        arm="dequantize",
        implementation="triton",
        device="cuda",
        formats=encoded(encoding),
        activations=ACTIVATIONS,
        batches=(1, 256),
        pack=packed_tensors,
        bind=partial(dequantize.bind, encoding=encoding, tuned=variant == "ptx"),
        variant=variant,
        tolerance=2
        ** -8,  # rounded once, like the reference; but Triton's interpreter truncates to bf16
    )


def plan_of(
    arm: Arm,
    variant: str,
    weight_format: WeightFormat,
    activation: Float16,
    n: int,
    k: int,
    batch: int,
    capability: int,
    config: Any = None,
    multiprocessors: int | None = None,
) -> Plan:
    """What the kernel of an arm and variant launches, by default or in a configuration of its own kind."""
    if arm == "dequantize":
        tuning = (variant == "ptx", capability)
        return dequantize.plan(weight_format, activation, n, k, config, *tuning)
    if arm == "native":
        if variant == "gemv":
            return native.plan_gemv(activation, n, k, batch, config)
        return native.plan_gemm(activation, n, k, batch, config, multiprocessors)
    if arm == "lowp":
        return lowp.plan(weight_format, activation, n, k, batch, config, capability)
    if arm == "upcast":
        wide = upcast.plan_gemv if variant == "gemv" else upcast.plan_gemm
        return wide(activation, n, k, batch, config)
    shape = (arm, weight_format, activation, n, k, batch, config)
    tuning = (variant.endswith("-ptx"), capability)
    if variant.startswith("gemm"):
        return gemm.plan(*shape, *tuning, multiprocessors)
    return gemv.plan(*shape, *tuning)


NATIVE_GEMV = Kernel(
    arm="native",
    implementation="triton",
    device="cuda",
    formats=ACTIVATIONS,
    activations=ACTIVATIONS,
    batches=gemv.BATCHES,
    pack=native.pack,
    bind=native.bind_gemv,
    variant="gemv",
    tolerance=TOLERANCE,
)
NATIVE_GEMM = Kernel(
    arm="native",
    implementation="triton",
    device="cuda",
    formats=ACTIVATIONS,
    activations=ACTIVATIONS,
    batches=gemm.BATCHES,
    pack=native.pack,
    bind=native.bind_gemm,
    variant="gemm",
    tolerance=TOLERANCE,
)
_KERNELS: tuple[Kernel, ...] = (
    *(stage(a, v, x, e) for v in VARIANTS for e in ENCODINGS for x in ACTIVATIONS for a in LADDER),
    NATIVE_GEMV,
    NATIVE_GEMM,
    VENDOR,
    *lowp.KERNELS,
    *lowp_vendor.CUDA_KERNELS,
    *upcast.KERNELS,
    layercast("cuda", ACTIVATIONS, native.pack),
    *(
        dequantizer(v, e) for v in ("ptx", "default") for e in ENCODINGS
    ),  # the first makes `unfused`
)
KERNELS: tuple[Kernel, ...] = tuple(map(configured, _KERNELS))
