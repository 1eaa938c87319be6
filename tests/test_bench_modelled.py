"""The modelled device: times by hand, refusals, and a profile that nobody takes for a measured one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from math import ceil, exp
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import bench.measure.devices
from bench import check, dequant, report, trap
from bench.analysis.trust import REFUSED_SHARE
from bench.measure.devices import DeviceError, modelled_board
from bench.static import audit_all, device, model, parameters
from bench.static.audit import Audit, Job, job_from, plan_for
from bench.static.cost import Problem
from bench.static.device import Layer, Model, jobs_of_layer
from bench.static.modelled import difference, foundation, ratio, tabulate
from bench.static.ours import Cut, Spread, launch_on
from kernels import find_kernels
from kernels.formats import find_format
from kernels.triton.configs import default_for
from kernels.unfused import compose
from profiles.reader import ProfileError, load_profile
from profiles.schema import LAYER, NOT_HERE, Operator, Profile, Quantity, Workload, quantities
from profiles.specs import load_gpu

H100 = load_gpu("h100")
INT4 = find_format("int4-g128")
SQUARE = Operator(name="o_proj", n=4096, k=4096)
WIDE = Operator(name="gate_up_proj", n=28672, k=4096, count=2)
FUSED = Job("fused", "gemv-ptx", "int4-g128", "fp16", 1, 90)
CLASSES = {"int": 64, "half2": 128, "cvt": 8, "load": 8, "exchange": 4, "other": 44}


def near(value):
    """Profiles round to five digits."""
    return pytest.approx(value, rel=3e-5)


def planted(job: Job) -> Audit:
    """256 instructions for 128 weights of a lane; dequantize and 16-bit kernels as well."""
    return Audit(
        job.name, job.capability, CLASSES, slow_conversions=2, loads={128: 8}, looped=True,
        weights=128, registers=56, shared_bytes=0, num_warps=4, resident_warps=32,
        outside={"int": 60, "other": 40},
    )  # fmt: skip


def kernel_of(job: Job):
    (found,) = (
        k
        for k in find_kernels("cuda", find_format(job.format), job.activation, job.batch)
        if (k.arm, k.variant, k.implementation) == (job.arm, job.variant, "triton")
    )
    return found


def modelled(
    batches: tuple[int, ...] = (1, 16),
    operators: tuple[Operator, ...] = (SQUARE, WIDE),
    gpu: str = "h100",
    lacking: Iterable[Job] = (),
    **changes: object,
) -> Model:
    """A layer of planted kernels; jobs in `lacking` did not compile, others have the changes."""
    layer = Layer(operators, (INT4,), batches, "fp16")
    board, lacking = load_gpu(gpu), set(lacking)
    jobs = jobs_of_layer(layer, [board])
    audits = {job: replace(planted(job), **changes) for job in jobs if job not in lacking}  # type: ignore[arg-type]
    return Model(layer, board, audits, dict.fromkeys(lacking, "it does not compile: why."))


def workload(model: Model) -> Workload:
    return Workload(
        model="m", layers=2, operators=model.layer.operators, activation="fp16",
        formats=("int4-g128",), batches=model.layer.batches, launch_mode="graph",
        cache_state="cold", rotation_bytes=0, seeds={},
    )  # fmt: skip


def arm(model: Model, name: str, variant: str, operator: str = "o_proj", batch: int = 1):
    (found,) = (
        a
        for a in model.arms
        if (a.kernel.arm, a.kernel.variant, a.operator, a.batch) == (name, variant, operator, batch)
    )
    return found


# --- one kernel on one operator


def test_counts_of_an_operator_by_hand() -> None:
    """4 rows of 4096 weights are a program of 2 warps: 100 instructions around the loop, 70 % of them run.

    1024 programs on 132 multiprocessors are 7.76 on each: all fit at a time, and some have 8.
    """
    cost, problem = launch_on(kernel_of(FUSED), FUSED, planted(FUSED), H100, Problem(4096, 4096, 1))
    once = 0.7 * 64 / (4 * 4096)
    assert cost.counts.total == pytest.approx(256 / 128 + 100 * once)
    assert cost.counts.integer == pytest.approx(64 / 128 + 60 * once)
    assert cost.counts.conversion == pytest.approx(2 / 128)
    assert cost.counts.fast_conversion == pytest.approx(6 / 128)
    assert cost.counts.bytes == pytest.approx(4.125 / 8)
    assert problem.activation_bytes == 2 * (4096 + 4096)
    assert cost.bytes_in_flight == pytest.approx(128 * 32 * 4.125 / 8 * 2 * 1024 / 132)
    assert cost.unevenness == pytest.approx(8 / (1024 / 132))
    assert not cost.rereads
    assert not cost.tensor_cores


def test_a_last_step_that_is_not_whole_is_work_too() -> None:
    """6144 columns are three steps of 2048, and 5120 columns are two and a half."""
    cut = Cut.of(plan_for(FUSED, 4096, 6144), Problem(4096, 6144, 1))
    assert (cut.padding, cut.lanes) == (1.0, 64)
    odd = Cut.of(plan_for(FUSED, 4098, 5120), Problem(4098, 5120, 1))
    assert odd.padding == pytest.approx(6144 / 5120 * 4100 / 4098)
    cost, _ = launch_on(kernel_of(FUSED), FUSED, planted(FUSED), H100, Problem(4098, 5120, 1))
    assert cost.counts.half2 == pytest.approx(odd.padding)  # 128 of 128
    assert cost.counts.bytes == pytest.approx(4.125 / 8)
    assert cost.requested_bytes is None  # no tiles


def test_a_batch_of_several_tiles_dequantizes_again() -> None:
    job = Job("fused", "gemm-ptx", "int4-g128", "fp16", 256, 90)
    kernel = kernel_of(job)
    audit = replace(planted(job), classes={**CLASSES, "mma": 16}, warp_mma=16)
    cost, _ = launch_on(kernel, job, audit, H100, Problem(4096, 4096, 256))
    assert (cost.rows_per_pass, cost.passes(256), cost.multiplied_rows(256)) == (64, 4, 256)
    assert cost.tensor_cores
    assert cost.warp_mma
    x, words = 2 * 256 * 4096, 4096 * 4096 * 4.125 / 8
    assert cost.requested_bytes == pytest.approx(64 * x + 4 * words)  # 64 x 4 tiles
    requested_s = cost.requested_bytes / (24 * 132 * 1.98e9)
    parts = model.predict(H100, cost, Problem(4096, 4096, 256)).parts_s
    assert parts["l2"] == pytest.approx(requested_s)
    stream = replace(job, arm="stream")
    alone, _ = launch_on(kernel_of(stream), stream, audit, H100, Problem(4096, 4096, 256))
    assert alone.requested_bytes == pytest.approx(4 * words)  # it reads no x
    programs = 64 * 4  # of 64 x 64, of four warps; three stages
    assert cost.bytes_in_flight == pytest.approx(128 * 32 * 4.125 / 8 * 4 * programs / 132 * 2)


def test_programs_of_an_operator_on_a_board_by_hand() -> None:
    """132 multiprocessors with four schedulers each."""
    full = Spread.of(132, 4, 132, resident=1)
    assert full == Spread(unevenness=1.0, at_once=1.0, together=True)
    one_more = Spread.of(133, 4, 132, resident=1)  # a second wave for one of them
    assert one_more == Spread(pytest.approx(2 / (133 / 132)), pytest.approx(133 / 264), False)
    assert Spread.of(133, 4, 132, resident=2).together
    half = Spread.of(66, 4, 132, resident=2)
    assert half == Spread(unevenness=2.0, at_once=0.5, together=True)
    assert Spread.of(132, 2, 132, resident=2).unevenness == 2.0  # two of its schedulers idle
    assert Spread.of(264, 2, 132, resident=2).unevenness == 1.0
    assert Spread.of(264, 2, 132, resident=1).unevenness == 2.0  # one after the other


def test_a_board_that_is_not_full_takes_longer_for_its_pipes_and_not_for_its_memory() -> None:
    """64 programs of 64 x 64 leave 68 of 132 multiprocessors idle; of 32 rows of x they are 128."""
    job = Job("fused", "gemm-ptx", "int4-g128", "fp16", 64, 90)
    narrow = replace(job, config=default_for("fused", "gemm-ptx", INT4, 4096, 64, 132))
    audit = replace(planted(job), classes={**CLASSES, "mma": 16})
    problem = Problem(4096, 4096, 64)
    wide, other = (launch_on(kernel_of(j), j, audit, H100, problem)[0] for j in (job, narrow))
    assert (wide.unevenness, other.unevenness) == (132 / 64, 132 / 128)
    assert (wide.passes(64), other.passes(64)) == (1, 2)
    parts = model.predict(H100, wide, problem).parts_s
    even = model.predict(H100, replace(wide, unevenness=1.0), problem).parts_s
    for part in ("issue", "integer", "half2", "shared", "tensor"):
        assert parts[part] == pytest.approx(even[part] * 132 / 64)
    assert (parts["dram"], parts["latency"]) == (even["dram"], even["latency"])


def test_every_board_has_the_kernels_of_its_own_configurations() -> None:
    """On an H100 64 rows of x are cut in two where W has 4096 rows; on an A100 they are not."""
    layer = Layer((SQUARE, WIDE), (INT4,), (64,), "fp16")

    def tiles(key: str, arm: str) -> set[tuple[int, int, int] | None]:
        jobs = jobs_of_layer(layer, [load_gpu(key)])
        return {
            j.config and (j.config.block_b, j.config.block_n, j.config.num_stages)
            for j in jobs
            if (j.arm, j.variant) == (arm, "gemm-ptx")
        }

    assert tiles("h100", "stream") == {(32, 64, 5), (64, 64, 4)}
    assert tiles("h100", "fused") == {None, (32, 64, 5), (64, 64, 4)}  # and for R
    assert tiles("a100", "fused") == {None, (64, 64, 4)}


def test_a_job_is_the_same_after_json() -> None:
    """Workers read it from there."""
    config = default_for("fused", "gemm", INT4, 4096, 64, 132)
    assert config is not None
    for job in (FUSED, Job("fused", "gemm", "int4-g128", "fp16", 64, 90, config)):
        assert job_from(json.loads(json.dumps(asdict(job)))) == job


def test_dequantize_writes_16_bits_beside_what_it_reads() -> None:
    job = Job("dequantize", "ptx", "int4-g128", "fp16", 1, 90)
    cost, problem = launch_on(kernel_of(job), job, planted(job), H100, Problem(4096, 4096, 1))
    assert cost.counts.bytes == pytest.approx(4.125 / 8)
    assert problem.activation_bytes == 2 * 4096 * 4096
    assert cost.passes(1) == 1


def test_the_instruction_of_one_warp_is_slow_on_new_boards() -> None:
    job = Job("fused", "gemm-ptx", "int4-g128", "fp16", 256, 90)
    mma = {"classes": {**CLASSES, "mma": 16}}
    fast = modelled((256,), **mma)
    slow = modelled((256,), **mma, warp_mma=16)
    old = modelled((256,), gpu="a100", **mma, warp_mma=16)
    assert job.variant == "gemm-ptx"
    parts = [
        arm(m, "fused", "gemm-ptx", batch=256).estimate.parts_s["tensor"] for m in (fast, slow, old)
    ]
    assert parts[1] == pytest.approx(parts[0] / parameters.WARP_TENSOR_SHARE.value)
    operations = 2 * 256 * 4096 * 4096
    assert parts[2] == pytest.approx(operations / (312e12 * 0.75) * 3 / (256 / 108))


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spill_instructions": 2}, "spills"),
        ({"stack_bytes": 80}, "spills"),
        ({"guarded": 129}, "guarded loop"),
        ({"weights": None}, "how many weights"),
    ],
)
def test_what_counting_says_nothing_about_has_no_time(
    changes: dict[str, object], reason: str
) -> None:
    found = arm(modelled(**changes), "fused", "gemv-ptx").estimate  # type: ignore[arg-type]
    assert found.value_s is None
    assert reason in found.reason


def test_a_loop_that_is_guarded_in_part_is_counted() -> None:
    assert arm(modelled(guarded=128), "fused", "gemv-ptx").estimate.value_s is not None


def test_a_kernel_that_does_not_compile_costs_its_rows_and_unfused() -> None:
    lost = Job("dequantize", "ptx", "int4-g128", "fp16", 1, 90)
    model = modelled((1,), lacking=[lost])
    assert arm(model, "dequantize", "ptx").estimate.reason == "it does not compile: why."
    assert arm(model, "unfused", "default").estimate.reason == "it does not compile: why."
    assert arm(model, "fused", "gemv-ptx").estimate.value_s is not None


def test_a_library_kernel_of_a_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a library's 16-bit kernel bytes and tensor rate are known; of its others nothing is."""

    def with_library(*asked: object):
        found = find_kernels(*asked)  # type: ignore[arg-type]
        theirs = replace(found[-1], arm="vendor", implementation="torch", variant="int4mm")
        return (*found, theirs, replace(theirs, implementation="cuda", variant="needs CuPy"))

    monkeypatch.setattr(device, "find_kernels", with_library)
    model = modelled((1,))
    assert arm(model, "vendor", "int4mm").estimate.reason == device.NOT_COMPILED
    assert "needs CuPy" not in {a.kernel.variant for a in model.arms}
    vendor = arm(model, "vendor", "default").estimate
    assert vendor.limiter == "DRAM"
    assert vendor.parts_s["dram"] == pytest.approx((2 * 4096 * 4096 + 2 * 8192) / (3350e9 * 0.87))


