"""The command for kernel authors: right kernels pass, planted bugs are named, bad input is one sentence.

Kernels run in processes of their own: this one interprets Triton, and an interpreted kernel cannot be
compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench import emulate
from bench.static import build, trial, trial_report
from bench.static.build import SourceError, match_signature, triton_type
from bench.static.ptx.counters import Access, Report
from bench.static.ptx.problem import KINDS, SUBNORMAL_STEPS, Bfloat16, Draw, Problem, bf16
from bench.static.trial import Trial, Worst, changed_inputs, furthest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "bench" / "examples" / "dequant_gemv.py"
TWIN = EXAMPLE.with_suffix(".cu")
WORKERS = 2

STATED = """
import numpy as np
from bench.static.ptx.problem import Problem

def problem(draw):
    return Problem(
        args={"x": np.zeros(32, np.float32)}, expected={"x": np.ones(32)}, tolerance=1e-6, BLOCK
    )
"""


def executed(
    cache: Path, *arguments: str | Path, module: str = "bench.emulate"
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "COLUMNS": "80", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def variant(folder: Path, original: Path, name: str, old: str, new: str) -> Path:
    """A copy of an example with one planted change, which must be there to be made."""
    text = original.read_text()
    assert text.count(old) == 1, old
    copy = folder / name / original.name
    copy.parent.mkdir()
    copy.write_text(text.replace(old, new))
    return copy


def line_of(path: Path, text: str) -> int:
    """Where a text stands in a file, counted from 1."""
    return 1 + next(i for i, line in enumerate(path.read_text().splitlines()) if text in line)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """The command on the examples and on wrong variants of them, by name."""
    folder = tmp_path_factory.mktemp("emulate")

    def triton(name: str, old: str, new: str) -> tuple[str, ...]:
        copy = variant(folder, EXAMPLE, name, old, new)
        return (f"{copy}:gemv", "--target", "sm_90")

    def cuda(name: str, old: str, new: str) -> tuple[str, ...]:
        copy = variant(folder, TWIN, name, old, new)
        return (f"{copy}:gemv", "--problem", str(EXAMPLE), "--target", "sm_90")

    commands = {
        "right": (f"{EXAMPLE}:gemv",),
        "twin": (f"{TWIN}:gemv",),
        "twin-json": (f"{TWIN}:gemv", "--target", "sm_80", "--json", "--seed", "7"),
        "scale": triton("scale", "w // (GROUP // 8)", "w // (GROUP // 4)"),
        "mask": triton("mask", "[:, None], mask=inside)", "[:, None])"),
        "store": triton("store", "tl.store(y_ptr + n", "tl.store(x_ptr + n, n)\n    tl.store(y_ptr + n"),
        "syntax": triton("syntax", "code - 8", "kode - 8"),
        "warps": triton("warps", "num_warps=4", "num_warps=3"),
        "barrier": cuda("barrier", "__syncthreads();", ""),
        "unchecked": (*cuda("unchecked", "__syncthreads();", ""), "--no-race"),
        "shuffle": cuda("shuffle", "step = 16", "step = 8"),
        "sleep": (*cuda("sleep", "__syncthreads();", SLEEP), "--target", "sm_80"),
    }  # fmt: skip
    with ThreadPoolExecutor(WORKERS) as pool:
        done = pool.map(lambda arguments: executed(folder / "cache", *arguments), commands.values())
    return dict(zip(commands, done, strict=True))


SLEEP = """__syncthreads();
#if __CUDA_ARCH__ >= 900
  __nanosleep(1);
