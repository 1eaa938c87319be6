"""Every Triton kernel against the float64 reference, interpreted at small ragged shapes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from kernels.formats import find_format
from kernels.kernel import Kernel
from kernels.triton import KERNELS
from kernels.triton.plan import ACTIVATIONS
from tests import ptx_summary
from tests.ptx_kernels import formats_of, kind
from tests.triton_cases import check

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="with a GPU the kernels are compiled, not interpreted",
)

QUANTIZED = formats_of(("fused", "gemv"))
KINDS = tuple({kind(name): name for name in reversed(QUANTIZED)}.values())[::-1]
REFERENCE = "int4-g128"  # the format that is interpreted in every way; the others share its code

# One (n, k) per batch; n never fills its last tile. Of gemv's steps along k (1024 to 4096 weights)
# 384 is a part and 2304 one or more and a part; of gemm's (128) all are whole.
SHAPES = {1: (5, 2304), 3: (6, 384), 16: (11, 256), 17: (70, 384), 256: (37, 256)}


def triton_kernels() -> list[Kernel]:
    """All but those in inline PTX, and of lowp, which are executed elsewhere: *_emulated.py, *_lowp.py."""
    ours = [kernel for kernel in KERNELS if kernel.implementation == "triton"]
    return [k for k in ours if not k.variant.endswith("ptx") and k.arm != "lowp"]


def accepting(format_name: str, activation: str, batch: int) -> list[Kernel]:
    weight_format = find_format(format_name)
    return [k for k in triton_kernels() if k.accepts(weight_format, activation, batch)]


def name(kernel: Kernel) -> str:
    return f"{kernel.arm}-{kernel.variant}"


Case = tuple[Kernel, str, str, int, int, int]  # kernel, format, activation, batch, n, k


def all_cases(formats: tuple[str, ...]) -> list[Case]:
    """Every kernel, format, activation and batch, at the batch's shape."""
    return [
        (kernel, f, a, batch, n, k)
        for batch, (n, k) in SHAPES.items()
        for a in ACTIVATIONS
        for f in formats
        for kernel in accepting(f, a, batch)
        if kernel.weight_bits is None or f == REFERENCE
    ]


def in_turn(case: Case) -> bool:
    """Whether this activation's turn has come: kernels, formats and batches each pass it on to the next."""
    kernel, format_name, activation, batch, _, _ = case
    place = KERNELS.index(kernel) + QUANTIZED.index(format_name) + [*SHAPES].index(batch)
    return ACTIVATIONS[place % len(ACTIVATIONS)] == activation


def covering_cases() -> list[Case]:
    """All of one format; of every other kind what takes codes out and what multiplies or writes weights.

    At batches and activations in turn. The stages between, and `bypass`, are in the proofs.
    """
    chosen = all_cases((REFERENCE,))
    for place, format_name in enumerate(KINDS):
        found: dict[tuple[str, str], list[Case]] = {}
        for case in all_cases((format_name,)) if format_name != REFERENCE else ():
            if case[0].arm not in ("unpack", "fused", "dequantize"):
                continue
            found.setdefault((case[0].arm, case[0].variant), []).append(case)
        chosen += [same[(place + i) % len(same)] for i, same in enumerate(found.values())]
    return chosen