def test_a_layer_below_20_us_is_refused_and_an_operator_within_a_longer_one_is_not() -> None:
    short = modelled((1,), operators=(SQUARE,))
    assert arm(short, "fused", "gemv-ptx").estimate.reason == device.LAYER_TOO_SHORT
    whole = arm(modelled((1,)), "fused", "gemv-ptx").estimate
    assert whole.value_s is not None
    assert whole.value_s < parameters.SHORTEST_S


def test_the_slow_unit_of_12_0_is_not_known() -> None:
    slow = {"slow_conversions": 384, "classes": {**CLASSES, "cvt": 384}}
    model = modelled((1,), gpu="rtx5090", **slow)
    assert arm(model, "fused", "gemv-ptx").estimate.reason == device.SLOW_UNIT_UNKNOWN
    assert arm(modelled((1,), **slow), "fused", "gemv-ptx").estimate.limiter == "XU"


def test_tiles_are_refused_where_no_tensor_cores_multiply_them() -> None:
    model = modelled((16,), gpu="t4")
    refused = {(a.kernel.arm, a.kernel.variant) for a in model.arms if a.estimate.value_s is None}
    variants = ("gemm", "gemm-ptx")
    products = {(arm, v) for arm in ("fused", "bypass") for v in variants}
    tiled = products | {("native", "gemm"), ("upcast", "gemm")}
    assert refused == tiled | {("upcast", "two-launches")}
    assert "7.5" in arm(model, "fused", "gemm", batch=16).estimate.reason


