"""phi over bits, its derivative within one family, and COR over the batch, against planted ones."""

from __future__ import annotations

import pytest
from trap_profiles import OPERATORS, book, simple

from bench.analysis.phi_curve import bits_stored, cor_curves, family_of, phi_points, slopes
from kernels.formats import find_format

WEIGHTS = sum(o.n * o.k for o in OPERATORS)
FORMATS = ("int1-g128", "int4-g128", "int6-g128", "int8-g128", "int8-ch", "nf4-b64", "int4-g128-zp")


def by_format(arm, o, batch, weight_format):  # type: ignore[no-untyped-def]
    work = {"int4-g128": 0.10e-12, "int8-g128": 0.06e-12}.get(weight_format, 0.2e-12)
    return simple(phi=work)(arm, o, batch, weight_format)


def test_the_derivative_is_the_difference_quotient_within_one_family_only() -> None:
    b = book(by_format, (1,), formats=FORMATS, noise=0.0005)
    found = slopes(b)
    assert {(s.path, s.formats) for s in found} == {
        ("fused", ("int4-g128", "int8-g128")), ("unfused", ("int4-g128", "int8-g128")),
    }  # fmt: skip
    exposed = next(s for s in found if s.path == "fused")
    expected = (0.06e-12 - 0.10e-12) * WEIGHTS / 4
    assert exposed.bits == (4.125, 8.125)
    assert exposed.per_bit_s.value == pytest.approx(expected, rel=0.05)
    assert exposed.per_bit_s.low < expected < exposed.per_bit_s.high < 0


def test_every_format_is_a_point() -> None:
    b = book(by_format, (1,), formats=FORMATS)
    points = {p.format: p for p in phi_points(b)}
    assert set(points) == set(FORMATS)
    assert points["int4-g128-zp"].exposed.value == pytest.approx(0.2e-12 * WEIGHTS, rel=0.1)
    for name, point in points.items():
        stored = find_format(name).bits_stored
        bits = sum(stored(o.k) * o.n * o.k for o in OPERATORS) / WEIGHTS
        assert point.bits_stored == pytest.approx(bits), name


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("int4-g128", "symmetric integers, groups of 128"),
        ("int8-g128", "symmetric integers, groups of 128"),
        ("int8-ch", "symmetric integers, one scale per row"),
        ("int4-g128-zp", ""),
        ("int1-g128", ""),  # another quantizer
        ("int2-g128", ""),  # lanes share its words
        ("int6-g128", ""),  # two planes
        ("mxint8", ""),  # another kind of scale
        ("nf4-b64", ""),
        ("fp8_e4m3-b128", ""),
        ("bf16", ""),
        ("somebody-elses-3-bits", ""),
    ],
)
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family


def test_stored_bits_are_those_of_the_traffic_even_of_an_unknown_format() -> None:
    b = book(simple(), (1,), formats=("somebody-elses-3-bits",))
    assert bits_stored(b, "somebody-elses-3-bits") is None
    from profiles.schema import Traffic

    sizes = {o.name: o.n * o.k for o in OPERATORS}
    rows = tuple(
        r.model_copy(
            update={
                "traffic": Traffic(
                    bytes_read=sizes[r.operator] * 3 // 8 + 16, bytes_written=4, flops=0
                )
            }
        )
        if r.operator in sizes
        else r
        for r in b.profile.rows
    )
    b.profile = b.profile.model_copy(update={"rows": rows})
    b.__dict__.pop("rows", None)
    expected = 8 * sum(s * 3 // 8 + 16 for s in sizes.values()) / WEIGHTS
    assert bits_stored(b, "somebody-elses-3-bits") == pytest.approx(expected)


def test_cor_that_falls_and_cor_that_rises() -> None:
    falling = book(simple(t0_q=1e-9, phi=0.1e-12, row_s=0.05e-12), (1, 2, 4, 8))
    (fused, _) = cor_curves(falling)
    assert fused.path == "fused"
    assert fused.verdict == "falls at every step"
    for batch, q in fused.points:
        assert q.value == pytest.approx(0.1 / (0.2 + 0.05 * batch), rel=0.03)
    rising = book(simple(t0_q=1e-9), (8, 16, 32, 64))  # paid again by every tile of 16 rows
    (fused, _) = cor_curves(rising)
    assert [s.direction for s in fused.steps][1:] == ["rises", "rises"]
    assert fused.steps[1].change.value == pytest.approx(0.05 / 0.2, rel=0.1)
    assert "rises from B = 16 to 32, 32 to 64" in fused.verdict


def test_a_flat_cor_is_no_break_of_the_theorem() -> None:
    (fused, _) = cor_curves(book(simple(t0_q=1e-9), (1, 2, 4, 8)))
    assert "rises" not in fused.verdict.replace("never rises", "")
