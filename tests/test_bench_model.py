"""The modelled time of a kernel, against computations by hand and against what it must refuse."""

from dataclasses import replace
from math import exp

import pytest

from bench.static import parameters
from bench.static.cost import InstructionCounts, KernelCost, Problem, counts_of_classes
from bench.static.estimate import estimate, estimate_layer
from bench.static.model import NotModelledError, pipe_cycles, pnorm, predict, tensor_rate
from bench.static.peers import load_peers
from profiles.specs import load_gpu, load_gpus

PEERS = {key: peer.cost for key, peer in load_peers().items()}
A100, A10, L40S = load_gpu("a100-80"), load_gpu("a10"), load_gpu("l40s")
LARGE = Problem(16384, 16384, 1, cold=True, graph=True)
WEIGHTS = 2**28


def test_pnorm() -> None:
    assert pnorm(2, 3.0, 4.0) == pytest.approx(5.0)
    assert pnorm(4, 3.0, 4.0) == pytest.approx(337**0.25)
    assert pnorm(64, 1e-6, 2e-6, 2.1e-6) == pytest.approx(2.1e-6, rel=1e-3)
    assert pnorm(4, 0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("kernel", "batch", "passes", "tile", "multiplied"),
    [
        ("marlin", 1, 1, 16, 16),
        ("marlin", 33, 1, 64, 64),
        ("marlin", 65, 2, 64, 128),
        ("marlin", 256, 4, 64, 256),
        ("tinygemm", 17, 2, 16, 32),
        ("vendor16", 100, 1, 128, 128),
        ("exllamav2", 6, 2, 4, 8),
        ("awq-v1", 5, 5, 1, 5),
    ],
)
def test_rows_come_in_tiles_and_passes(
    kernel: str, batch: int, passes: int, tile: int, multiplied: int
) -> None:
    cost = PEERS[kernel]
    assert (cost.passes(batch), cost.tile_rows(batch)) == (passes, tile)
    assert cost.multiplied_rows(batch) == multiplied


def test_instructions_grow_with_tiles_passes_and_rows() -> None:
    assert PEERS["marlin"].instructions(16).total == pytest.approx(2.50)
    assert PEERS["marlin"].instructions(64).total == pytest.approx(2.50 + 3 * 0.28)
    assert PEERS["marlin"].instructions(128).total == pytest.approx(2 * (2.50 + 3 * 0.28))
    two_passes = PEERS["tinygemm"].instructions(32)
    assert two_passes.total == pytest.approx(8.76)
    assert two_passes.scattered == pytest.approx(32 * 0.5)
    assert PEERS["exllamav2"].instructions(1).total == pytest.approx(2.89)
    assert PEERS["exllamav2"].instructions(8).total == pytest.approx(2 * 2.19 + 8 * 0.7)


def test_16_bit_times_by_hand_and_as_published() -> None:
    """A100-80: 537 MB at 83 % of 2039 GB/s, 16 padded rows at 75 % of 312 TFLOP/s, 5 us for a launch."""
    prediction = predict(A100, PEERS["vendor16"], replace(LARGE, graph=False))
    dram_s = (2 * WEIGHTS + 2 * 2 * 16384) / (2039e9 * 0.83)
    tensor_s = 2 * 16 * WEIGHTS / (312e12 * 0.75)
    assert prediction.parts_s["dram"] == pytest.approx(dram_s)
    assert prediction.parts_s["tensor"] == pytest.approx(tensor_s)
    assert prediction.time_s == pytest.approx(5e-6 + (dram_s**4 + tensor_s**4) ** 0.25)
    assert prediction.limiter == "DRAM"
    assert prediction.time_s == pytest.approx(320.7e-6, rel=0.02)  # aiconfigurator, m = 1


def test_pipes_by_hand() -> None:
    """GemLite at batch 1: 8 instructions and 1 slow conversion per weight; the issue slots run out first."""
    parts = predict(A100, PEERS["gemlite-gemv"], LARGE).parts_s
    assert parts["issue"] == pytest.approx(8.0 * WEIGHTS / (128 * 108 * 1.41e9 * 0.65))
    assert parts["xu"] == pytest.approx(1.0 * WEIGHTS / (16 * 108 * 1.41e9 * 0.82))
    assert parts["half2"] == pytest.approx(1.77 * WEIGHTS / (128 * 108 * 1.41e9 * 0.82))
    assert parts["shared"] == pytest.approx(4 / 32 * WEIGHTS / (32 * 108 * 1.41e9 * 0.82))
    assert predict(A100, PEERS["gemlite-gemv"], LARGE).limiter == "issue"
    assert predict(load_gpu("rtx4090"), PEERS["gemlite-gemv"], LARGE).limiter == "DRAM"


