"""The Triton kernels and the library beside them: `KERNELS`, in the order of the ladder.

Two regimes share the ladder: `gemv` serves batches 1 to 16 with fp32 multiply-adds, `gemm` batches
16 to 256 with tensor cores. At batch 16 both have a row.
"""

from functools import partial

from kernels.cuda_vendor import VENDOR
from kernels.formats import FORMATS, WeightFormat
from kernels.kernel import LADDER, Arm, Kernel
from kernels.packing import BypassReading
from kernels.triton import dequantize, gemm, gemv, native
from kernels.triton.plan import ACTIVATIONS, Plan, packed_tensors

QUANTIZED = tuple(f.name for f in FORMATS if f.quantized and f.bits in (4, 8))
TOLERANCE = 1e-2  # of the largest |y|: bf16 rounds y to 8 bits, fp16 is far inside


def stage(arm: Arm, regime: str) -> Kernel:
    """One stage of the ladder in one regime, "gemv" or "gemm"."""
    module = {"gemv": gemv, "gemm": gemm}[regime]
    readings: dict[str, BypassReading] = {"gemv": "fp32", "gemm": "halves"}
    return Kernel(
        arm=arm,
        implementation="triton",
        device="cuda",
        formats=QUANTIZED,
        activations=ACTIVATIONS,
        batches=module.BATCHES,
        pack=partial(packed_tensors, bypass=True) if arm == "bypass" else packed_tensors,
        bind=partial(module.bind, arm),
        variant=regime,
        reading=readings[regime],
        tolerance=TOLERANCE,
    )


def plan_of(
    arm: Arm, regime: str, weight_format: WeightFormat, activation: str, n: int, k: int, batch: int
) -> Plan:
    """What the kernel of an arm and regime launches: for those who compile it and launch nothing."""
    if arm == "dequantize":
        return dequantize.plan(weight_format, activation, n, k)
    if arm == "native":
        sixteen = native.plan_gemv if regime == "gemv" else native.plan_gemm
        return sixteen(activation, n, k, batch)
    plan = gemv.plan if regime == "gemv" else gemm.plan
    return plan(arm, weight_format, activation, n, k, batch)


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
DEQUANTIZE = Kernel(
    arm="dequantize",
    implementation="triton",
    device="cuda",
    formats=QUANTIZED,
    activations=ACTIVATIONS,
    batches=(1, 256),
    pack=packed_tensors,
    bind=dequantize.bind,
    tolerance=2**-8,  # rounded once, like the reference; but Triton's interpreter truncates to bf16
)

KERNELS: tuple[Kernel, ...] = (
    *(stage(arm, "gemv") for arm in LADDER),
    *(stage(arm, "gemm") for arm in LADDER),
    NATIVE_GEMV,
    NATIVE_GEMM,
    VENDOR,
    DEQUANTIZE,
)