# --- a layer


def test_every_arm_of_a_measured_run_has_a_row_under_the_same_name() -> None:
    model = modelled((1, 16))
    for batch in (1, 16):
        kernels = find_kernels("cuda", INT4, "fp16", batch)
        dequantizer = next(k for k in kernels if k.arm == "dequantize")
        vendor = next(k for k in kernels if k.arm == "vendor")
        wanted = {
            (k.arm, k.implementation, k.variant, k.reads(INT4, "fp16").name)
            for k in (*kernels, compose(dequantizer, vendor))
        }
        for operator in ("o_proj", "gate_up_proj"):
            found = [
                tuple(a.kernel.model_dump().values())
                for a in model.arms
                if (a.operator, a.batch) == (operator, batch)
            ]
            assert len(found) == len(set(found))
            assert set(found) == wanted


def test_upcast_is_modelled_as_any_other_kernel_and_moves_x_and_y_in_fp32() -> None:
    model = modelled((1,))
    cast = arm(model, "upcast", "gemv")
    assert cast.traffic.bytes_read == 2 * 4096 * 4096 + 4 * 4096
    moved = 2 * 4096 * 4096 + 4 * (4096 + 4096)
    assert cast.estimate.parts_s["dram"] == pytest.approx(moved / (3350e9 * 0.87))
    assert arm(model, "upcast", "two-launches").estimate.reason == device.NOT_COMPILED
    _, comparisons = tabulate(model, workload(model))
    layer = next(c for c in comparisons if c.operator == LAYER)
    assert layer.upcast.variant == "gemv"
    assert layer.speedup_upcast.value is not None
    assert layer.speedup_lowp.reason == "there is no lowp arm"


