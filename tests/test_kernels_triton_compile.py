"""What the compiler makes of the Triton kernels, for GPUs that need not be here.

The ladder subtracts times of kernels that should differ in one thing. These tests read the machine
code and check that they do: that each stage keeps the work it is named for, that `bypass` keeps
everything but the conversion, and that nothing spills or loads in small pieces. What spills anywhere
else is seen where all kernels are compiled: test_kernels_triton_emulated.py.
"""

from __future__ import annotations

from itertools import combinations

import pytest

from bench.static import sass
from bench.static.compile import compile_kernel
from tests.aot_triton import Job, Report, compile_all

LADDER = ("stream", "unpack", "scale", "bypass", "fused")
TARGETS = (80, 86, 89, 90, 100, 120)
STAGED_TARGETS = (80, 90)
FORMATS = ("int4-g128", "int4-g128-zp", "int8-ch", "int8-g128")
REGIMES = ("gemv", "gemm")
BATCHES = {"gemv": 1, "gemm": 16}
N, K = 4096, 14336  # the wide side of an 8-billion-parameter model; k takes several steps


def job(arm: str, regime: str, capability: int, format_name: str = "int4-g128") -> Job:
    return Job(arm, regime, format_name, "fp16", N, K, BATCHES[regime], capability)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Report]:
    """Reports of the jobs below; the whole module compiles once."""
    jobs = [job("fused", regime, target) for regime in REGIMES for target in TARGETS]
    jobs += [job(a, r, t) for a in LADDER for r in REGIMES for t in STAGED_TARGETS]
    jobs += [job(a, r, 90, f) for a in ("bypass", "fused") for r in REGIMES for f in FORMATS[1:]]
    jobs += [job("bypass", "gemv", 100), job("dequantize", "gemv", 90)]
    jobs += [job("native", r, 90) for r in REGIMES]
    return compile_all(list(dict.fromkeys(jobs)), tmp_path_factory.mktemp("triton"))


def test_nothing_spills(reports: dict[Job, Report]) -> None:
    assert [job for job, report in reports.items() if report.spills] == []


@pytest.mark.parametrize("target", STAGED_TARGETS)
@pytest.mark.parametrize("regime", REGIMES)
def test_stages_are_different_programs(
    reports: dict[Job, Report], regime: str, target: int
) -> None:
    digests = {arm: reports[job(arm, regime, target)].digest for arm in LADDER}
    same = [pair for pair in combinations(LADDER, 2) if digests[pair[0]] == digests[pair[1]]]
    assert same == []


@pytest.mark.parametrize("target", STAGED_TARGETS)
@pytest.mark.parametrize("regime", REGIMES)
def test_conversions_are_where_the_ladder_says(
    reports: dict[Job, Report], regime: str, target: int
) -> None:
    """One conversion per weight in scale and fused; none in the stages that convert nothing."""
    found = {arm: reports[job(arm, regime, target)] for arm in LADDER}
    for arm in ("scale", "fused"):
        assert found[arm].integer_to_float == found[arm].weights
    for arm in ("stream", "unpack", "bypass"):
        assert found[arm].integer_to_float == 0


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("regime", REGIMES)
def test_bypass_is_fused_without_the_conversion(
    reports: dict[Job, Report], regime: str, format_name: str
) -> None:
    """Same loads, same widening of x, same products, no conversion."""
    bypass = reports[job("bypass", regime, 90, format_name)]
    fused = reports[job("fused", regime, 90, format_name)]
    assert bypass.loads == fused.loads
    assert bypass.widened == fused.widened
    assert bypass.tensor_core == fused.tensor_core
    assert bypass.integer_to_float == 0
    spare = 8 if format_name.endswith("zp") else 0  # zero points are converted too, per group
    assert fused.weights <= fused.integer_to_float <= fused.weights + spare
    assert bypass.has_loop
    assert fused.has_loop
    if regime == "gemv":
        assert bypass.multiply_add >= bypass.weights


@pytest.mark.parametrize("target", [80, 90, 100])
def test_bypass_and_fused_run_at_the_same_occupancy(
    reports: dict[Job, Report], target: int
) -> None:
    assert (
        reports[job("bypass", "gemv", target)].warps == reports[job("fused", "gemv", target)].warps
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("regime", REGIMES)
def test_words_are_loaded_once_and_16_bytes_at_a_time(
    reports: dict[Job, Report], regime: str, target: int
) -> None:
    """Scales are the only narrow loads; words and x take exactly the 16-byte loads they fill."""
    fused = reports[job("fused", regime, target)]
    assert set(fused.loads) == {"128", "16"}
    words = fused.weights * 4 // 128
    if regime == "gemv":  # x: 32 values of 16 bits, once for all rows
        assert fused.loads["128"] == words + 32 * 16 // 128
    else:  # x: a tile of 16 rows and 128 columns, spread over all lanes
        x = 16 * 128 * 16 // 128 // (32 * fused.num_warps)
        assert fused.loads["128"] == words + x


@pytest.mark.parametrize("regime", REGIMES)
def test_every_stage_loads_the_words(reports: dict[Job, Report], regime: str) -> None:
    for arm in LADDER:
        found = reports[job(arm, regime, 90)]
        assert found.loads["128"] >= found.weights * 4 // 128
        assert found.loads["16"] >= 1


# fused: AND, convert, subtract and multiply-add; on tensor cores half a pack instead of the last.
# bypass: the multiply-add. The rest is x, addresses and the loop.
@pytest.mark.parametrize(
    ("arm", "regime", "most"),
    [
        ("fused", "gemv", 5.0),
        ("bypass", "gemv", 2.0),
        ("fused", "gemm", 6.6),
        ("bypass", "gemm", 3.6),
    ],
)
def test_instructions_per_weight(
    reports: dict[Job, Report], arm: str, regime: str, most: float
) -> None:
    """A layout conversion slipping into the loop costs whole instructions per weight."""
    found = reports[job(arm, regime, 90)]
    assert found.instructions / found.weights <= most


def test_sixteen_bit_kernels_convert_no_integers(reports: dict[Job, Report]) -> None:
    for regime in REGIMES:
        native = reports[job("native", regime, 90)]
        assert native.integer_to_float == 0
        assert set(native.loads) == {"128"}


def test_unknown_target_is_refused_before_it_aborts_the_process() -> None:
    with pytest.raises(ValueError, match=r"compute capability 88 is not one .* choose from 75, 80"):
        compile_kernel(None, {}, {}, 88)


def test_what_is_not_a_kernel_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"expected a function decorated with triton\.jit, found int"
    ):
        compile_kernel(1, {}, {}, 90)


def test_hot_code_is_the_longest_loop_or_the_one_on_tensor_cores() -> None:
    """Addresses are 16 times the index; the last branch, to itself, only pads the function."""
    short = [{"opcode": "FADD"}, {"opcode": "BRA", "operands": "`(.L_1) 0x0"}]
    long = [{"opcode": "LDG.E.128"}] * 3 + [{"opcode": "BRA.U", "operands": "!UP0,0x20"}]
    padding = [{"opcode": "BRA", "operands": "0x60"}]
    code = sass.parse([*short, *long, *padding])
    assert sass.loops(code) == ((0, 1), (2, 5))
    assert sass.load_widths(sass.hot_code(code)) == {128: 3}
    code = sass.parse([{"opcode": "HMMA.16816.F32"}, short[1], *long, *padding])
    assert sass.count(sass.hot_code(code), sass.TENSOR_CORE) == 1
    assert sass.hot_code(code[6:]) == code[6:]
