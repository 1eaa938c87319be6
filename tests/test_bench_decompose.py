"""Planted tables: what went in must come out, by name, by sign and by pair."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from bench.analysis.arms import ArmKey, Problem, read_arms
from bench.analysis.decompose import ArmFacts, decompose, fresh_blocks, read_pilot
from bench.analysis.verdict import verdicts
from profiles.schema import (
    SAMPLE_COLUMNS,
    ArmRow,
    Comparison,
    Operator,
    Protocol,
    Traffic,
    Workload,
    samples_schema,
)

FORMAT = "int4-g128"
BLOCKS, PROCESSES = 10, 3  # fresh blocks per process

# Microseconds of one call of the operator "up"; "down" takes twice as long.
TIMES_US = {
    ("native", "numba", "default", "bf16"): 110.0,
    ("vendor", "torch", "default", "bf16"): 100.0,
    ("vendor", "torch", "default", "fp32"): 90.0,  # faster, but not a 16-bit arm
    ("vendor", "torch", "int4pack", FORMAT): 45.0,
    ("fused", "numba", "gemv", FORMAT): 60.0,
    ("bypass", "numba", "gemv", FORMAT): 48.0,
    ("stream", "numba", "gemv", FORMAT): 30.0,
    ("fused", "numba", "gemm", FORMAT): 80.0,
    ("bypass", "numba", "gemm", FORMAT): 20.0,
    ("unfused", "numba", "default", FORMAT): 160.0,
}


def workload(counts: tuple[int, int] = (1, 1)) -> Workload:
    return Workload(
        model="tiny",
        layers=10,
        operators=(
            Operator(name="up", n=64, k=128, count=counts[0]),
            Operator(name="down", n=128, k=64, count=counts[1]),
        ),
        activation="bf16",
        formats=(FORMAT,),
        batches=(1,),
        launch_mode="eager",
        cache_state="cold",
        rotation_bytes=0,
        seeds={},
    )


PROTOCOL = Protocol(
    pilot_blocks=12,
    fresh_blocks_minimum=20,
    fresh_blocks_maximum=200,
    processes=PROCESSES,
    target_half_width=0.05,
    confidence=0.95,
    sample_minimum_s=0.001,
)


def exact(time_us: float, process: int, block: int, arm: tuple) -> float:
    return time_us


def samples(
    law: Callable[..., float] = exact,
    times: dict = TIMES_US,
    operators: tuple[str, ...] = ("up", "down"),
    phase: str = "fresh",
    blocks: int = BLOCKS,
    skip: Callable[..., bool] = lambda **_: False,
    flags: str = "",
) -> pa.Table:
    rows = []
    for process in range(PROCESSES):
        for block in range(blocks):
            for operator in operators:
                for position, (arm, time_us) in enumerate(times.items()):
                    if skip(process=process, block=block, operator=operator, arm=arm):
                        continue
                    scale = 2 if operator == "down" else 1
                    row = dict.fromkeys((c.name for c in SAMPLE_COLUMNS), None)
                    names = ("arm", "implementation", "variant", "weight_format")
                    row |= dict(zip(names, arm, strict=True))
                    row |= {"process": process, "block": block, "position": position}
                    row |= {"phase": phase, "operator": operator, "n": 1, "k": 1, "batch": 1}
                    row |= {"format": FORMAT, "launch_mode": "eager", "cache_state": "cold"}
                    row |= {"time_s": scale * law(time_us, process, block, arm) * 1e-6}
                    row |= {"calls": 1, "started_s": 0.0, "flags": flags}
                    rows.append(row)
    return pa.Table.from_pylist(rows, schema=samples_schema())


def problem(operator: str) -> Problem:
    return Problem(operator, 1, FORMAT, "eager", "cold")


def by_operator(comparisons: tuple[Comparison, ...]) -> dict[str, Comparison]:
    return {c.operator: c for c in comparisons}


def find(rows: tuple[ArmRow, ...], operator: str, arm: str, variant: str) -> ArmRow:
    (row,) = (r for r in rows if (r.operator, r.arm, r.variant) == (operator, arm, variant))
    return row


def test_planted_times_come_out() -> None:
    rows, comparisons = decompose(samples(), workload(), PROTOCOL)
    up = by_operator(comparisons)["up"]
    assert up.phi_exposed_s.value == pytest.approx(12e-6)
    assert up.phi_unfused_s.value == pytest.approx(60e-6)
    assert up.non_stream_time_s.value == pytest.approx(30e-6)
    assert up.cor_exposed.value == pytest.approx(12 / 48)
    assert up.cor_unfused.value == pytest.approx(60 / 100)
    assert up.speedup_fused.value == pytest.approx(100 / 60)
    assert up.speedup_unfused.value == pytest.approx(100 / 160)
    assert up.speedup_library.value == pytest.approx(100 / 45)
    assert up.phi_exposed_s.n == 30
    assert (up.n, up.k, up.activation) == (64, 128, "bf16")
    assert find(rows, "up", "fused", "gemv").time_s.value == pytest.approx(60e-6)
    assert find(rows, "up", "fused", "gemv").blocks == 30


def test_best16_is_the_faster_16_bit_arm_and_named() -> None:
    _, comparisons = decompose(samples(), workload(), PROTOCOL)
    best = by_operator(comparisons)["up"].best16
    assert best is not None
    assert (best.arm, best.implementation, best.weight_format) == ("vendor", "torch", "bf16")
    times = TIMES_US | {("native", "numba", "default", "bf16"): 99.0}
    _, comparisons = decompose(samples(times=times), workload(), PROTOCOL)
    best = by_operator(comparisons)["up"].best16
    assert best is not None
    assert best.arm == "native"


def test_the_headline_is_the_fastest_fused_kernel_with_its_own_bypass() -> None:
    times = TIMES_US | {("fused", "numba", "gemm", FORMAT): 50.0}
    _, comparisons = decompose(samples(times=times), workload(), PROTOCOL)
    up = by_operator(comparisons)["up"]
    assert up.fused is not None
    assert up.fused.variant == "gemm"
    assert up.phi_exposed_s.value == pytest.approx(30e-6)  # its own bypass, not the other's
    assert "no samples of fused and stream" in up.non_stream_time_s.reason


def test_the_layer_is_the_counted_sum_over_operators() -> None:
    rows, comparisons = decompose(samples(), workload((3, 2)), PROTOCOL)
    layer = by_operator(comparisons)["layer"]
    factor = 3 * 1 + 2 * 2
    assert layer.phi_exposed_s.value == pytest.approx(factor * 12e-6)
    assert layer.speedup_fused.value == pytest.approx(100 / 60)
    assert (layer.n, layer.k) == (None, None)
    assert find(rows, "layer", "fused", "gemv").time_s.value == pytest.approx(factor * 60e-6)
    assert layer.extrapolated is not None
    assert layer.extrapolated.layers == 10
    assert layer.extrapolated.phi_exposed_s.value == pytest.approx(10 * factor * 12e-6)
    assert layer.extrapolated.best16_s.value == pytest.approx(10 * factor * 100e-6)
    assert by_operator(comparisons)["up"].extrapolated is None


def test_the_layer_takes_the_fastest_variant_of_each_operator() -> None:
    up = samples(operators=("up",))
    swapped = TIMES_US | {
        ("fused", "numba", "gemm", FORMAT): 50.0,
        ("bypass", "numba", "gemm", FORMAT): 40.0,
    }
    table = pa.concat_tables([up, samples(times=swapped, operators=("down",))])
    _, comparisons = decompose(table, workload(), PROTOCOL)
    layer = by_operator(comparisons)["layer"]
    assert layer.fused is not None
    assert layer.fused.variant == "per operator"
    assert layer.phi_exposed_s.value == pytest.approx((60 - 48 + 2 * (50 - 40)) * 1e-6)


def test_a_layer_needs_every_operator() -> None:
    _, comparisons = decompose(samples(operators=("up",)), workload(), PROTOCOL)
    assert [c.operator for c in comparisons] == ["up"]


def test_only_blocks_that_have_both_arms_are_paired() -> None:
    fused = ("fused", "numba", "gemv", FORMAT)

    def missing(process: int, block: int, operator: str, arm: tuple) -> bool:
        return arm == fused and operator == "up" and block < 3

    def drift(time_us: float, process: int, block: int, arm: tuple) -> float:
        return time_us + 1000 * block  # the same for both arms of a block, and only there

    one_kernel = {arm: us for arm, us in TIMES_US.items() if arm[2] != "gemm"}
    table = samples(drift, one_kernel, skip=missing)
    rows, comparisons = decompose(table, workload(), PROTOCOL)
    found = by_operator(comparisons)
    for operator, phi_us in (("up", 12), ("layer", 12 + 24)):
        quantity = found[operator].phi_exposed_s
        for end in (quantity.low, quantity.value, quantity.high):
            assert end == pytest.approx(phi_us * 1e-6)
    assert found["up"].phi_exposed_s.n == 21
    assert found["down"].phi_exposed_s.n == 30
    assert found["layer"].phi_exposed_s.n == 21
    assert find(rows, "up", "bypass", "gemv").blocks == 30


def test_pairing_is_within_blocks_under_drift() -> None:
    """A clock that wanders by 50 % does not touch a ratio, and widens no paired interval."""

    def drift(time_us: float, process: int, block: int, arm: tuple) -> float:
        return time_us * (1 + 0.5 * block / BLOCKS + process)

    _, comparisons = decompose(samples(drift), workload(), PROTOCOL)
    up = by_operator(comparisons)["up"]
    for end in (up.speedup_fused.low, up.speedup_fused.value, up.speedup_fused.high):
        assert end == pytest.approx(100 / 60)
    assert up.cor_exposed.high == pytest.approx(12 / 48)


def test_convergence_is_measured_against_best16() -> None:
    def noise(size_us: float) -> Callable[..., float]:
        rng = np.random.default_rng(4)

        def law(time_us: float, process: int, block: int, arm: tuple) -> float:
            return time_us + (
                rng.normal(0, size_us) if arm[:3] == ("fused", "numba", "gemv") else 0
            )

        return law

    rows, comparisons = decompose(samples(noise(1.0)), workload(), PROTOCOL)
    quality = by_operator(comparisons)["up"].quality_exposed
    assert quality.converged is True
    assert quality.half_width_over_best16 == pytest.approx(0.0045, rel=0.5)  # 2.46/sqrt(30)/100
    assert find(rows, "up", "bypass", "gemv").converged is True
    assert find(rows, "up", "bypass", "gemm").converged is None
    rows, comparisons = decompose(samples(noise(14.0)), workload(), PROTOCOL)
    assert by_operator(comparisons)["up"].quality_exposed.converged is False
    assert by_operator(comparisons)["up"].converged is False
    assert find(rows, "up", "fused", "gemv").converged is False
    assert find(rows, "up", "unfused", "default").converged is True


def test_spread_between_processes_is_reported_beside_the_interval() -> None:
    def shifted(time_us: float, process: int, block: int, arm: tuple) -> float:
        return time_us + (4.0 * process if arm[0] == "fused" else 0.0)

    _, comparisons = decompose(samples(shifted), workload(), PROTOCOL)
    quality = by_operator(comparisons)["up"].quality_exposed
    assert quality.between_process_spread_s == pytest.approx(4e-6)
    assert quality.flags == ("processes-differ",)  # by far more than their blocks


def test_trends_within_processes_and_short_runs_are_flagged() -> None:
    def trend(time_us: float, process: int, block: int, arm: tuple) -> float:
        return time_us + (block if arm[0] == "fused" else 0.0)

    _, comparisons = decompose(samples(trend), workload(), PROTOCOL)
    up = by_operator(comparisons)["up"]
    assert up.quality_exposed.flags == (
        "autocorrelated", "shifted", "autocorrelated-run", "shifted-run",
    )  # fmt: skip
    assert up.flags == (
        "autocorrelated", "shifted", "autocorrelated-run", "shifted-run",
    )  # fmt: skip
    _, comparisons = decompose(samples(blocks=3), workload(), PROTOCOL)
    assert by_operator(comparisons)["up"].quality_exposed.flags == ("short",)


def test_pilot_blocks_make_no_estimates() -> None:
    slow = {arm: 1000 * time_us for arm, time_us in TIMES_US.items()}
    table = pa.concat_tables([samples(times=slow, phase="pilot"), samples()])
    _, comparisons = decompose(table, workload(), PROTOCOL)
    assert by_operator(comparisons)["up"].phi_exposed_s.value == pytest.approx(12e-6)


@pytest.mark.parametrize("noisy_arm", ["unfused", "bypass"])
def test_fresh_blocks_follow_the_noisier_phi(noisy_arm: str) -> None:
    rng = np.random.default_rng(8)

    def noisy(time_us: float, process: int, block: int, arm: tuple) -> float:
        return time_us + (rng.uniform(0, 80) if arm[0] == noisy_arm else 0)

    pilot = samples(noisy, phase="pilot", blocks=5)
    needed = fresh_blocks(read_pilot(pilot, workload()), PROTOCOL)
    assert set(needed) == {problem("up"), problem("down"), problem("layer")}
    assert needed[problem("up")] > 60  # ideal: (1.96 * 40 / 5)^2 = 246
    quiet = read_pilot(samples(phase="pilot"), workload())
    assert set(fresh_blocks(quiet, PROTOCOL).values()) == {20}


def test_a_failed_arm_has_a_row_without_a_time_and_no_comparison() -> None:
    fused = ArmKey(problem("up"), "fused", "numba", "gemv", FORMAT)
    bypass = ArmKey(problem("up"), "bypass", "numba", "gemv", FORMAT)
    crashed = ArmKey(problem("up"), "fused", "triton", "default", FORMAT)
    facts = {
        fused: ArmFacts(failure="wrong numbers"),
        bypass: ArmFacts(error_vs_reference=0.001),
        crashed: ArmFacts(failure="crashed with signal 11"),
    }
    rows, comparisons = decompose(samples(), workload(), PROTOCOL, facts)
    row = find(rows, "up", "fused", "gemv")
    assert row.time_s.value is None
    assert row.time_s.reason == "failed: wrong numbers"
    assert row.failure == "wrong numbers"
    assert find(rows, "up", "fused", "default").failure == "crashed with signal 11"
    assert find(rows, "up", "bypass", "gemv").error_vs_reference == 0.001
    up = by_operator(comparisons)["up"]
    assert up.fused is not None
    assert up.fused.variant == "gemm"


def test_bandwidth_is_a_fraction_of_the_stream_arm() -> None:
    facts = {
        ArmKey(problem("up"), "stream", "numba", "gemv", FORMAT): ArmFacts(
            traffic=Traffic(bytes_read=900, bytes_written=100, flops=0)
        ),
        ArmKey(problem("up"), "fused", "numba", "gemv", FORMAT): ArmFacts(
            traffic=Traffic(bytes_read=1000, bytes_written=200, flops=1)
        ),
    }
    rows, _ = decompose(samples(), workload(), PROTOCOL, facts)
    fraction = find(rows, "up", "fused", "gemv").stream_bandwidth_fraction
    assert fraction.value == pytest.approx((1200 / 60) / (1000 / 30))
    assert find(rows, "up", "stream", "gemv").stream_bandwidth_fraction.value == 1
    assert "not known" in find(rows, "up", "bypass", "gemv").stream_bandwidth_fraction.reason


def test_flags_of_samples_reach_the_row() -> None:
    rows, _ = decompose(samples(flags="stall fault"), workload(), PROTOCOL)
    assert find(rows, "up", "fused", "gemv").flags == ("fault", "stall")


def test_no_arm_to_compare_with_is_a_reason_and_no_number() -> None:
    only = {arm: time_us for arm, time_us in TIMES_US.items() if arm[0] in ("fused", "bypass")}
    _, comparisons = decompose(samples(times=only), workload(), PROTOCOL)
    up = by_operator(comparisons)["up"]
    assert up.best16 is None
    assert up.phi_exposed_s.value == pytest.approx(12e-6)
    assert up.phi_unfused_s.value is None
    assert up.quality_exposed.converged is None
    assert "no 16-bit arm" in up.quality_exposed.reason


def test_every_quantity_carries_the_kind() -> None:
    rows, comparisons = decompose(samples(), workload(), PROTOCOL, kind="simulated")
    assert {r.time_s.kind for r in rows} == {"simulated"}
    assert {c.phi_exposed_s.kind for c in comparisons} == {"simulated"}


def test_ambiguous_and_impossible_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="two samples in one block"):
        read_arms(pa.concat_tables([samples(), samples()]), "fresh")
    with pytest.raises(ValueError, match="not positive and finite"):
        read_arms(samples(lambda *_: 0.0), "fresh")


def test_verdict_reads_a_decomposed_table() -> None:
    _, comparisons = decompose(samples(), workload(), PROTOCOL)
    sentences = [v.sentence for v in verdicts(comparisons)]
    assert sentences == [
        "int4-g128 fused beats bf16 (vendor, torch) at B = 1.",
        "int4-g128 unfused loses to bf16 (vendor, torch) at B = 1.",
    ]


LOWP_US = {
    ("lowp", "triton", "dot", FORMAT): 30.0,
    ("lowp", "triton+triton", "dot", FORMAT): 36.0,
    ("lowp", "torch", "int_mm", FORMAT): 28.0,  # the faster product, and the slower whole
    ("lowp", "triton+torch", "int_mm", FORMAT): 44.0,
    ("upcast", "triton", "gemv", "bf16"): 125.0,
    ("upcast", "torch", "two-launches", "bf16"): 400.0,
}


def test_lowp_is_what_quantizes_its_activations_and_its_product_the_same_kernel() -> None:
    """36 us, 6 of them the quantization; the faster product of the library has no part in it."""
    _, comparisons = decompose(samples(times=TIMES_US | LOWP_US), workload(), PROTOCOL)
    for operator, factor in (("up", 1), ("layer", 3)):
        found = by_operator(comparisons)[operator]
        assert found.lowp is not None
        assert found.lowp_product is not None
        assert found.lowp.implementation == "triton+triton"
        assert found.lowp_product.implementation == "triton"
        assert found.quantization_s.value == pytest.approx(6e-6 * factor)
        assert found.speedup_lowp.value == pytest.approx(100 / 36)
        assert found.upcast is not None
        assert found.upcast.implementation == "triton"
        assert found.speedup_upcast.value == pytest.approx(100 / 125)
        assert found.best16 is not None
        assert found.best16.arm == "vendor"


def test_without_these_arms_there_is_a_reason_and_no_number() -> None:
    _, comparisons = decompose(samples(), workload(), PROTOCOL)
    up = by_operator(comparisons)["up"]
    assert (up.lowp, up.upcast, up.quantization_s.value, up.speedup_lowp.value) == (None,) * 4
    assert up.speedup_upcast.reason