def lowp(name: str, gpu: str, batch: int = 256):
    """The estimates of the arm `lowp` on one operator of a wide layer, by implementation."""
    layer = Layer((SQUARE, WIDE), (find_format(name),), (batch,), "bf16")
    board = load_gpu(gpu)
    tiled = {"classes": {**CLASSES, "mma": 16}}
    jobs = jobs_of_layer(layer, [board])
    model = Model(layer, board, {job: replace(planted(job), **tiled) for job in jobs}, {})
    found = [a for a in model.arms if (a.kernel.arm, a.operator) == ("lowp", "o_proj")]
    return model, {a.kernel.implementation: a.estimate for a in found}


@pytest.mark.parametrize(
    ("name", "gpu", "tops"),
    [
        ("int8-ch", "a100", 624),
        ("int8-ch", "rtx4090", 660.6),
        ("fp8_e4m3-ch", "h100", 1978),
        ("fp8_e4m3-ch", "rtx4090", 330.3),
        ("nvfp4", "b200", 9000),
    ],
)
def test_the_product_of_lowp_has_the_rate_of_its_operands(name: str, gpu: str, tops: float) -> None:
    """Datasheets, dense: the RTX 4090 adds FP8 products in fp32 at half its rate, and those of int8 at full."""
    _, found = lowp(name, gpu)
    seconds = 2 * 256 * 4096 * 4096 / (tops * 1e12 * 0.75)
    share = (
        64 * 4 / load_gpu(gpu).sms.value
    )  # of 256 programs of 64 x 64; the busiest has a whole number
    expected = pytest.approx(seconds * ceil(share) / share, rel=2e-3)
    assert found["triton"].parts_s["tensor"] == expected