#endif
"""
Runs = dict[str, subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("name", ["right", "twin"])
def test_a_right_kernel_passes_on_both_targets(runs: Runs, name: str) -> None:
    run = runs[name]
    assert (run.returncode, run.stderr) == (0, "")
    assert f"{2 * len(KINDS)} of {2 * len(KINDS)} launches are right." in run.stdout
    assert "executed in our PTX emulator, not on hardware" in run.stdout
    assert "Shared-memory races: none found." in run.stdout
    assert "PTX instructions per weight" in run.stdout
    for word in ("sm_80", "sm_90", *KINDS):
        assert word in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_json_says_the_same(runs: Runs) -> None:
    assert runs["twin-json"].returncode == 0
    made = json.loads(runs["twin-json"].stdout)
    assert (made["right"], made["seed"], made["race"]) == (True, 7, "none found")
    assert made["executed"] == "executed in our PTX emulator, not on hardware"
    assert [t["input"] for t in made["trials"]] == list(KINDS)
    assert {t["target"] for t in made["trials"]} == {"sm_80"}
    first = made["trials"][0]
    assert first["verdict"] == "right"
    assert first["worst"]["error"] <= first["tolerance"]
    assert sum(first["ptx_instructions_by_class"].values()) == sum(
        first["ptx_instructions"].values()
    )
    words = next(a for a in first["accesses"] if a["opcode"] == "ld.global.u32")
    assert words["distinct_bytes"] == 30 * 512 / 2  # 30 rows of 512 weights, half a byte each
    assert words["sectors"] == words["distinct_bytes"] / 32  # neighbours: nothing moved in vain


@pytest.mark.parametrize("name", ["scale", "shuffle"])
def test_a_wrong_result_names_the_input_and_the_element(runs: Runs, name: str) -> None:
    run = runs[name]
    assert (run.returncode, run.stderr) == (1, "")
    assert "WRONG on sm_90, random input" in run.stdout
    assert "y_ptr[" in run.stdout
    assert "tolerance 1e-05" in run.stdout.replace("\n", " ")


def test_a_missing_mask_is_out_of_bounds_at_its_line(runs: Runs) -> None:
    run = runs["mask"]
    assert run.returncode == 1
    line = line_of(EXAMPLE, "tl.store(y_ptr")
    told = " ".join(run.stdout.split())
    assert "Shared-memory races: none found before the faults above." in told
    assert (
        f"FAULT on sm_90, random input (10 launches): out of bounds in gemv at dequant_gemv.py:{line}"
        in told
    )


def test_a_missing_barrier_is_a_race_at_its_line(runs: Runs) -> None:
    run = runs["barrier"]
    assert run.returncode == 1
    lines = [line_of(TWIN, "staged[w * 8 + i]"), line_of(TWIN, "staged[k] = x[k]")]
    told = " ".join(run.stdout.split())
    assert any(f"shared-memory race in gemv at dequant_gemv.cu:{line}" in told for line in lines)
    assert "Shared-memory races: found, see above." in told


def test_races_can_be_left_alone(runs: Runs) -> None:
    assert "Shared-memory races: not looked for." in runs["unchecked"].stdout
    assert "shared-memory race in" not in runs["unchecked"].stdout


def test_a_written_input_is_named(runs: Runs) -> None:
    run = runs["store"]
    assert run.returncode == 1
    assert "INPUT CHANGED on sm_90, random input" in run.stdout
    assert "wrote to x_ptr, which `expected` does not name" in " ".join(run.stdout.split())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("syntax", ("gemv does not compile for sm_90: ", "kode is not defined", "in `total +=")),
        ("warps", ("problem() failed on random input: ValueError: `num_warps` should be",)),
    ],
)
def test_what_cannot_be_run_is_one_sentence(runs: Runs, name: str, words: tuple[str, ...]) -> None:
    run = runs[name]
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    for word in words:
        assert word in run.stderr


def test_other_targets_run_when_one_is_not_emulated(runs: Runs) -> None:
    run = runs["sleep"]
    assert (run.returncode, run.stderr) == (2, "")
    told = " ".join(run.stdout.split())
    assert "NOT EMULATED on sm_90: PTX line" in told
    assert "`nanosleep.u32` is not emulated; it is not on the whitelist" in told
    assert f"{len(KINDS)} of {len(KINDS) + 1} launches are right." in told


def command(*arguments: str) -> Result:
    """The command in this process, for what ends before Triton is needed."""
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(emulate.main)
    return CliRunner().invoke(app, list(arguments))


KERNEL = 'extern "C" __global__ void one(float *x) { x[threadIdx.x] = 1; }\n'


@pytest.mark.parametrize(
    ("cuda", "python", "arguments", "sentence"),
    [
        (KERNEL, STATED, ["k.cu"], "name a file and a kernel in it, such as gemv.py:gemv"),
        (KERNEL, STATED, ["k.cu:"], "name a file and a kernel in it"),
        (KERNEL, STATED, ["missing.cu:one"], "there is no kernel file missing.cu."),
        (KERNEL, STATED, ["k.txt:one"], "k.txt should be a Triton file (.py) or a CUDA C++ file"),
        (KERNEL, None, ["k.cu:one"], "there is no file with problem() k.py."),
        (KERNEL, STATED, ["k.cu:one", "--problem", "no.py"], "no file with problem() no.py."),
        (KERNEL, STATED, ["k.cu:one", "--target", "sm_91"], "there is no target 'sm_91'; choose"),
        (KERNEL, STATED, ["k.cu:one", "--target", "90"], "there is no target '90'; choose"),
        (KERNEL, STATED, ["k.cu:one", "--seed", "-1"], "--seed takes a number from 0 up, not -1."),
        (KERNEL, "x = 1", ["k.cu:one"], "k.py has no function problem(draw)."),
        (KERNEL, "x = (", ["k.cu:one"], "k.py cannot be imported: SyntaxError: '(' was never"),
        (KERNEL, "\n1 / 0", ["k.cu:one"], "ZeroDivisionError: division by zero (k.py line 2)."),
        (KERNEL, "exit(3)", ["k.cu:one"], "k.py cannot be imported: SystemExit: 3"),
        (KERNEL, "def problem(draw):\n    return draw.kinds", ["k.cu:one"],
         "problem() failed on random input: AttributeError: 'Draw' object has no attribute 'kinds'"
         " (k.py line 2)."),
        (KERNEL, "def problem():\n    pass", ["k.cu:one"], "TypeError: problem() takes 0 positional"),
        (KERNEL, "def problem(draw):\n    return 3", ["k.cu:one"],
         "problem() in k.py should return a Problem, not int."),
        (KERNEL, STATED.replace(", BLOCK", ""), ["k.cu:one"], "needs Problem(block=...)"),
        (KERNEL, STATED.replace("BLOCK", "block=2048"), ["k.cu:one"], "at most 1024 threads"),
        (KERNEL, STATED, ["k.cu:two"], "there is no kernel named two; the file has: one."),
        (KERNEL.replace('extern "C"', ""), STATED, ["k.cu:one"], 'declare it extern "C".'),
        (KERNEL.replace("= 1", "= y"), STATED, ["k.cu:one"],
         'k.cu does not compile for sm_80: k.cu(1): identifier "y" is undefined.'),
        (KERNEL.replace("*x", "*x, int n"), STATED, ["k.cu:one"],
         "one takes 2 arguments, but its Problem has 1."),
        ("", STATED, ["k.py:problem"], "problem in k.py is not decorated with triton.jit."),
        ("", STATED, ["k.py:one"], "k.py has no kernel named one; it has: none."),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_code_2(
    cuda: str, python: str | None, arguments: list[str], sentence: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("k.cu").write_text(cuda)
    if python is not None:
        Path("k.py").write_text(python.replace("BLOCK", "block=32"))
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_nvrtc_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k.cu").write_text(KERNEL)
    Path("k.py").write_text(STATED.replace("BLOCK", "block=32"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    result = command("k.cu:one")
    assert result.exit_code == 2
    assert "pip install -e '.[cpp]'" in result.stderr


def test_help_loads_neither_torch_nor_triton() -> None:
    code = (
        "import sys, bench.emulate\n"
        "heavy = {'torch', 'numba', 'triton', 'scipy', 'pyarrow', 'cuda'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_abort_of_the_compiler_costs_a_sentence() -> None:
    code = (
        "import os\n"
        "from bench.static.build import SourceError, _apart\n"
        "try:\n"
        "    _apart(os.abort, 'gemv does not compile for sm_90')\n"
        "except SourceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "gemv does not compile for sm_90: the compiler itself ended with SIGABRT.\n"
    )


# What problems are made of


def test_codes_of_every_kind() -> None:
    codes = {kind: Draw(kind).integers(3, 16, (4, 6)) for kind in KINDS}
    assert (codes["zeros"] == 3).all()  # the nearest to zero
    assert (Draw("zeros").integers(-8, 8, 5) == 0).all()
    assert (codes["lowest"] == 3).all()
    assert (codes["highest"] == 15).all()
    assert codes["alternating"].tolist() == [[3, 15] * 3, [15, 3] * 3] * 2
    assert (codes["cancelling"][:, 0::2] == codes["cancelling"][:, 1::2]).all()
    assert (codes["random"] != codes["random 2"]).any()
    for values in codes.values():
        assert values.shape == (4, 6)
        assert values.min() >= 3
        assert values.max() <= 15


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_floats_of_every_kind(dtype: str) -> None:
    values = {kind: Draw(kind).floats((4, 64), dtype) for kind in KINDS}  # type: ignore[arg-type]
    assert (values["zeros"] == 0).all()
    assert set(np.abs(values["large"]).ravel()) == {128.0 if dtype == "fp16" else 2.0**30}
    pairs = values["cancelling"][:, 0::2].astype(float) + values["cancelling"][:, 1::2]
    assert np.abs(pairs).mean() < 0.1 * np.abs(values["cancelling"]).mean()
    smallest_normal = 2.0**-14 if dtype == "fp16" else 2.0**-126
    tiny = np.abs(values["subnormal 1"].astype(float))
    assert tiny.min() > 0
    assert tiny.max() < smallest_normal
    assert len(np.unique(tiny)) > min(SUBNORMAL_STEPS[dtype], 256) / 4
    for drawn in values.values():
        assert drawn.dtype == (np.float16 if dtype == "fp16" else np.float32)
        if dtype == "bf16":
            assert not (drawn.view(np.uint32) & 0xFFFF).any()


def test_subnormals_are_drawn_first_or_later() -> None:
    first, later = Draw("subnormal 1"), Draw("subnormal 2+")
    small = [
        [bool((np.abs(d.floats(8)) < 2.0**-14).all()) for _ in range(3)] for d in (first, later)
    ]
    assert small == [[True, False, False], [False, True, True]]


def test_draws_repeat_and_follow_their_seed() -> None:
    for kind in ("random", "large", "subnormal 1"):
        same = [Draw(kind, seed).floats(64).tolist() for seed in (1, 1, 2)]
        assert same[0] == same[1] != same[2]
    assert (Draw("random").floats(64, positive=True) >= 0).all()
    assert Draw("large").floats((), largest=3).item() in (-3.0, 3.0)
    assert Draw("cancelling").floats(()).shape == ()


def test_bf16_rounds_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.0], np.float32)
    assert bf16(values).bits.tolist() == [0x3F80, 0x3F80, 0x3F82, 0xC000]


def stated(**changes: object) -> Problem:
    whole: dict[str, object] = {
        "args": {"x": np.arange(4, dtype=np.float32), "y": np.zeros(4, np.float32), "n": 4},
        "expected": {"y": np.ones(4)},
        "tolerance": 1e-3,
    }
    return Problem(**(whole | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"args": {"y": [1, 2]}}, "argument y should be a NumPy array or a number, not list."),
        ({"expected": {}}, "`expected` is empty"),
        ({"expected": {"z": np.ones(4)}}, "`expected` names z, which is not an array in `args`."),
        ({"expected": {"n": np.ones(4)}}, "`expected` names n, which is not an array in `args`."),
        ({"expected": {"y": np.ones(5)}}, r"y has shape \(4,\), but `expected` has \(5,\)."),
        ({"tolerance": 0}, "`tolerance` should be above 0, not 0."),
        ({"tolerance": float("nan")}, "`tolerance` should be above 0, not nan."),
        ({"num_warps": 3}, "`num_warps` should be a power of two up to 32, not 3."),
        ({"weights": 0}, "`weights` should be above 0, not 0."),
        ({"grid": 0}, "`grid` should be one to three numbers from 1 up, not 0."),
        ({"grid": (1, 1, 1, 1)}, "`grid` should be one to three numbers"),
        ({"block": (32, 64)}, r"a block has at most 1024 threads, not \(32, 64\)."),
    ],
)
def test_a_problem_that_makes_no_sense(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        stated(**changes)


# How results are judged


@pytest.mark.parametrize(
    ("dtype", "got", "expected", "error"),
    [
        (np.float32, [1, 2], [1, 2], 0),
        (np.float32, [1, 2.5], [1, 2], 0.25),
        (np.float32, [1.5, -4], [1, -4], 0.125),  # over the largest, wherever the error is
        (np.float32, [0, 0], [0, 0], 0),
        (np.float32, [0, np.nan], [0, 1], np.inf),
        (np.float32, [0, np.nan], [0, np.nan], 0),
        (np.float32, [0, 1], [0, np.nan], np.inf),
        (np.float32, [1, np.inf], [1, 2], np.inf),
        (np.float32, [1, np.inf], [1, 1e300], 0),  # beyond the type: infinite is right
        (np.float32, [1, -np.inf], [1, 1e300], np.inf),
        (np.float16, [np.inf, 1], [7e4, 1], 0),
        (np.float16, [2.0**-24, 0], [0, 0], 2.0**-10),  # over the smallest normal number
        (np.int32, [3, 0], [4, 0], 0.25),
        (np.int8, [0, 1], [0, 0], 1),  # over 1
    ],
)
def test_errors(dtype: type, got: list[float], expected: list[float], error: float) -> None:
    problem = stated(args={"y": np.zeros(2, dtype)}, expected={"y": np.array(expected)})
    assert furthest("y", np.array(got, float), problem).error == error


def test_the_furthest_element_is_named() -> None:
    expected = np.arange(6.0).reshape(2, 3)
    problem = stated(args={"y": np.zeros((2, 3), np.float32)}, expected={"y": expected})
    got = expected.copy()
    got[1, 0] += 1
    assert furthest("y", got, problem) == Worst("y", (1, 0), 4.0, 3.0, 0.2)


def test_bf16_results_are_read_as_numbers() -> None:
    argument = bf16(np.array([1.5, -3.0], np.float32))
    problem = stated(args={"y": argument}, expected={"y": np.array([1.5, -2.0])})
    got = trial.from_device(trial.to_device(argument), argument)
    assert furthest("y", got, problem) == Worst("y", (1,), -3.0, -2.0, 0.5)


def test_changed_inputs_are_seen_bit_for_bit() -> None:
    before = {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)}
    after: dict[str, trial.Value] = {"x": np.array([0, -0.0], np.float32), "y": np.ones(2)}
    problem = stated(args=before, expected={"y": np.ones(2)})
    assert changed_inputs(before, after, problem) == ["x"]


def test_arguments_are_copied() -> None:
    original = np.zeros(2, np.float32)
    copy = trial.to_device(original)
    assert isinstance(copy, np.ndarray)
    copy[0] = 1
    assert original[0] == 0


# How arguments meet a signature


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.zeros(1, np.float16), "*fp16"),
        (np.zeros(1, np.uint8), "*u8"),
        (np.zeros(1, np.int32), "*i32"),
        (Bfloat16(np.zeros(1, np.uint16)), "*bf16"),
        (5, "i32"),
        (2**31, "i64"),
        (-(2**31), "i32"),
        (True, "i1"),
        (0.5, "fp32"),
        (None, None),
    ],
)
def test_types_follow_the_values(value: object, kind: str | None) -> None:
    assert triton_type("x", value) == kind


def test_a_dtype_without_a_pointer_type() -> None:
    with pytest.raises(SourceError, match="argument x has dtype complex64, which Triton lacks"):
        triton_type("x", np.zeros(1, np.complex64))


def signature(*names: str, **constexprs: object) -> SimpleNamespace:
    """What is read of a Triton function."""
    import inspect

    parameters = [
        SimpleNamespace(
            name=n,
            is_constexpr=n in constexprs,
            default=constexprs.get(n) or inspect.Parameter.empty,
        )
        for n in names
    ]
    return SimpleNamespace(params=parameters, arg_names=list(names))


def test_defaults_and_order_are_the_kernel_s() -> None:
    problem = stated(constexprs={"K": 8})
    fn = signature("n", "y", "x", "K", "BLOCK", K=None, BLOCK=16)
    assert match_signature(fn, problem) == (
        {"n": "i32", "y": "*fp32", "x": "*fp32"},
        {"BLOCK": 16, "K": 8},
    )


@pytest.mark.parametrize(
    ("fn", "sentence"),
    [
        (signature("x", "y"), "`args` of the Problem has n, which the kernel does not take."),
        (signature("x", "y", "n", "m"), "`args` of the Problem lacks m."),
        (signature("x", "y", "z"), "`args` of the Problem lacks z and has n, which"),
        (signature("x", "y", "n", "K", K=None), "`constexprs` of the Problem lacks K."),
    ],
)
def test_a_problem_for_another_kernel(fn: SimpleNamespace, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        match_signature(fn, stated())


def test_parameters_are_counted() -> None:
    ptx = ".visible .entry f(\n\t.param .u64 f_param_0,\n\t.param .u32 f_param_1\n)\n{ ld.param"
    assert build.parameters(ptx, "f") == 2
    assert build.parameters(".entry g()\n{}", "g") == 0


# How it is printed


def judged(kind: str, error: float, target: str = "sm_90") -> Trial:
    """A trial with counts that are easy to check by hand."""
    access = Access("ld.global.b32", 9, "k.py:3", "global", False, 10, 1280, 640, 40)
    shared = Access("st.shared.b32", 11, None, "shared", True, 10, 1280, 0, 0, 30, 10)
    report = Report("k", target, 2, 64, Counter({"add.s32": 6, "ld.global.b32": 10}),
                    Counter({"integer": 6, "memory": 10}), ("ex2.approx.f32",), (access, shared))  # fmt: skip
    worst = Worst("y", (0,), 1.0, 1.0, error)
    verdict: trial.Verdict = "right" if error < 1e-3 else "wrong"
    return Trial(target, kind, verdict, 1e-3, worst, "" if error < 1e-3 else "it is.", report, 64)


def printed(trials: list[Trial], race: bool = True) -> str:
    from rich.console import Console

    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(trial_report.render("k of k.py", trials, 0, race))
    return capture.get()


def test_tables_hold_the_counts() -> None:
    text = printed([judged("random", 1e-6), judged("zeros", 0.5)])
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "random 1e-06" in rows
    assert "zeros WRONG 0.5" in rows
    assert "WRONG on sm_90, zeros input: it is." in rows
    assert "1 of 2 launches are right." in rows
    assert "memory 5.000" in rows  # 10 warps of 32 threads over 64 weights
    assert "all 8.000" in rows
    assert "k.py:3 10 4.00 50% ld.global.b32" in rows
    assert "sm_90: 20 bank conflicts beyond 10 passes through shared memory." in rows
    assert "PTX line 11: 30 passes where 10 would do, st.shared.b32" in rows
    assert "Computed more exactly here than on hardware: ex2.approx.f32." in rows


def test_many_targets_fit_on_80_columns() -> None:
    targets = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
    text = printed([judged("subnormal 2+", 0.123, target) for target in targets])
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("WRONG 0.12") == len(targets)


def test_json_holds_no_infinity() -> None:
    text = trial_report.as_json("k of k.py", [judged("random", np.inf)], 0, True)
    assert json.loads(text, parse_constant=pytest.fail)["trials"][0]["worst"]["error"] == "inf"