def elsewhere() -> list[Case]:
    """Other batches and shapes, and activations, in turn: every kernel and kind of format."""
    cases = [
        (kernel, f, batch, place)
        for place, f in enumerate(KINDS)
        for batch in ((2, 70), (7, 31))[place % 2]
        for kernel in accepting(f, "fp16", batch)
        if kernel.weight_bits is None or f == REFERENCE
    ]
    shapes = ((1, 128), (66, 640), (66, 128), (1, 2176))
    return [
        (kernel, f, ACTIVATIONS[(i + place // 4) % 2], batch, *shapes[(i + place // 2) % 4])
        for i, (kernel, f, batch, place) in enumerate(cases)
    ]


def named(cases: list[Case]) -> list[object]:
    """Parameters of a test, which say what they are."""
    return [
        pytest.param(*case, id=f"{name(case[0])}-{case[1]}-{case[2]}-{case[3]}x{case[4]}x{case[5]}")
        for case in cases
    ]


COVERING = covering_cases()
CASE = ("kernel", "format_name", "activation", "batch", "n", "k")


def check_and_record(case: Case, record_property: Callable[[str, object], None]) -> None:
    kernel, format_name, activation, batch, _, _ = case
    check(*case, "cpu")
    cell = ptx_summary.kernel_cell(kernel, format_name, activation, batch)
    record_property(ptx_summary.INTERPRETED, cell)


@pytest.mark.parametrize(CASE, named(COVERING))
def test_kernel_matches_reference(
    kernel: Kernel,
    format_name: str,
    activation: str,
    batch: int,
    n: int,
    k: int,
    record_property: Callable[[str, object], None],
) -> None:
    check_and_record((kernel, format_name, activation, batch, n, k), record_property)


@pytest.mark.parametrize("batch", [1, 16, 17])
@pytest.mark.parametrize("k", [100, 1300])
def test_row_scaled_format_takes_k_that_fills_no_load(batch: int, k: int) -> None:
    """int8-ch has no groups: k need only fill words, so the last 16-byte load may be part empty."""
    for kernel in accepting("int8-ch", "fp16", batch):
        check(kernel, "int8-ch", "fp16", batch, 7, k, "cpu")


@pytest.mark.parametrize(
    ("format_name", "k"), [(f, (4096, 6144)[i % 2]) for i, f in enumerate(KINDS)]
)
def test_whole_steps_along_k(format_name: str, k: int) -> None:
    """Shapes whose last step is whole, one step and several: the code without masks."""
    for kernel in accepting(format_name, "fp16", 1):
        check(kernel, format_name, "fp16", 1, 3, k, "cpu")


def test_both_regimes_have_a_row_at_batch_16() -> None:
    kernels = accepting("int4-g128", "fp16", 16)
    assert [k.variant for k in kernels if k.arm == "fused"] == ["gemv", "gemm"]


def test_every_kernel_and_format_of_the_proof_meets_both_activations() -> None:
    met: dict[tuple[str, str, str], set[str]] = {}
    for kernel, format_name, activation, *_ in filter(in_turn, all_cases(QUANTIZED)):
        met.setdefault((kernel.arm, kernel.variant, format_name), set()).add(activation)
    both = {(k.arm, k.variant, f) for k, f, *_ in all_cases(QUANTIZED)}
    assert met == {key: set(ACTIVATIONS) for key in both}


def test_elsewhere_every_kernel_meets_two_batches_all_shapes_and_both_activations() -> None:
    met: dict[tuple[str, str], list[set[object]]] = {}
    for kernel, _, activation, batch, n, k in elsewhere():
        if kernel.weight_bits is None:  # of those of 16 bits one format is here
            sets = met.setdefault((kernel.arm, kernel.variant), [set(), set(), set()])
            for values, value in zip(sets, (batch, (n, k), activation), strict=True):
                values.add(value)
    counts = {key: [len(values) for values in sets] for key, sets in met.items()}
    assert counts.pop(("dequantize", "default")) == [4, 4, 2]
    assert all(found == [2, 4, 2] for found in counts.values()), counts


@pytest.mark.parametrize("arm", ["scale", "fused"])
def test_rows_of_one_group_whose_codes_have_no_zero(arm: str) -> None:
    """One-bit rows of 128 weights: what lies beyond them is no zero times a scale."""
    for kernel in accepting("int1-g128", "fp16", 2):
        if kernel.arm == arm:
            check(kernel, "int1-g128", "fp16", 2, 66, 128, "cpu")


@pytest.mark.proof
@pytest.mark.parametrize(CASE, named([*filter(in_turn, all_cases(QUANTIZED)), *elsewhere()]))
def test_kernel_matches_reference_everywhere(
    kernel: Kernel,
    format_name: str,
    activation: str,
    batch: int,
    n: int,
    k: int,
    record_property: Callable[[str, object], None],
) -> None:
    check_and_record((kernel, format_name, activation, batch, n, k), record_property)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_second_kernel_of_upcast_takes_over_at_nine_rows(activation: str) -> None:
    upcast = {
        batch: [k for k in accepting(REFERENCE, activation, batch) if k.arm == "upcast"]
        for batch in (8, 9)
    }
    assert [[k.variant for k in kernels] for kernels in upcast.values()] == [["gemv"], ["gemm"]]
    for batch, (kernel,) in upcast.items():
        check(kernel, REFERENCE, activation, batch, 21, 384, "cpu")