@pytest.mark.parametrize(
    ("name", "gpu", "bits"), [("int8-ch", "a100", 8), ("nvfp4", "b200", 4 + 8 / 16)]
)
def test_the_product_of_lowp_reads_x_as_it_reads_weights(name: str, gpu: str, bits: float) -> None:
    """256 rows of 4096: in each of 4 x 64 tiles 64 of them once, and y in 16 bits; scales of rows are few."""
    _, found = lowp(name, gpu)
    board = load_gpu(gpu)
    x, words = 256 * 4096 * bits / 8, 4096 * 4096 * bits / 8
    clocks = board.sms.value * board.sm_clock_mhz.value * 1e6
    parts = found["triton"].parts_s
    job = next(j for j in jobs_of_layer(Layer((SQUARE,), (find_format(name),), (256,), "bf16"), [board])
               if j.arm == "lowp")  # fmt: skip
    cut = Cut.of(plan_for(job, 4096, 4096), Problem(4096, 4096, 256))
    requested = cut.along_n * x + 256 / cut.rows_per_pass * words
    assert parts["l2"] == pytest.approx(requested / (24 * clocks), rel=2e-3)
    read = words + x + 2 * 256 * 4096
    efficiency = (board.dram_efficiency or parameters.DRAM_EFFICIENCY).value
    rate = board.memory_gb_per_s.value * 1e9 * efficiency
    assert parts["dram"] == pytest.approx(read / rate, rel=2e-3)


def test_quantizing_x_is_refused_so_lowp_has_a_product_and_no_speedup() -> None:
    model, found = lowp("int8-ch", "h100", 16)
    assert found["triton"].value_s is not None
    assert {found[i].reason for i in ("triton+triton", "triton+torch")} == {device.QUANTIZES}
    assert found["torch"].reason == device.NOT_COMPILED
    load = workload(model).model_copy(update={"formats": ("int8-ch",), "activation": "bf16"})
    _, comparisons = tabulate(model, load)
    layer = next(c for c in comparisons if c.operator == LAYER)
    assert layer.lowp is None
    assert (layer.lowp_product.implementation, layer.lowp_product.variant) == ("triton", "dot")
    for absent in (layer.speedup_lowp, layer.quantization_s):
        assert absent.reason == f"not modelled: {device.QUANTIZES}"


@pytest.mark.parametrize(
    ("name", "gpu", "needs"),
    [("int8-ch", "t4", "8.0"), ("fp8_e4m3-ch", "a100", "8.9"), ("mxfp4", "h100", "10.0")],
)
def test_what_a_board_has_no_instructions_for_is_not_on_it_and_not_refused(
    name: str, gpu: str, needs: str
) -> None:
    model, found = lowp(name, gpu)
    compiled = jobs_of_layer(model.layer, [load_gpu(gpu)])
    assert compiled
    assert "lowp" not in {job.arm for job in compiled}
    here = {i for i, e in found.items() if not e.reason.startswith(NOT_HERE)}
    assert here == (
        {"torch", "triton+torch"} if name == "int8-ch" else set()
    )  # torch has it anywhere
    assert f"need compute capability {needs}, and this GPU has" in found["triton"].reason
    load = workload(model).model_copy(update={"formats": (name,), "activation": "bf16"})
    rows, _ = tabulate(model, load)
    failed = [r for r in rows if r.failure is not None]
    assert {(r.arm, r.implementation) for r in failed} == {("lowp", i) for i in set(found) - here}
    assert all(r.time_s.reason == r.failure and r.limiter is None for r in failed)
    counted = foundation(model)
    assert counted.rows == len(model.arms) - len(failed)
    assert not any(reason.startswith(NOT_HERE) for reason in counted.refused)