@pytest.mark.parametrize(
    ("gpu", "alone", "with_fp32", "with_half2"),
    [
        ("a100", 24 / 64, (24 + 40) / 64, (40 + 0) / 64),  # one pipe of 64; half2 has its own
        ("a10", 24 / 64, (24 + 40) / 128, (40 + 2 * 16) / 128),  # two halves, half2 takes both
        ("h100", 24 / 64, (24 + 40) / 128, (40 + 16) / 128),
        ("b200", 24 / 64, (24 + 40) / 128, (40 + 2 * 16) / 128),
    ],
)
def test_integer_products_run_on_the_pipe_of_fp32(
    gpu: str, alone: float, with_fp32: float, with_half2: float
) -> None:
    """24 IMAD, 40 FFMA and 16 HFMA2 per weight: NVIDIA's engineers on GA100, GA10x and GH100."""
    multiprocessor = load_gpu(gpu).multiprocessor
    assert multiprocessor is not None

    def cycles(**counts: float) -> dict[str, float]:
        return pipe_cycles(KernelCost("k", "k", InstructionCounts(**counts)), multiprocessor, 1)

    both = cycles(imad=24.0, fp32=40.0, integer=8.0)
    assert both["imad"] == pytest.approx(alone)
    assert both["fp32"] == pytest.approx(with_fp32)
    assert both["integer"] == pytest.approx(8 / 64)  # none of it
    assert cycles(half2=16.0, fp32=40.0)["fp32"] == pytest.approx(with_half2)


def test_fast_conversions_take_the_slow_unit_where_there_is_no_such_instruction() -> None:
    assert A100.multiprocessor is not None
    assert A10.multiprocessor is not None
    old = pipe_cycles(PEERS["awq-v1"], A100.multiprocessor, 1)
    new = pipe_cycles(PEERS["awq-v1"], A10.multiprocessor, 1)
    assert old["xu"] == pytest.approx(1.03 / 16)
    assert old["integer"] == pytest.approx(2.2 / 64)
    assert new["xu"] == 0
    assert new["integer"] == pytest.approx((2.2 + 1.03) / 64)
    disputed = pipe_cycles(PEERS["awq-v1"], A10.multiprocessor, 1, "worse")
    assert disputed["xu"] == pytest.approx(1.03 / 16)  # the guide's 16 lanes in place of ptxas' 64
    assert (
        disputed["integer"] == new["integer"]
    )  # nor is that pipe relieved: the end is the worse one


def test_programs_that_share_a_slice_wait_for_each_other() -> None:
    """L40S: 142 programs, 16 slices of 256 columns: 7.875 steps of 1.5 x 480 ns, after 2 us of launch."""
    prediction = predict(L40S, PEERS["marlin-g64"], Problem(4096, 4096, 1))
    assert prediction.fixed_s == pytest.approx(2e-6 + 7.875 * 1.5 * 480e-9)
    assert prediction.time_s == pytest.approx(19.9e-6, rel=0.05)  # Graphcore's figure
    wide = predict(L40S, PEERS["marlin-g64"], Problem(65536, 4096, 1))
    assert wide.fixed_s == pytest.approx(2e-6)
    shallow = predict(L40S, PEERS["marlin-g64"], Problem(1024, 1024, 1))  # 16 of 35 have work
    assert shallow.fixed_s == pytest.approx(2e-6 + 15 * 1.5 * 480e-9)


def test_weights_are_read_again_by_every_pass_unless_the_cache_holds_them() -> None:
    once = predict(A10, PEERS["awq-v1"], Problem(73728, 18432, 1))
    eight = predict(A10, PEERS["awq-v1"], Problem(73728, 18432, 8))
    assert eight.parts_s["dram"] == pytest.approx(8 * once.parts_s["dram"], rel=1e-6)
    assert eight.parts_s["issue"] == pytest.approx(8 * once.parts_s["issue"])
    small = Problem(1024, 1024, 8)
    weight_bytes = 1024 * 1024 * 4.25 / 8
    expected = (weight_bytes + 2 * 8 * 2048) / (600.2e9 * 0.875)
    assert predict(A10, PEERS["awq-v1"], small).parts_s["dram"] == pytest.approx(expected)


