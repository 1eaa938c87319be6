"""Both theories on costs that follow one of them, and the crossings of each by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import lsq_linear
from trap_profiles import OPERATORS, book, simple

from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import problem_of
from bench.analysis.theories import Theories, Unfitted, fit_theories, kernel_name
from profiles.schema import Operator

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WEIGHTS = sum(o.n * o.k for o in OPERATORS)
BITS = 4.125


def fitted(time, path: str = "fused", batches: tuple[int, ...] = BATCHES) -> Theories:  # type: ignore[no-untyped-def]
    b = book(time, batches)
    (found,) = fit_theories(b, layers_of(b), path, BITS)  # type: ignore[arg-type]
    assert isinstance(found, Theories)
    return found


def test_the_step_form_is_found_where_it_was_planted() -> None:
    found = fitted(simple(t0_q=1e-9, t0_16=1e-9, row_s=0.002e-12))
    step = found.step
    assert step.row_tile == 16
    expected = {
        "M(16)": WEIGHTS * 0.7e-12, "C(16)": WEIGHTS * 0.002e-12, "M(p)": WEIGHTS * 0.2e-12,
        "C(p)": WEIGHTS * 0.002e-12, "phi_1": WEIGHTS * 0.05e-12,
    }  # fmt: skip
    for name, value in expected.items():
        assert step.parameters[name].value == pytest.approx(value, rel=0.03), name
    assert step.residual < 0.01
    assert step.sign == "wins_below"
    assert step.crosses.value == pytest.approx(160, abs=1)  # 0.5 / 0.05 tiles of 16
    assert "step form describes this hardware better" in found.verdict
    assert found.paper.prediction > 0.1


def test_both_forms_are_scored_on_the_same_points_and_the_tile_is_not_told_the_answer() -> None:
    """Against bounded least squares of another make, the bypass far off and tiles hard to tell apart."""
    time = simple(t0_q=1e-9, t0_16=1e-9, row_s=0.002e-12)
    bend = dict(zip(BATCHES, (1.0, 0.8, 1.1, 1.3, 0.9, 1.2, 0.7, 1.4, 0.85), strict=True))

    def bent(arm: str, o: Operator, batch: int, weight_format: str) -> float:
        factor = bend[batch] ** 3 if arm == "bypass" else bend[batch] if arm == "fused" else 1.0
        return float(time(arm, o, batch, weight_format) or 0) * factor

    b = book(bent, BATCHES)
    (found,) = fit_theories(b, layers_of(b), "fused", BITS)
    assert isinstance(found, Theories)
    series = [
        [b.time_s(problem_of(c), getattr(c, role))[0] for c in layers_of(b)]  # type: ignore[index]
        for role in ("best16", "fused")
    ]
    series.append(
        [
            b.time_s(problem_of(c), b.stage(problem_of(c), c.fused, "bypass"))[0]  # type: ignore[index]
            for c in layers_of(b)
        ]
    )
    rows = [(s, batch) for s in range(3) for batch in BATCHES]
    y = np.array([t for each in series for t in each])

    def step(tile: int) -> np.ndarray:
        return np.array(
            [
                [1, n, 0, 0, 0] if s == 0 else [0, 0, 1, n, math.ceil(n / tile) if s == 1 else 0]
                for s, n in rows
            ],
            float,
        )

    def solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        solved = lsq_linear(x / y[:, None], np.ones(len(y)), (0, np.inf), tol=1e-14)
        return np.asarray(solved.x)

    errors = []
    for left in BATCHES:
        kept = np.array([n != left for _, n in rows])
        fits = {tile: solve(step(tile)[kept], y[kept]) for tile in (1, 8, 16, 32, 64, 128, 256)}
        best = min(
            fits, key=lambda t: float((np.log(y / (step(t) @ fits[t]))[kept] ** 2).mean().round(9))
        )
        out = [i for i, (s, n) in enumerate(rows) if n == left and s < 2]
        errors += list(np.log(y / (step(best) @ fits[best]))[out])
    assert found.step.prediction == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.01)
    x = step(found.step.row_tile or 0)
    residual = np.log(y / (x @ solve(x, y)))[: 2 * len(BATCHES)]
    assert found.step.residual == pytest.approx(np.sqrt((residual**2).mean()), rel=0.01)
    assert found.step.worst == pytest.approx(np.abs(residual).max(), rel=0.01)


def paper(arm: str, o: Operator, batch: int, weight_format: str) -> float:
    """K alpha p / B + phi per token, on every operator in proportion to its weights."""
    share = o.n * o.k / WEIGHTS
    alpha, phi = 1e-6, 0.3e-6
    per_token = {"native": alpha * 16 / batch, "bypass": alpha * BITS / batch}
    return share * batch * per_token.get(arm, alpha * BITS / batch + phi)


def test_the_papers_form_is_found_where_it_was_planted() -> None:
    found = fitted(paper)
    assert found.paper.parameters["K alpha"].value == pytest.approx(1e-6, rel=0.02)
    assert found.paper.parameters["phi"].value == pytest.approx(0.3e-6, rel=0.02)
    assert found.paper.crosses.value == pytest.approx((16 - BITS) / 0.3, rel=0.03)
    assert found.paper.sign == "wins_below"
    assert found.paper.residual < 0.01


def test_the_step_form_has_the_other_sign_where_its_differences_have() -> None:
    """A format that multiplies faster, after a cost paid once per step: native FP8."""

    def native_fp8(arm: str, o: Operator, batch: int, weight_format: str) -> float:
        size = o.n * o.k
        if arm == "native":
            return size * (0.7e-12 + 0.01e-12 * batch)
        return size * (0.6e-12 + 0.005e-12 * batch) + (0 if arm == "bypass" else size * 0.3e-12)

    found = fitted(native_fp8)
    assert found.step.sign == "wins_above"
    assert found.step.crosses.value == pytest.approx(0.2 / 0.005, rel=0.1)


def test_unfused_pays_once_per_step_on_top_of_best16() -> None:
    found = fitted(simple(t0_q=1e-9, t0_16=1e-9), "unfused")
    assert found.step.sign == "never"
    assert found.step.crosses.value is None
    assert found.step.parameters["phi_1"].value == pytest.approx(WEIGHTS * 1e-12, rel=0.03)


def test_too_few_batches_and_unknown_bits_are_said() -> None:
    b = book(simple(), (1, 2, 4))
    kernels = ("native planted", "fused planted")
    few = Unfitted(kernels, (1, 2, 4), "the fits need 4 batches of the same kernels")
    assert fit_theories(b, layers_of(b), "fused", BITS) == (few,)
    unknown = Unfitted(kernels, (1, 2, 4), "its stored bits per weight are not known")
    assert fit_theories(b, layers_of(b), "fused", None) == (unknown,)
    assert fit_theories(b, layers_of(b), "fused", BITS, "energy") == ()  # there are no joules


def switched(arm: str, o: Operator, batch: int, weight_format: str) -> float:
    """From batch 16 on a kernel that dequantizes once for all rows, and starts 80 us later; 16 bits too."""
    size = o.n * o.k
    if arm == "native":
        return size * (0.7e-12 + 0.002e-12 * batch) if batch < 16 else 5e-6 + size * 0.9e-12
    if batch < 16:
        return size * (0.2e-12 + (0.002e-12 + 0.11e-12 * (arm == "fused")) * batch)
    return 80e-6 + size * (0.3e-12 + 0.004e-12 * batch + 0.2e-12 * (arm == "fused"))


def _both(variant: str) -> tuple[str, str]:
    return f"native planted {variant}", f"fused planted {variant}"


def test_a_switch_of_kernels_is_not_a_residual_of_a_theory() -> None:
    """The same times twice: with one name below and above batch 16, and with two."""
    one = fitted(switched)
    assert one.batches == BATCHES
    assert one.step.worst > 0.2

    def variant(arm: str, batch: int) -> str:
        return "gemv" if batch < 16 else "gemm"

    b = book(switched, BATCHES, variant=variant)
    below, above = fit_theories(b, layers_of(b), "fused", BITS)
    assert isinstance(below, Theories)
    assert isinstance(above, Theories)
    assert (below.kernels, below.batches) == (_both("gemv"), (1, 2, 4, 8))
    assert (above.kernels, above.batches) == (_both("gemm"), (16, 32, 64, 128, 256))
    for found in (below, above):
        assert found.step.worst < 0.02
        assert "step form describes this hardware better" in found.verdict
    # the lower kernel's dequantization is paid by each row: 0.5 ps = 0.11 ps B after 4 of them, half way to 5
    assert below.step.parameters["C(p)"].value == pytest.approx(WEIGHTS * 0.002e-12, rel=0.1)
    assert below.step.crosses.value == pytest.approx(4.5)
    # 16 bits alone may switch, too: three groups, of which one has a single batch
    b = book(switched, BATCHES, variant=lambda arm, batch: str(arm == "native" and batch == 1))
    first, rest = fit_theories(b, layers_of(b), "fused", BITS)
    assert isinstance(first, Unfitted)
    assert (first.kernels[0], first.batches, rest.batches) == (
        "native planted True",
        (1,),
        BATCHES[1:],
    )


def test_a_loop_is_told_by_the_configuration_of_its_rows_and_a_tile_is_not() -> None:
    b = book(simple(), BATCHES)
    loops = {1: "gemv", 2: "gemv_batch", 16: "gemm"}

    def configuration(arm: str, batch: int) -> str:
        loop = next(loops[least] for least in sorted(loops, reverse=True) if batch >= least)
        return loop if arm == "fused" else f"untuned, block_m={batch}"

    rows = tuple(
        r.model_copy(update={"configuration": configuration(r.arm, r.batch)})
        for r in b.profile.rows
        if r.operator != "layer"
    )
    layer = tuple(r for r in b.profile.rows if r.operator == "layer")
    b.profile = b.profile.model_copy(update={"rows": rows + layer})
    found = fit_theories(b, layers_of(b), "fused", BITS)
    assert [f.kernels for f in found] == [
        ("native planted", f"fused planted {loop}") for loop in ("gemv", "gemv_batch", "gemm")
    ]
    assert [f.batches for f in found] == [(1,), (2, 4, 8), (16, 32, 64, 128, 256)]
    assert [isinstance(f, Theories) for f in found] == [False, False, True]
    c = layers_of(b)[0]
    assert kernel_name(b, c, c.best16) == "native planted"