def test_unfused_is_two_launches_and_may_be_faster_where_the_cache_holds_the_matrix() -> None:
    model = modelled((1,))
    both = arm(model, "unfused", "default").estimate
    first = arm(model, "dequantize", "ptx").estimate
    second = arm(model, "vendor", "default").estimate
    assert both.value_s == pytest.approx(first.value_s + second.value_s)
    assert both.high_s == pytest.approx(both.value_s * exp(parameters.WIDTH_SMALL_BATCH))
    way_s = 2 * 2 * 4096 * 4096 / (3350e9 * 0.87)  # 34 MB there and back; the cache has 50
    least_s = (both.value_s - way_s) * exp(-parameters.WIDTH_SMALL_BATCH)
    assert both.low_s == pytest.approx(least_s)
    wide = arm(model, "unfused", "default", "gate_up_proj").estimate
    assert wide.low_s == pytest.approx(wide.value_s * exp(-parameters.WIDTH_SMALL_BATCH))


def test_the_layer_is_the_sum_over_its_operators() -> None:
    model = modelled((1,))
    rows, comparisons = tabulate(model, workload(model))
    layer = {r.arm: r for r in rows if r.operator == LAYER}
    parts = [arm(model, "fused", "gemv-ptx", o).estimate for o in ("o_proj", "gate_up_proj")]
    assert layer["fused"].time_s.value == near(parts[0].value_s + 2 * parts[1].value_s)
    assert layer["fused"].time_s.high == near(parts[0].high_s + 2 * parts[1].high_s)
    assert layer["fused"].limiter == parts[1].limiter
    step = next(c for c in comparisons if c.operator == LAYER).extrapolated
    assert step is not None
    assert step.fused_s.value == near(2 * layer["fused"].time_s.value)


def test_a_difference_is_made_of_a_ratio_and_a_time() -> None:
    def around(value: float) -> Quantity:
        w = exp(parameters.WIDTH_SMALL_BATCH)
        return Quantity(value=value, low=value / w, high=value * w, kind="modelled")

    a, b, w = around(3.0), around(2.0), exp(parameters.WIDTH_SMALL_BATCH)
    r = exp(parameters.RATIO_WIDTH_SMALL_BATCH)
    phi = difference(a, b, 1)  # 1.5 / r > 1: its sign is settled
    assert (phi.value, phi.low, phi.high) == near(
        (1.0, 2 / w * (1.5 / r - 1), 2 * w * (1.5 * r - 1))
    )
    assert phi.low > 0
    less = difference(b, around(2.5), 1)  # 0.8 r > 1 > 0.8 / r: it is not
    assert (less.low, less.high) == near((2.5 * w * (0.8 / r - 1), 2.5 * w * (0.8 * r - 1)))
    assert less.low < 0 < less.high
    never = difference(b, around(4.0), 1)
    assert (never.low, never.high) == near((4 * w * (0.5 / r - 1), 4 / w * (0.5 * r - 1)))
    speedup = ratio(a, b, batch=1)
    assert (speedup.value, speedup.low, speedup.high) == near((1.5, 1.5 / r, 1.5 * r))
    wide = exp(parameters.RATIO_WIDTH_LARGE_BATCH)
    assert ratio(a, b, batch=128).high == near(1.5 * wide)
    overhead = ratio(a, b, 1, less=1.0)
    assert (overhead.value, overhead.low) == near((0.5, 1.5 / r - 1))
    lower = a.model_copy(update={"low": 0.3})
    assert ratio(lower, b, batch=1).low == near(0.15 * w / r)
    absent = Quantity(value=None, reason="not modelled: spills", kind="modelled")
    assert ratio(a, absent, 1).reason == difference(absent, a, 1).reason == "not modelled: spills"


def test_r_falls_with_every_pass_over_the_weights() -> None:
    model = modelled((64, 256))
    found = {b: r for _, b, k, r in model.ratios if (k.arm, k.variant) == ("fused", "gemm-ptx")}
    assert found[256].value == pytest.approx(found[64].value / 4)