def test_a_half_rate_of_accumulation_is_a_limit_of_its_own() -> None:
    assert tensor_rate(A100) == pytest.approx(0.75 * 312e12)
    assert tensor_rate(load_gpu("rtx3090")) == pytest.approx(71e12)  # 0.75 x 142 could be fed
    assert tensor_rate(load_gpu("rtx4090")) == pytest.approx(165.2e12)
    assert tensor_rate(A100, "worse") == pytest.approx(0.55 * 312e12)


def test_requests_in_flight_hide_the_latency_of_memory() -> None:
    """8192 x 8192 at 4 bits is 321 kB per multiprocessor: 78 rounds of 4 kB, 480 ns each."""
    cost = replace(PEERS["marlin"], bytes_in_flight=4096.0)
    parts = predict(A100, cost, Problem(8192, 8192, 1)).parts_s
    rounds = 8192 * 8192 * 4.125 / 8 / 108 / 4096
    assert rounds == pytest.approx(78.2, abs=0.1)
    assert parts["latency"] == pytest.approx(rounds * 480e-9)
    assert predict(A100, cost, Problem(8192, 8192, 1)).limiter == "latency"
    assert "latency" not in predict(A100, PEERS["marlin"], LARGE).parts_s
    twice = replace(cost, rows_per_pass=8, rereads=False)
    again = predict(A100, twice, Problem(8192, 8192, 16)).parts_s
    assert again["latency"] == pytest.approx(2 * parts["latency"])  # asked for again, read once


def test_launch_of_an_empty_kernel_is_taken_where_it_is_published() -> None:
    h100 = load_gpu("h100")
    assert predict(h100, PEERS["vendor16"], LARGE).fixed_s == pytest.approx(1.3e-6)
    assert predict(A100, PEERS["vendor16"], LARGE).fixed_s == pytest.approx(2.0e-6)
    tiny = predict(A100, PEERS["gemlite-gemv"], Problem(64, 64, 1))
    assert tiny.limiter == "launch"


@pytest.mark.parametrize("gpu", load_gpus().values(), ids=load_gpus())
def test_corners_bound_the_value_of_every_kernel_on_every_board(gpu) -> None:
    for cost in PEERS.values():
        for batch in (1, 16, 200):
            try:
                value = predict(gpu, cost, replace(LARGE, batch=batch)).time_s
            except NotModelledError:
                continue
            better, worse = (
                predict(gpu, cost, replace(LARGE, batch=batch), end).time_s
                for end in ("better", "worse")
            )
            assert 0 < better <= value <= worse


def test_an_estimate_has_the_residual_interval_and_says_what_it_is() -> None:
    found = estimate(A100, PEERS["marlin"], LARGE)
    assert found.kind == "modelled"
    assert found.value_s == pytest.approx(predict(A100, PEERS["marlin"], LARGE).time_s)
    assert found.low_s == pytest.approx(found.value_s * exp(-parameters.WIDTH_SMALL_BATCH))
    assert found.high_s == pytest.approx(found.value_s * exp(parameters.WIDTH_SMALL_BATCH))
    large_batch = estimate(A100, PEERS["marlin"], replace(LARGE, batch=65))
    assert large_batch.high_s == pytest.approx(
        large_batch.value_s * exp(parameters.WIDTH_LARGE_BATCH)
    )
    assert found.corner_low_s < found.value_s < found.corner_high_s
    assert found.limiter == "DRAM"


REFUSED = [
    ("a100-80", "marlin", replace(LARGE, cold=False, n=4096, k=4096, batch=256), "cache"),
    ("a100-80", "marlin", Problem(1024, 1024, 1), "below 20 us"),
    ("t4", "marlin", LARGE, "needs compute capability 8.0"),
    ("a10", "bnb-naive", replace(LARGE, batch=2), "another path"),
    ("a10", "bitblas", LARGE, "not been counted"),
]


