"""Errors of chains against chains by hand, the law that they follow, and the file beside a profile."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import bench.fidelity
from bench.analysis.compounding import UNRELATED, compounding, error_at, error_of
from bench.measure import fidelity as measuring
from bench.measure.fidelity import (
    SHAPE,
    chain,
    chain_errors,
    depths,
    operator_sizes,
    quantize_rows,
    random_matrix,
    row_extremes,
)
from kernels.cpu.product import fused_product
from kernels.formats import WeightFormat, find_format
from kernels.packing import Weights, quantize, random_activations
from profiles.fidelity import (
    ChainShape,
    Distribution,
    Fidelity,
    FidelityRow,
    fidelity_of,
    load_fidelity,
)
from profiles.reader import ProfileError

SMALL = ChainShape(
    hidden=128, intermediate=256, heads=2, kv_heads=1, layers=2, hops=4, batch=2, activation="bf16"
)


def rows_of(errors: dict[int, float], seeds: int = 6) -> list[FidelityRow]:
    return [
        FidelityRow(
            format="int4-g128", distribution="gaussian", implementation="numba", layers=d,
            hops=d // 8, errors=tuple(e * (1 + 0.01 * (i - 2.5)) for i in range(seeds)),
        )
        for d, e in errors.items()
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["int4-g128", "fp8_e4m3-ch"])
def test_the_product_is_that_of_the_fused_kernel(name: str) -> None:
    """Against float64 on the dequantized weights; bf16 keeps 8 bits."""
    rng = np.random.default_rng(3)
    weights = quantize(rng.standard_normal((48, 256)), find_format(name), "bf16")
    x = random_activations(4, 256, "bf16", seed=1)
    product, implementation = fused_product(weights, 4)
    exact = x.astype(np.float64) @ weights.values.T
    assert implementation == "numba"
    assert np.abs(product(x) - exact).max() < 2**-8 * np.abs(exact).max()
    again = product(np.zeros_like(x))
    assert (again == 0).all()


def test_a_format_without_a_cpu_kernel_is_multiplied_by_the_reference() -> None:
    unknown = WeightFormat("int4-g32", 4, "W4A16", group_size=32)
    rng = np.random.default_rng(3)
    weights = quantize(rng.standard_normal((16, 96)), unknown, "bf16")
    x = random_activations(2, 96, "bf16", seed=1)
    product, implementation = fused_product(weights, 2)
    exact = x.astype(np.float64) @ weights.values.T
    assert implementation == "numpy"
    assert np.abs(product(x) - exact).max() < 2**-8 * np.abs(exact).max()


def test_a_chain_is_a_decoder_layer_at_a_context_of_one_token() -> None:
    """Against the same layer in float64, written once more."""
    matrices = [
        [
            random_matrix(n, k, "gaussian", (layer, i))
            for i, (n, k) in enumerate(operator_sizes(SMALL))
        ]
        for layer in range(SMALL.layers)
    ]
    products = [[lambda x, w=w: x @ w.T for w in layer] for layer in matrices]
    x = np.random.default_rng(0).standard_normal((2, 128)).astype(np.float32)
    found = list(chain(products, x, SMALL))
    assert len(found) == SMALL.layers * SMALL.hops
    y = x.astype(np.float64)

    def norm(z: np.ndarray) -> np.ndarray:
        return z / np.sqrt((z**2).mean(axis=1, keepdims=True))

    for hop in range(2):
        for depth, (qkv, o, gate_up, down) in enumerate(matrices):
            v = (norm(y) @ qkv.T)[:, -64:]  # one key-value head of 64
            y = y + np.concatenate([v, v], axis=1) @ o.T  # shared by two heads
            gate, up = np.split(norm(y) @ gate_up.T, 2, axis=1)
            y = y + (gate / (1 + np.exp(-gate)) * up) @ down.T
            error = np.abs(found[hop * SMALL.layers + depth] - y).max() / np.abs(y).max()
            assert error < 0.02, (hop, depth)  # activations are rounded to bf16
        y = norm(y)


def test_errors_are_reproducible_fall_with_bits_and_start_at_the_formats_own() -> None:
    four, makers = chain_errors(find_format("int4-g128"), "gaussian", SMALL, 1)
    assert makers == "numba"
    assert chain_errors(find_format("int4-g128"), "gaussian", SMALL, 1)[0] == four
    assert chain_errors(find_format("int4-g128"), "gaussian", SMALL, 2)[0] != four
    eight, _ = chain_errors(find_format("int8-g128"), "gaussian", SMALL, 1)
    assert tuple(four) == depths(SMALL) == (1, 2, 4, 8)
    for depth in four:
        assert 8 < four[depth] / eight[depth] < 32  # 4 bits fewer: 16 times the step
    heavy, _ = chain_errors(find_format("int4-g128"), "heavy-tailed", SMALL, 1)
    assert heavy[1] > 1.3 * four[1]


def test_weights_have_the_size_that_keeps_activations() -> None:
    for distribution in measuring.DISTRIBUTIONS:
        w = random_matrix(512, 1024, distribution, (1, 2))
        assert w.std() == pytest.approx(0.02 * 2, rel=0.1)
    normal, heavy = (random_matrix(512, 1024, d, (1,)) for d in measuring.DISTRIBUTIONS)
    assert np.abs(heavy).max() > 3 * np.abs(normal).max()


@pytest.mark.parametrize("name", ["int8-ch", "int4-ch-zp", "fp8_e4m3-ch"])
@pytest.mark.parametrize("distribution", measuring.DISTRIBUTIONS)
def test_scales_per_row_are_those_of_rows_as_wide_as_a_models(
    name: str, distribution: Distribution
) -> None:
    """Against matrices that really have so many columns, of which a part is kept: scales and zero points."""
    weight_format, n, k, wide = find_format(name), 1500, 256, 2048
    full = random_matrix(n, wide, distribution, (5,)) * np.float32(math.sqrt(wide / k))
    theirs = quantize(full, weight_format, "bf16")
    w = random_matrix(n, k, distribution, (6,))
    others = row_extremes(n, k, wide - k, distribution, (6,))
    ours = quantize_rows(w, others, weight_format, SMALL)
    narrow = quantize(w, weight_format, "bf16")
    shares = (0.1, 0.25, 0.5, 0.75, 0.9)
    wanted = np.quantile(theirs.scales, shares)
    np.testing.assert_allclose(np.quantile(ours.scales, shares), wanted, rtol=0.08)
    assert np.median(narrow.scales) < 0.85 * wanted[2]
    assert ours.shape == (n, k)
    step = np.abs(ours.values - w).max(axis=1) / ours.scales[:, 0]
    assert step.max() < (
        20 if name.startswith("fp8") else 1
    )  # of codes that were kept with their row
    if ours.zeros is not None:
        assert theirs.zeros is not None
        zeros = (np.quantile(z.zeros, shares) for z in (ours, theirs))
        np.testing.assert_allclose(*zeros, atol=1)


def test_groups_have_the_scales_of_their_own_weights() -> None:
    w = random_matrix(8, 256, "gaussian", (6,))
    others = np.full((8, 2), 1e6, np.float32)
    found = quantize_rows(w, others, find_format("int4-g128"), SMALL)
    np.testing.assert_array_equal(
        found.scales, quantize(w, find_format("int4-g128"), "bf16").scales
    )


def test_chains_are_made_of_such_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of the largest of m normal weights, in standard deviations of the matrix beside them."""
    found = []

    def noted(w: np.ndarray, others: np.ndarray, *rest: Any) -> Weights:
        found.append(np.median(np.abs(others)) / w.std())
        return quantize_rows(w, others, *rest)

    monkeypatch.setattr(measuring, "quantize_rows", noted)
    chain_errors(find_format("int8-ch"), "gaussian", SMALL, 1)
    wanted = [
        NormalDist().inv_cdf(0.5 ** (1 / (width - k)))
        for width, (_, k) in zip((4096, 4096, 4096, 14336), operator_sizes(SMALL), strict=True)
    ]
    assert found == pytest.approx(wanted * SMALL.layers, rel=0.02)


