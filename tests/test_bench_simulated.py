"""The simulated device: what is planted comes out, the same each time; and what is wrong is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted_truth
import pytest
from typer.testing import CliRunner

from bench import dequant
from bench.measure import run as run_module
from bench.measure.devices import DeviceError, Prepared, Problem, find_device, open_device
from bench.measure.devices.seeded import seeded
from bench.measure.devices.simulated import BOARDS, NOISE, Scenario, SimulatedDevice
from bench.measure.session import Session
from kernels.formats import find_format
from kernels.kernel import Arm
from profiles.reader import ProfileError, load_profile, phi
from profiles.schema import Operator, Profile, quantities

INT4 = find_format("int4-g128")
N = K = 4096
PACKED_BYTES = N * K // 2 + N * K // 128 * 2  # nibbles, and one fp16 scale per 128 of them
MATRIX_BYTES = 2 * N * K
X_BYTES, Y_BYTES = 2 * K, 2 * N  # batch 1
PHI_S = N * K * 0.06e-12  # 0.09 ps of fused less 0.03 ps of bypass, per weight
SEED = (7, 1, 1, 5, 1)  # run, process, batch, block, fresh
ROOT = Path(__file__).parent.parent


def device(**scenario: object) -> SimulatedDevice:
    return SimulatedDevice(BOARDS["h100"], Scenario(**scenario))  # type: ignore[arg-type]


def prepared(on: SimulatedDevice, arm: Arm, batch: int = 1, n: int = N) -> Prepared:
    problem = Problem("up", n, K, batch, INT4, "fp16")
    (kernel,) = (k for k in on.kernels(problem) if k.arm == arm)
    return on.prepare(problem, kernel)


def times(
    on: SimulatedDevice, arm: Arm, seeds: list[tuple[int, ...]], repeats: int = 100
) -> np.ndarray:
    found = []
    for seed in seeds:
        on.start_block(seed, 0.0)
        found.append(on.sample(prepared(on, arm), repeats, "graph").time_s)
    return np.array(found)


def blocks(count: int, run: int = 0, process: int = 0) -> list[tuple[int, ...]]:
    return [(run, process, 1, block, 1) for block in range(count)]


# Planted times, by hand. ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "moved_bytes", "share", "flops", "work_ps"),
    [
        ("stream", PACKED_BYTES + 4 * N, 0.90, 0, 0.0),
        ("bypass", PACKED_BYTES + X_BYTES + Y_BYTES, 0.90, 2 * N * K, 0.03),
        ("fused", PACKED_BYTES + X_BYTES + Y_BYTES, 0.90, 2 * N * K, 0.09),
        ("vendor", MATRIX_BYTES + X_BYTES + Y_BYTES, 0.92, 2 * N * K, 0.0),
        ("dequantize", PACKED_BYTES + MATRIX_BYTES, 0.90, 0, 0.06),
    ],
)
def test_true_times_are_the_sum_of_their_planted_parts(
    arm: Arm, moved_bytes: int, share: float, flops: int, work_ps: float
) -> None:
    expected = 2e-6 + moved_bytes / (3350e9 * share) + flops / 800e12 + N * K * work_ps * 1e-12
    assert times(device(), arm, [SEED])[0] == pytest.approx(expected, rel=1e-12)


def test_phi_is_planted_per_row_tile() -> None:
    quiet = device()
    for batch, tiles in ((1, 1), (16, 1), (17, 2), (256, 16)):
        fused, bypass = (
            quiet.estimate_s(prepared(quiet, arm, batch)) for arm in ("fused", "bypass")
        )
        assert fused - bypass == pytest.approx(tiles * PHI_S)


def test_eager_launches_cost_the_host_unless_the_kernel_is_longer() -> None:
    quiet = device()
    short, long = prepared(quiet, "fused"), prepared(quiet, "fused", n=16 * N)
    for one, graph_s, eager_s in ((short, 6.43e-6, 8e-6), (long, 72.8e-6, 72.8e-6)):
        assert quiet.sample(one, 10, "graph").time_s == pytest.approx(graph_s, rel=0.01)
        assert quiet.sample(one, 10, "eager").time_s == pytest.approx(eager_s, rel=0.01)


def test_too_few_copies_are_found_in_the_cache() -> None:
    quiet = device()
    fused = prepared(quiet, "fused")
    cold_s = quiet.sample(fused, 10, "graph").time_s
    assert fused.copy_bytes == PACKED_BYTES
    enough = 2 * quiet.cache_bytes // PACKED_BYTES + 2
    quiet.rotate({fused.pool: enough})
    assert quiet.sample(fused, 10, "graph").time_s == cold_s
    half = enough // 2
    quiet.rotate({fused.pool: half})
    between = quiet.sample(fused, 10, "graph").time_s
    quiet.rotate({fused.pool: 1})
    saved = PACKED_BYTES * (1 / 3350e9 - 1 / 9000e9) / 0.90
    assert cold_s - quiet.sample(fused, 10, "graph").time_s == pytest.approx(saved)
    hit = 1 - (half - 1) * PACKED_BYTES / (2 * quiet.cache_bytes)
    assert cold_s - between == pytest.approx(hit * saved)


# What happens to them. -----------------------------------------------------------------------------


def test_the_clock_moves_by_what_samples_take() -> None:
    noisy = device(noise=0.1, stall_share=0.3)
    noisy.start_block(SEED, 12.5)
    assert noisy.now_s() == 12.5
    for _ in range(50):
        before = noisy.now_s()
        sample = noisy.sample(prepared(noisy, "fused"), 10, "graph")
        assert sample.started_s == before
        assert noisy.now_s() == pytest.approx(before + 10 * sample.time_s)
        assert noisy.now_s() > before


def test_a_block_gives_the_same_samples_whatever_came_before() -> None:
    scenario = {
        "noise": 0.02, "jitter_s": 1e-5, "block_noise": 0.01, "drift": 0.05, "warmup": 0.1,
        "boost": 0.1, "throttle": 0.3, "throttle_s": 0.3, "stall_share": 0.2, "arm_noise": 0.02,
        "autocorrelation": 0.5, "shift": 0.1, "shift_block": 3,
    }  # fmt: skip
    arms: tuple[Arm, ...] = ("fused", "native", "bypass")

    def block(on: SimulatedDevice, seed: tuple[int, ...], elapsed_s: float = 0.7) -> list:
        on.start_block(seed, elapsed_s)
        return [on.sample(prepared(on, arm), 300, "graph") for arm in arms]

    first = block(device(**scenario), SEED)
    used = device(**scenario)
    for index in range(8):
        block(used, (7, 1, 1, index, 1), 0.1 * index)
    assert block(used, SEED) == first
    assert block(used, SEED) == first
    for other in ((8, 1, 1, 5, 1), (7, 2, 1, 5, 1), (7, 1, 2, 5, 1), (7, 1, 1, 6, 1)):
        assert [s.time_s for s in block(used, other)] != [s.time_s for s in first]
    assert block(device(**scenario, seed=2), SEED) != first
    assert block(used, SEED, 0.75) != first


def test_an_arm_that_is_sampled_twice_in_a_block_has_two_samples() -> None:
    noisy = device(noise=0.01)
    noisy.start_block(SEED, 0.0)
    one, two = (noisy.sample(prepared(noisy, "fused"), 10, "graph").time_s for _ in range(2))
    assert one != two


@pytest.mark.parametrize("numbers", [(0,), (2**32 - 1, 0, 7), (5, 2**32, 7), (2**70, 0)])
def test_its_generators_are_those_of_numpy(numbers: tuple[int, ...]) -> None:
    """With numbers of one word, and with larger ones: a user may choose any seed."""
    expected = np.random.default_rng(numbers).bit_generator.state
    assert seeded(*numbers).bit_generator.state == expected


def test_noise_is_of_the_planted_size_and_stalls_are_plateaus() -> None:
    seeds = blocks(4000)
    true_s = times(device(), "fused", [SEED])[0]
    noise = np.log(times(device(noise=0.02), "fused", seeds) / true_s)
    assert np.std(noise) == pytest.approx(0.02, rel=0.05)
    assert abs(np.mean(noise)) < 0.001
    extra_s = 100 * (times(device(stall_share=0.1), "fused", seeds) - true_s)
    plateaus = np.round(extra_s / 8e-3)
    assert np.allclose(extra_s, plateaus * 8e-3, atol=1e-9)
    assert np.mean(plateaus > 0) == pytest.approx(0.1, abs=0.015)
    assert np.mean(plateaus[plateaus > 0]) == pytest.approx(2, abs=0.25)


def test_a_block_shares_its_noise_and_pairs_are_free_of_it() -> None:
    moments = device(block_noise=0.05)
    ratio = times(moments, "fused", blocks(50)) / times(moments, "bypass", blocks(50))
    assert np.ptp(ratio) < 1e-9
    assert np.std(np.log(times(moments, "fused", blocks(2000)))) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_arms_remember_neighbouring_blocks_as_planted(rho: float) -> None:
    wandering = device(arm_noise=0.01, autocorrelation=rho)
    runs = [np.log(times(wandering, "fused", blocks(20, run))) for run in range(300)]
    level = np.array(runs) - np.log(times(device(), "fused", [SEED])[0])
    assert np.std(level) == pytest.approx(0.01, rel=0.05)
    for lag in (1, 2):
        found = np.corrcoef(level[:, :-lag].ravel(), level[:, lag:].ravel())[0, 1]
        assert found == pytest.approx(rho**lag, abs=0.04)
    other = np.log(times(wandering, "bypass", blocks(20, 0)))
    assert abs(np.corrcoef(other, level[0])[0, 1]) < 0.7


def test_boost_decays_and_warm_up_ends() -> None:
    def factor(at_s: float, **scenario: float) -> float:
        on = device(**scenario)
        on.start_block(SEED, at_s)
        quiet = times(device(), "fused", [SEED])[0]
        return on.sample(prepared(on, "fused"), 10, "graph").time_s / quiet

    assert factor(0.0, boost=0.1, boost_s=2.0) == pytest.approx(0.9)
    assert factor(2.0, boost=0.1, boost_s=2.0) == pytest.approx(1 - 0.1 / np.e)
    assert factor(0.0, warmup=0.5, warmup_s=0.1) == pytest.approx(1.5)
    assert factor(10.0, warmup=0.5, warmup_s=0.1) == pytest.approx(1.0)
    drift = [factor(t, drift=0.05, drift_s=1.0) for t in np.arange(0, 1, 0.01)]
    assert max(drift) == pytest.approx(1.05, abs=1e-3)
    assert min(drift) == pytest.approx(0.95, abs=1e-3)


def test_throttled_samples_are_slower_and_carry_the_flag() -> None:
    hot = device(throttle=0.4, throttle_s=0.05, throttle_every_s=0.2)
    true_s = times(device(), "fused", [SEED])[0]
    flagged = 0
    for step in range(4000):
        hot.start_block(SEED, step * 0.005)
        sample = hot.sample(prepared(hot, "fused"), 10, "graph")
        assert sample.time_s == pytest.approx(true_s * (1.4 if sample.flags else 1.0))
        assert sample.flags in ((), ("throttled",))
        flagged += bool(sample.flags)
    assert flagged / 4000 == pytest.approx(0.25, abs=0.01)


def test_a_level_shifts_once_and_for_the_fused_arm_only() -> None:
    shifted = device(shift=0.1, shift_block=2)
    true_s = times(device(), "fused", [SEED])[0]
    assert times(shifted, "fused", blocks(4)) / true_s == pytest.approx([1, 1, 1.1, 1.1])
    assert np.ptp(times(shifted, "bypass", blocks(4))) == 0
    pilot = [(0, 0, 1, 9, 0)]
    assert times(shifted, "fused", pilot)[0] == true_s
    once = device(shift=0.1, shift_block=2, shift_process=1)
    for process, expected in ((0, [1, 1, 1, 1]), (1, [1, 1, 1.1, 1.1]), (2, [1.1] * 4)):
        found = times(once, "fused", blocks(4, process=process))
        assert found / true_s == pytest.approx(expected)


# By name, on the command line. ---------------------------------------------------------------------


def test_devices_by_name() -> None:
    assert find_device("simulated:h100") == "simulated"
    assert open_device("Simulated:A100/throttling").describe().name == "simulated A100 (throttling)"
    for wrong in ("simulated:h200", "simulated:h100/rain", "simulated", "simulated:"):
        with pytest.raises(DeviceError, match="boards: h100, a100; scenarios: quiet, noise"):
            find_device(wrong)


def test_a_run_on_it_loads_nothing_that_takes_a_second_to_load() -> None:
    code = (
        "import sys, bench.measure.devices as d, bench.measure.run\n"
        "d.open_device('simulated:h100')\n"
        "assert not {'torch', 'triton', 'numba', 'scipy.stats'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def command(*arguments: str) -> tuple[int, str, str]:
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(dequant.main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.stdout.split()), result.stderr


def measure(folder: Path, scenario: str, batches: str = "1,16") -> tuple[int, str, Profile]:
    """A run on a scenario of the H100: exit code, what it printed, its profile."""
    path = folder / "simulated.json"
    arguments = ("--format", "int4-g128", "--batches", batches, "--output", str(path))
    code, printed, _ = command("--gpu", f"simulated:h100/{scenario}", *arguments)
    return code, printed, load_profile(path, allow=("simulated",))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Worker", planted_truth.InProcess)


def test_the_whole_command_finds_what_is_planted(tmp_path: Path) -> None:
    """With worker processes, like a run on hardware."""
    code, printed, profile = measure(tmp_path, "quiet", "1")
    assert code == 0
    assert profile.kind == profile.rows[0].kind == "simulated"
    assert {q.kind for row in (*profile.rows, *profile.comparisons) for q in quantities(row)} == {
        "simulated"
    }
    assert printed.startswith("SIMULATED on simulated H100 (quiet), 132 SMs")
    assert "SIMULATED: these times are planted. No hardware was timed" in printed
    weights = sum(o.n * o.k * o.count for o in profile.workload.operators)
    found = phi(profile, "int4-g128", batch=1)
    assert found.low <= weights * 0.06e-12 <= found.high
    assert found.value == pytest.approx(weights * 0.06e-12, rel=0.02)
    with pytest.raises(ProfileError, match="of kind 'simulated', but only measured"):
        load_profile(tmp_path / "simulated.json")


def test_a_simulated_profile_says_so_in_its_name_and_stays_out_of_measured(tmp_path: Path) -> None:
    name = dequant.default_output("simulated:h100/drift", "tiny", (INT4,)).name
    assert name.startswith("simulated-h100-drift-tiny-int4-g128-")
    path = tmp_path / "measured" / "run.json"
    code, _, said = command("--gpu", "Simulated:h100", "--output", str(path))
    assert code == 2
    assert "a simulated profile has no place among measured ones" in said
    assert not path.parent.exists()
    code, _, said = command("--gpu", "simulated:h900")
    assert (code, said.count("\n")) == (2, 1)
    assert "boards: h100, a100" in said


def test_a_run_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Worker", planted_truth.InProcess)
    scenario = planted_truth.SCENARIOS["throttling"]
    one, two, other = (
        planted_truth.pipeline(scenario, planted_truth.plan(seed))[2].rows for seed in (3, 3, 4)
    )
    assert json.dumps(one) == json.dumps(two)
    assert json.dumps(one) != json.dumps(other)
    started = [row["started_s"] for row in one]
    assert started == sorted(started)


# What is wrong is caught and named. ----------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_a_quiet_run_raises_no_alarm(tmp_path: Path) -> None:
    code, printed, profile = measure(tmp_path, "quiet")
    assert code == 0
    for word in ("WARNING", "FAILED", "STALE", "throttled", "not converged", "autocorrelated-run"):
        assert word not in printed
    assert profile.workload.rotation_bytes >= 2 * BOARDS["h100"].cache_bytes


@pytest.mark.usefixtures("in_process")
def test_warm_weights_are_named(tmp_path: Path) -> None:
    code, printed, profile = measure(tmp_path, "warm")
    assert code == 1
    assert "WARNING: memory was too short to rotate weights" in printed
    assert profile.workload.rotation_bytes < 2 * BOARDS["h100"].cache_bytes


@pytest.mark.usefixtures("in_process")
def test_unconverged_rows_are_named(tmp_path: Path) -> None:
    code, printed, profile = measure(tmp_path, "loud")
    assert code == 1
    assert "0 of 20 values of φ" in printed
    assert "* not converged" in printed
    assert not any(c.converged for c in profile.comparisons)


@pytest.mark.usefixtures("in_process")
def test_throttled_rows_are_named(tmp_path: Path) -> None:
    _, printed, profile = measure(tmp_path, "throttling")
    assert "† throttled: the clock was held down during some samples" in printed
    layers = [c for c in profile.comparisons if c.operator == "layer"]
    assert all("throttled" in c.quality_exposed.flags for c in layers)
    assert any("throttled" in row.flags for row in profile.rows)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("scenario", "arm", "error"), [("wrong", "fused", "0.25"), ("stale", "bypass", "0.7")]
)
def test_wrong_and_stale_arms_fail_verification(
    tmp_path: Path, scenario: str, arm: str, error: str
) -> None:
    """A stage that runs another's machine code computes the other's numbers."""
    code, printed, profile = measure(tmp_path, scenario)
    assert code == 1
    assert f"FAILED {arm} (simulated, int4-g128) on up" not in printed
    assert f"FAILED {arm} (simulated, int4-g128) on down_proj at batch 16" in printed
    assert f"wrong result: off by {error} of the largest value" in printed
    assert all(c.phi_exposed_s.value is None for c in profile.comparisons)


@pytest.mark.usefixtures("in_process")
def test_a_stale_stage_that_verification_misses_is_asked_about(tmp_path: Path) -> None:
    _, printed, profile = measure(tmp_path, "stale-unseen", "1,2,4,8,16,32")
    assert "STALE? int4-g128: fused and bypass take the same time at every batch." in printed
    layers = [c for c in profile.comparisons if c.operator == "layer"]
    assert all(abs(c.cor_exposed.value or 1.0) < 0.01 for c in layers)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("scenario", ["ar03", "ar06"])
def test_dependence_shows_over_a_whole_run(tmp_path: Path, scenario: str) -> None:
    _, printed, profile = measure(tmp_path, scenario, "1,2,4,8,16")
    assert "† autocorrelated-run: over the whole run neighbouring blocks depend" in printed
    assert all("autocorrelated-run" in c.flags for c in profile.comparisons)


# The proofs, small. --------------------------------------------------------------------------------


def test_the_estimand_is_the_planted_phi_where_nothing_changes_with_time() -> None:
    rows = [
        {"phase": "fresh", "process": 0, "block": b, "arm": arm, "started_s": 0.1 * b}
        for b in range(9)
        for arm in ("fused", "bypass")
    ]
    found = planted_truth.planted(Scenario(noise=NOISE), 0, rows, "fused", "bypass")
    assert found == pytest.approx(PHI_S)
    always = Scenario(noise=1e-4, throttle=0.5, throttle_s=0.1, throttle_every_s=0.05)
    found = planted_truth.planted(always, 0, [r for r in rows if r["block"]], "fused", "bypass")
    assert found == pytest.approx(1.5 * PHI_S, rel=0.01)


def test_broken_estimators_by_hand() -> None:
    interval = planted_truth.stop_on_width([1.0, 2, 3, 4, 5, 6, 3, 3, 3, 3, 3, 3, 3], 1.0)
    assert interval.n < 13
    assert interval.half_width <= 1.0
    quiet = planted_truth.repeats_of_each(Scenario(), 0, ("bypass", "fused"), 0.03)
    assert quiet.value == pytest.approx(PHI_S)
    assert quiet.half_width == pytest.approx(0, abs=1e-15)
    assert quiet.samples == 2 * 10  # samples of 3 ms, the discarded ones apart
    steady = planted_truth.until_steady(Scenario(noise=1e-4), 0, ("bypass", "fused"), 1.0)
    assert steady.samples % (2 * 10) == 0  # again and again, for twice a second, in samples of 3 ms
    assert steady.samples * 3e-3 == pytest.approx(2.0, rel=0.03)


def test_coverage_and_flags_of_a_few_runs() -> None:
    """The small brother of the proof: 60 runs each, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Worker", planted_truth.InProcess)
        patch.setattr(os, "fsync", lambda file: None)
        task = planted_truth.Task(planted_truth.named("noise"))
        noise = planted_truth.coverage_rows(
            "noise", [planted_truth.one_run(task, seed) for seed in range(60)]
        )
        task = replace(task, scenario=planted_truth.named("shift"))
        shift = planted_truth.row_flags(
            "shift", [planted_truth.one_run(task, seed) for seed in range(20)]
        )
    for row in noise:
        assert row.covered.value >= 0.85
        assert row.flagged < 0.2
        assert abs(row.bias) < 0.01
    assert shift.flagged.value >= 0.9


def test_a_session_on_it_needs_no_seed_of_a_run() -> None:
    session = Session(device(noise=0.01), (Operator(name="up", n=N, k=K),), "fp16", "graph")
    session.begin(INT4, [1], {})
    first, again = session.block(1, (7,)), session.block(1, (7,))
    assert [t.sample.time_s for t in first] == [t.sample.time_s for t in again]


def test_a_simulated_profile_is_checked_and_not_trusted(tmp_path: Path) -> None:
    """From the command to the check: one reason is serious, and it is the kind of evidence."""
    output = tmp_path / "run.json"
    arguments = ["--gpu", "simulated:h100", "--batches", "1", "--format", "int4-g128"]
    made = subprocess.run(
        [sys.executable, "-m", "bench.dequant", *arguments, "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    found = subprocess.run(
        [sys.executable, "-m", "bench.check", str(output), "--json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 1, found.stderr
    serious = [
        f["topic"] for f in json.loads(found.stdout)["findings"] if f["severity"] == "serious"
    ]
    assert "kind" in serious
    assert set(serious) <= {"kind", "checkout"}  # a tree with changes is serious too