@pytest.mark.parametrize(("gpu", "kernel", "problem", "reason"), REFUSED)
def test_what_cannot_be_modelled_has_a_reason_in_place_of_a_number(
    gpu: str, kernel: str, problem: Problem, reason: str
) -> None:
    found = estimate(load_gpu(gpu), PEERS[kernel], problem)
    assert found.value_s is None
    assert found.low_s is None
    assert reason in found.reason


def test_a_board_of_unknown_tensor_rate_has_no_times_of_tensor_cores() -> None:
    bare = load_gpu("orin").model_copy(update={"tensor_fp16_tflops": None})
    assert "tensor rate of the Jetson" in estimate(bare, PEERS["vendor16"], LARGE).reason
    assert estimate(bare, PEERS["awq-v1"], LARGE).value_s is not None


def test_a_board_of_unknown_pipes_or_latency_has_no_times() -> None:
    bare = A100.model_copy(update={"multiprocessor": None})
    assert "capability 8.0" in estimate(bare, PEERS["awq-v1"], LARGE).reason
    orin = load_gpu("orin")
    serial = replace(PEERS["awq-v1"], slice_columns=256)
    assert "latency of the Jetson" in estimate(orin, serial, LARGE).reason
    assert estimate(orin, PEERS["awq-v1"], LARGE).value_s is not None


def test_the_interval_says_where_it_was_not_checked() -> None:
    assert estimate(A100, PEERS["marlin"], LARGE).note == ""
    assert "other boards" in estimate(load_gpu("h100"), PEERS["marlin"], LARGE).note


def test_a_layer_is_the_sum_of_its_operators_and_is_refused_as_one() -> None:
    operators = [Problem(6144, 4096, 1), Problem(4096, 4096, 1), Problem(28672, 4096, 1)]
    layer = estimate_layer(A100, PEERS["marlin"], operators)
    parts = [predict(A100, PEERS["marlin"], problem) for problem in operators]
    assert parts[1].time_s < parameters.SHORTEST_S  # alone it would be refused
    assert estimate(A100, PEERS["marlin"], operators[1]).value_s is None
    assert layer.value_s == pytest.approx(sum(p.time_s for p in parts))
    assert layer.parts_s["launch"] == pytest.approx(sum(p.fixed_s for p in parts))
    assert layer.high_s == pytest.approx(layer.value_s * exp(parameters.WIDTH_SMALL_BATCH))
    hot = [replace(problem, cold=False) for problem in operators]
    assert "cache" in estimate_layer(A100, PEERS["marlin"], hot).reason


def test_counts_of_an_audit_are_divided_by_weights() -> None:
    """Marlin on sm_90: 664 instructions per 256 weights, its loads 8 of 128 bits and 4 of 32."""
    classes = {
        "int": 205,
        "half2": 256,
        "mma": 64,
        "exchange": 38,
        "load": 12,
        "cvt": 6,
        "other": 83,
    }
    found = counts_of_classes(classes, 2, 0, {128: 8, 32: 4}, 256, 4.125 / 8)
    assert found.total == pytest.approx(664 / 256)
    assert (found.tensor, found.half2) == (0.25, 1.0)
    assert (found.conversion, found.fast_conversion) == (2 / 256, 4 / 256)
    assert found.loads == pytest.approx((8 + 4 / 4) / 256)
    assert found.load_store == pytest.approx((38 + 8 * 4 + 4) / 256)


def test_a_kernel_that_spills_is_not_modelled() -> None:
    cost = KernelCost("ours", "ours", InstructionCounts(bytes=0.5), unmodelled="it spills 80 bytes")
    assert estimate(A100, cost, LARGE).reason == "it spills 80 bytes"


def test_rotated_weights_may_be_as_small_as_they_like() -> None:
    cold = replace(LARGE, n=4096, k=4096, batch=256)
    assert estimate(A100, PEERS["marlin"], cold).value_s is not None


@pytest.mark.parametrize("key", PEERS)
def test_counts_are_consistent(key: str) -> None:
    cost = PEERS[key]
    c = cost.counts
    classes = c.integer + c.half2 + c.fp32 + c.conversion + c.fast_conversion + c.tensor + c.shared
    assert classes + c.loads <= c.total * 1.01 or not c.total
    assert c.bytes > 0
    assert cost.source
    assert cost.origin in ("seen", "assumed")