@pytest.mark.parametrize("key", ["orin", "a10", "a100", "h100", "rtx5090"])
def test_the_ends_of_r_lie_on_either_side_whatever_is_disputed(key: str) -> None:
    """Fast conversions may be on the slow unit; that does not relieve the pipe that they are said to be on."""
    classes = {**CLASSES, "int": 200, "cvt": 40}
    model = modelled((1,), gpu=key, classes=classes, slow_conversions=2)
    assert model.ratios
    assert all(r.low <= r.value <= r.high for _, _, _, r in model.ratios)


# --- the command

APP = typer.Typer(add_completion=False)
APP.command()(dequant.main)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.devices.cuda.find_gpu", lambda: (None, "no driver"))
    monkeypatch.setattr(bench.measure.devices, "nvidia_gpus", lambda: ())


@pytest.fixture
def compilations(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Planted audits in place of a compiler, with changes that a test may add."""
    changes: dict[str, object] = {}

    def audited(jobs: Sequence[Job], *_: object) -> tuple[dict[Job, Audit], dict[Job, str]]:
        return {job: replace(planted(job), **changes) for job in jobs}, {}  # type: ignore[arg-type]

    monkeypatch.setattr(audit_all, "audited", audited)
    return changes


def command(*arguments: str) -> Result:
    return CliRunner().invoke(APP, list(arguments))


def run(output: Path, *arguments: str) -> Result:
    given = ["--gpu", "h100", "--format", "int4-g128", "--batches", "1,64", "--output", str(output)]
    return command(*given, *arguments)


@pytest.mark.usefixtures("compilations")
def test_a_gpu_that_is_not_here_is_modelled_and_nobody_can_miss_it(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "h100.json"
    done = run(output)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("8 of 136 rows refused")
    assert (
        "machine code of this library's kernel" in lines[1]
    )  # upcast in two launches of PyTorch's
    assert lines[2].startswith("MODELLED, NOT MEASURED")
    assert "--gpu h100 is modelled as the H100 SXM5 80 GB, not measured." in done.stderr
    assert "Each value with its 90 % interval." in " ".join(done.stdout.split())
    assert "int4-g128 unfused loses to fp16" in done.stdout
    assert "at every modelled batch, B = 1 to 64." in " ".join(done.stdout.split())
    assert "DRAM" in done.stdout
    assert [path.name for path in output.parent.iterdir()] == [
        "h100.json"
    ]  # no journal, no samples
    with pytest.raises(ProfileError, match="kind 'modelled'"):
        load_profile(output)
    profile = load_profile(output, allow=("modelled",))
    everything = [q for item in (*profile.rows, *profile.comparisons) for q in quantities(item)]
    assert {q.kind for q in everything} == {profile.kind} == {profile.device.kind} == {"modelled"}
    assert all(q.low is not None for q in everything if q.value is not None)
    assert all(r.limiter or r.variant == "two-launches" for r in profile.rows)
    assert not profile.energy.rows
    assert all(r.energy_j.value is None and "joule" not in r.energy_j.reason for r in profile.rows)
    assert profile.modelled is not None
    assert profile.modelled.parameters["memory_gb_per_s"].sort == "datasheet"
    assert len(profile.rows) == 136 + sum(r.operator == LAYER for r in profile.rows)


@pytest.mark.usefixtures("compilations")
def test_other_commands_take_the_profile_and_say_what_it_is(tmp_path: Path) -> None:
    output = tmp_path / "h100.json"
    run(output)
    profile, findings = check.check(output)
    assert {f.topic for f in findings if f.severity == "serious"} <= {"kind", "checkout"}
    assert any(f.found.startswith("The numbers are modelled") for f in findings)
    assert "other boards" in " ".join(f.found for f in findings)
    app = typer.Typer()
    app.command()(report.main)
    printed = CliRunner().invoke(app, [str(output), "--operator", "o_proj"])
    assert printed.exit_code == 0
    assert printed.stdout.splitlines()[2].startswith("MODELLED, NOT MEASURED")
    assert profile.kind == "modelled"


@pytest.mark.usefixtures("compilations")
@pytest.mark.parametrize(
    ("board", "model", "said"),
    [
        ("h100", "Llama-3.1-8B", "16 bits fit this device (15.0 GiB of weights, 79.6 GiB of memory;"),
        ("h100", "Llama-3.1-70B", "16 bits do not fit this device (131.4 GiB of weights, 79.6 GiB of"),
        ("h200", "Llama-3.1-70B", "16 bits fit this device (131.4 GiB of weights, 140.4 GiB of"),
        ("t4", "Qwen3-8B", "16 bits do not fit this device (15.3 GiB of weights, 15.0 GiB of"),
    ],
)  # fmt: skip
def test_whether_16_bits_fit_a_board_is_answered_from_its_data_sheet(
    tmp_path: Path, board: str, model: str, said: str
) -> None:
    output = tmp_path / "x.json"
    assert run(output, "--gpu", board, "--model", model).exit_code == 0
    app = typer.Typer()
    app.command()(trap.main)
    asked = [str(output), "--kind", "modelled", "--no-pictures"]
    text = " ".join(CliRunner().invoke(app, asked).stdout.split())
    assert said in text
    assert "memory is not known" not in text
    assert load_profile(output, allow=("modelled",)).modelled.parameters["memory_gib"].unit == "GiB"


def test_many_refused_rows_make_the_exit_code_1_and_come_first(
    tmp_path: Path, compilations: dict[str, object]
) -> None:
    compilations["stack_bytes"] = 80
    done = run(tmp_path / "h100.json")
    assert done.exit_code == 1
    assert done.stdout.startswith("128 of 136 rows refused: not modelled (94%)")
    assert "120 spills" in done.stdout
    assert f"more than {REFUSED_SHARE:.0%}" in done.stderr
    profile, findings = check.check(tmp_path / "h100.json")
    assert "refused rows" in {f.topic for f in findings if f.severity == "serious"}
    refused = [r for r in profile.rows if r.time_s.value is None]
    assert len(refused) == 128
    reasons = {r.time_s.reason.split(",")[0] for r in refused}
    spilled = "not modelled: spills: values go through local memory"
    assert reasons == {spilled, f"not modelled: {device.NOT_COMPILED}"}
    assert all(r.failure is None for r in refused)


@pytest.mark.usefixtures("compilations")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--require-measured"], "--gpu h100 can only be modelled here"),
        (["--launch", "eager"], "leave out --launch eager."),
        (["--energy", "full"], "leave out --energy full."),
        (["--model", "GPT-9"], "there is no model named 'GPT-9'"),
        (["--gpu", "h9000"], "nothing is known of a GPU named 'h9000'; choose one of a10,"),
        (["--output", "measured/x.json"], "a modelled profile has no place among measured ones"),
    ],
)
def test_what_cannot_be_modelled_is_one_sentence_and_code_2(
    tmp_path: Path, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(tmp_path / "x.json", *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


def test_simulated_devices_are_not_measured_either() -> None:
    done = command("--gpu", "simulated:h100", "--require-measured")
    assert done.exit_code == 2
    assert "can only be simulated here" in done.stderr


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "simulated:h100", " CPU "])
def test_other_devices_are_never_modelled(name: str) -> None:
    assert modelled_board(name) is None


@pytest.mark.usefixtures("no_gpu")
def test_h100_is_the_sxm_board_where_it_is_modelled() -> None:
    assert modelled_board("H100").key == "h100-sxm"


def test_another_gpu_is_an_error_and_never_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "bench.measure.devices.cuda.find_gpu"
    monkeypatch.setattr(found, lambda: ("NVIDIA GeForce RTX 4090", ""))
    with pytest.raises(DeviceError, match="the GPU found is NVIDIA GeForce RTX 4090"):
        modelled_board("h100")
    assert modelled_board("rtx4090") is None  # it is measured
    monkeypatch.setattr(found, lambda: (None, "this build of PyTorch has no CUDA support"))
    monkeypatch.setattr(bench.measure.devices, "nvidia_gpus", lambda: ("GPU 0: NVIDIA L4",))
    with pytest.raises(DeviceError, match=r"has GPU 0: NVIDIA L4, but it cannot be used"):
        modelled_board("h100")
    assert modelled_board("auto") is None


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("echo 'GPU 0: NVIDIA L4 (UUID: x)'", 1),
        ("echo 'NVIDIA-SMI has failed'; exit 9", 0),
        ("true", 0),
    ],
)
def test_the_drivers_tool_is_asked_about_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seen: int
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert len(bench.measure.devices.nvidia_gpus()) == seen


def test_a_profile_that_rests_on_a_model_is_a_modelled_one(
    tmp_path: Path, compilations: dict[str, object]
) -> None:
    output = tmp_path / "h100.json"
    run(output)
    data = json.loads(output.read_text())
    with pytest.raises(ValueError, match="does not rest on a model"):
        Profile.model_validate(data | {"kind": "imported", "rows": [], "comparisons": []})
