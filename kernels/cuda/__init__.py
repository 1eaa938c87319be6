"""Hand-written CUDA C++: a floor of instructions per weight, no ceiling of speed. `KERNELS`.

Few instructions is what they are for. Nothing splits k over blocks, and a block takes 32 rows: where that
leaves multiprocessors empty (n = 4096 makes 128 blocks), a kernel with more instructions may well be faster.


    int4_simt.cu    every weight becomes a number: what that costs without tensor cores
    int4_mma.cu     weights as the A operand of the tensor cores, all offsets folded out of the loop
    int8_mma.cu     the same for bytes    fp8_mma.cu  the same for e4m3    nf4_pairs.cu  a table of pairs
    stream.cu       reads what the tensor-core kernels read    dequantize.cu   packed words to fp16 in memory

    lanes.cuh       the instructions they are made of        tiles.cuh  what the tensor-core kernels share
    layout.py       the order in which those read weights    plan.py    a launch as data    launch.py  by CuPy

Activations are fp16. Each product has a bypass; offsets that are folded leave no stage to call "scale".
"""

from functools import partial

from kernels.cuda.launch import (
    bind_dequantize,
    bind_gemv,
    bind_stream,
    dequantize_tensors,
    gemv_tensors,
    missing,
)
from kernels.cuda.plan import ARMS, GEMV_VARIANTS, SOURCES
from kernels.formats import WeightFormat, find_format
from kernels.kernel import Arm, Kernel

__all__ = ["KERNELS", "missing"]

TOLERANCE = 2e-3  # of the largest |y|: fp16 rounds y to 5e-4 of it, sixteen fp16 sums of int4_simt.cu to 7e-4


def product(variant: str, arm: Arm, weight_format: WeightFormat) -> Kernel:
    """One product of one format."""
    return Kernel(
        arm=arm,
        implementation="cuda",
        device="cuda",
        formats=(weight_format.name,),
        activations=("fp16",),
        batches=SOURCES[variant][weight_format.name].batches,
        pack=partial(gemv_tensors, variant=variant, bypass=arm == "bypass"),
        bind=partial(bind_gemv, variant, arm, weight_format),
        variant=variant,
        reading="turns" if variant == "mma" else "halves",
        tolerance=TOLERANCE,
    )


def streamer(weight_format: WeightFormat) -> Kernel:
    """The kernel that reads what a tensor-core product reads; its own copies where codes would be moved."""
    moved = bool(SOURCES["mma"][weight_format.name].order)
    pack = partial(gemv_tensors, variant="mma", bypass=False)
    return Kernel(
        arm="stream",
        implementation="cuda",
        device="cuda",
        formats=(weight_format.name,),
        activations=("fp16",),
        batches=SOURCES["mma"][weight_format.name].batches,
        pack=partial(pack, plain=True) if moved else pack,
        bind=partial(bind_stream, weight_format),
        variant="mma",
        tolerance=0.0,
    )


def dequantizer(weight_format: WeightFormat) -> Kernel:
    """The kernel that writes 16-bit weights: the same bits as the reference."""
    return Kernel(
        arm="dequantize",
        implementation="cuda",
        device="cuda",
        formats=(weight_format.name,),
        activations=("fp16",),
        batches=SOURCES["dequantize"][weight_format.name].batches,
        pack=dequantize_tensors,
        bind=partial(bind_dequantize, weight_format),
        tolerance=2**-11,
    )


KERNELS: tuple[Kernel, ...] = (
    *(streamer(find_format(f)) for f in SOURCES["mma"]),
    *(product(v, a, find_format(f)) for v in GEMV_VARIANTS for f in SOURCES[v] for a in ARMS),
    *(dequantizer(find_format(f)) for f in SOURCES["dequantize"]),
)