def test_depths_double_within_a_hop_and_then_over_hops() -> None:
    assert depths(SHAPE) == (1, 2, 4, 8, 16, 32, 64)


def test_laws_are_found_where_they_were_planted() -> None:
    walk = compounding(rows_of({d: 0.01 * d**0.5 for d in (1, 2, 4, 8, 16, 32, 64)}))
    assert (walk.form, walk.saturates) == ("power", None)
    assert (walk.first, walk.rate) == pytest.approx((0.01, 0.5))
    grows = compounding(
        rows_of({d: 0.001 * math.exp(0.05 * (d - 1)) for d in (1, 2, 4, 8, 16, 32, 64)})
    )
    assert grows.form == "exponential"
    assert (grows.first, grows.rate) == pytest.approx((0.001, 0.05))


def test_depths_at_which_nothing_is_left_to_grow_are_left_out() -> None:
    planted = {d: min(0.2 * d**0.5, UNRELATED) for d in (1, 2, 4, 8, 16, 32, 64)}
    law = compounding(rows_of(planted))
    assert law.depths == (1, 2, 4, 8)
    assert law.saturates == 16
    assert law.rate == pytest.approx(0.5)
    assert compounding(rows_of({1: 0.9, 2: 1.2, 4: 1.4})).words == "saturated"


