"""Verdicts on planted speed-ups: signs, sentences, and what is left undecided."""

import pytest

from bench.analysis.verdict import outcome, sign, verdicts
from profiles.schema import Comparison, Implementation, Quality, Quantity, absent

WIN, LOSS, OPEN = (1.2, 1.1, 1.3), (0.8, 0.7, 0.9), (1.05, 0.9, 1.2)
NOTHING = absent("not planted")
NO_QUALITY = Quality(
    half_width_over_best16=None, between_process_spread_s=None, converged=None, reason="planted"
)


def kernel(arm: str, implementation: str, weight_format: str = "bf16") -> Implementation:
    return Implementation.model_validate(
        {"arm": arm, "implementation": implementation, "variant": "default"}
        | {"weight_format": weight_format}
    )


def speedup(planted: tuple[float, float, float] | None) -> Quantity:
    if planted is None:
        return NOTHING
    value, low, high = planted
    return Quantity(value=value, low=low, high=high, n=24)


def planted(
    batch: int,
    fused: tuple[float, float, float] | None,
    unfused: tuple[float, float, float] | None = None,
    best16: Implementation | None = None,
    format: str = "int8-ch",
) -> Comparison:
    return Comparison(
        operator="layer",
        n=None,
        k=None,
        batch=batch,
        format=format,
        activation="bf16",
        launch_mode="eager",
        cache_state="cold",
        kind="measured",
        best16=best16 or kernel("vendor", "torch"),
        fused=kernel("fused", "numba", format),
        unfused=kernel("unfused", "numba", format) if unfused else None,
        library=None,
        phi_exposed_s=NOTHING,
        phi_unfused_s=NOTHING,
        non_stream_time_s=NOTHING,
        cor_exposed=NOTHING,
        cor_unfused=NOTHING,
        speedup_fused=speedup(fused),
        speedup_unfused=speedup(unfused),
        speedup_library=NOTHING,
        quality_exposed=NO_QUALITY,
        quality_unfused=NO_QUALITY,
    )


def fused_sentence(*speedups: tuple[float, float, float] | None) -> tuple[str, str]:
    comparisons = [planted(4**i, s) for i, s in enumerate(speedups)]  # B = 1, 4, 16, 64
    (verdict,) = verdicts(comparisons)
    return verdict.sign, verdict.sentence.removeprefix("int8-ch fused ")


@pytest.mark.parametrize(
    ("speedups", "expected", "sentence"),
    [
        (
            (WIN, WIN, LOSS),
            "wins_below",
            "beats bf16 (vendor, torch) for B ≤ 4 and loses for B ≥ 16.",
        ),
        (
            (LOSS, WIN, WIN),
            "wins_above",
            "loses to bf16 (vendor, torch) for B ≤ 1 and wins for B ≥ 4.",
        ),
        (
            (WIN, WIN),
            "always",
            "beats bf16 (vendor, torch) at every measured batch, B = 1 to 4.",
        ),
        (
            (LOSS, LOSS, LOSS),
            "never",
            "loses to bf16 (vendor, torch) at every measured batch, B = 1 to 16.",
        ),
        (
            (WIN, LOSS, LOSS, WIN),
            "several crossings",
            "crosses bf16 (vendor, torch) 2 times: wins at B = 1, loses at B = 4, 16, "
            "wins at B = 64.",
        ),
        (
            (OPEN, None),
            "undecided",
            "is undecided against bf16 (vendor, torch) at B = 1, 4.",
        ),
        (
            (WIN, OPEN, LOSS),
            "wins_below",
            "beats bf16 (vendor, torch) for B ≤ 1 and loses for B ≥ 16; undecided at B = 4.",
        ),
        (
            (OPEN, WIN, LOSS, OPEN),
            "wins_below",
            "beats bf16 (vendor, torch) at B = 4 and loses at B = 16; undecided at B = 1, 64.",
        ),
        (
            (LOSS, OPEN, LOSS),
            "never",
            "loses to bf16 (vendor, torch) at every decided batch, B = 1 to 16; "
            "undecided at B = 4.",
        ),
        (
            (OPEN, LOSS, LOSS),
            "never",
            "loses to bf16 (vendor, torch) at every decided batch, B = 4 to 16; "
            "undecided at B = 1.",
        ),
        ((WIN,), "always", "beats bf16 (vendor, torch) at B = 1."),
    ],
)
def test_sign_and_sentence(speedups: tuple, expected: str, sentence: str) -> None:
    assert fused_sentence(*speedups) == (expected, sentence)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (WIN, "wins"),
        (LOSS, "loses"),
        (OPEN, "undecided"),
        ((1.1, 1.0, 1.2), "undecided"),
        ((0.9, 0.8, 1.0), "undecided"),
        (None, "undecided"),
    ],
)
def test_an_interval_that_holds_one_is_undecided(interval: tuple | None, expected: str) -> None:
    assert outcome(speedup(interval)) == expected


def test_a_value_without_an_interval_is_undecided() -> None:
    assert outcome(Quantity(value=9.0, reason="one block")) == "undecided"


def test_sign_skips_undecided_batches() -> None:
    assert sign(["undecided", "wins", "undecided", "wins"]) == "always"
    assert sign([]) == "undecided"


def test_batches_are_ordered_and_formats_and_paths_kept_apart() -> None:
    comparisons = [
        planted(16, LOSS, LOSS),
        planted(1, WIN, LOSS),
        planted(1, LOSS, format="int4-g128"),
    ]
    found = [(v.format, v.path, v.sign) for v in verdicts(comparisons)]
    assert found == [
        ("int8-ch", "fused", "wins_below"),
        ("int8-ch", "unfused", "never"),
        ("int4-g128", "fused", "never"),
    ]
    assert verdicts(comparisons)[0].outcomes == ((1, "wins"), (16, "loses"))


def test_every_baseline_that_was_fastest_is_named() -> None:
    comparisons = [planted(1, WIN, best16=kernel("native", "numba")), planted(4, WIN)]
    (verdict,) = verdicts(comparisons)
    assert "bf16 (native, numba) or bf16 (vendor, torch)" in verdict.sentence


def test_other_operators_are_left_out_and_doubles_refused() -> None:
    assert verdicts([planted(1, WIN)], operator="o_proj") == ()
    with pytest.raises(ValueError, match="more than once"):
        verdicts([planted(1, WIN), planted(1, WIN)])