def test_errors_of_hops_are_the_median_over_seeds() -> None:
    fidelity = Fidelity(
        created=datetime(2026, 1, 31, tzinfo=UTC), kind="measured", shape=SHAPE,
        seeds=(1, 2, 3, 4, 5, 6), kernels_sha256="0" * 64,
        rows=tuple(rows_of({1: 0.1, 8: 0.2, 16: 0.3, 32: 0.4})),
    )  # fmt: skip
    found = error_at(fidelity, "int4-g128", hops=3)
    assert found is not None
    row, error = found
    assert (row.layers, row.hops) == (16, 2)
    assert error == error_of(row, "measured")
    assert error.value == pytest.approx(0.3)
    assert 0.3 * 0.975 <= (error.low or 0) < 0.3 < (error.high or 1) <= 0.3 * 1.025
    assert error_at(fidelity, "nf4-b64", 3) is None


def test_the_command_writes_beside_the_profile_what_the_reader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planted_profile import write_small

    write_small(tmp_path)
    monkeypatch.setattr(measuring, "SHAPE", SMALL)
    monkeypatch.setattr(bench.fidelity, "SHAPE", SMALL)
    monkeypatch.setattr(bench.fidelity, "SEEDS", (1,))
    monkeypatch.setattr(
        bench.fidelity, "measure", lambda f, report: measuring.measure(f, SMALL, (1,), report)
    )
    app = bench.fidelity.typer.Typer()
    app.command()(bench.fidelity.main)
    result = CliRunner().invoke(app, [str(tmp_path / "run.json")])
    assert result.exit_code == 0, result.output
    found = load_fidelity(fidelity_of(tmp_path / "run.json"))
    assert {(r.format, r.distribution) for r in found.rows} == {
        ("int4-g128", d) for d in measuring.DISTRIBUTIONS
    }
    expected, _ = chain_errors(find_format("int4-g128"), "gaussian", SMALL, 1)
    gaussian = {r.layers: r.errors[0] for r in found.rows if r.distribution == "gaussian"}
    assert gaussian == expected
    missing = CliRunner().invoke(app, [str(tmp_path / "nothing.json")])
    assert missing.exit_code == 2
    assert "there is no file" in missing.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON|JSON"),
        ("{}", "fidelity_version|created|Field required|kind"),
        ('{"fidelity_version": 2}', "fidelity file"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.fidelity.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=words):
        load_fidelity(path)
