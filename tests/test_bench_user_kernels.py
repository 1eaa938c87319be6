"""Somebody else's kernels in a run: found by name, verified first, timed beside ours, and nothing but a row."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing as mp
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import user_kernels
from test_bench_dequant import command
from test_bench_emulate import executed
from typer.testing import Result

import bench.measure.devices
import kernels.cpu
import kernels.cuda
import kernels.peers
from bench import dequant
from bench.analysis.arms import Series, pick_roles
from bench.check import check
from bench.examples import my_format, my_kernel, my_triton_kernel
from bench.measure import run
from bench.measure.devices import Problem
from bench.measure.devices.cpu import CpuDevice
from bench.measure.devices.tensors import DTYPES
from bench.measure.records import Plan
from kernels import find_kernels, packing, user
from kernels.formats import find_format
from kernels.kernel import Kernel, traffic_of
from kernels.packing import Float16
from kernels.user import LostOnImportError, UserKernelError, check_name, fault_of, load_kernels
from profiles.reader import load_profile
from profiles.schema import Implementation, Operator, Profile, Protocol, Traffic

INT4 = find_format("int4-g128")
OPERATORS = (Operator(name="up", n=64, k=256),)

# ---- names --------------------------------------------------------------------------------------


def test_kernels_are_found_by_module_and_attribute() -> None:
    names = ["user_kernels:right", "user_kernels:wrong"]
    assert load_kernels(names, "cpu") == [user_kernels.right, user_kernels.wrong]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["user_kernels:absent"],
            "user_kernels:absent cannot be imported: module 'user_kernels' has",
        ),
        (["no_such_module:kernel"], "cannot be imported: No module named 'no_such_module'"),
        (["user_kernels:not_a_kernel"], "should be a kernels.kernel.Kernel, but it is a int"),
        (["user_kernels:on_cuda"], "is a kernel for 'cuda', but this run is on 'cpu'"),
        (["user_kernels:ours"], r"calls itself fused \(numba, default\)"),
        (["user_kernels:right", "bench.examples.my_kernel:kernel"], "calls itself unfused .mine"),
    ],
)
def test_what_is_no_kernel_for_the_run_is_refused(names: list[str], says: str) -> None:
    with pytest.raises(UserKernelError, match=says):
        load_kernels(names, "cpu")


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("exits_on_import", SystemExit(3)),
        ("raises_on_import", ModuleNotFoundError("No module named 'no_such_module'")),
    ],
)
def test_what_a_module_raises_on_import_is_no_wrong_usage(
    module: str, cause: BaseException
) -> None:
    """That another module is missing is the kernel's fault; that the kernel's own is, the user's."""
    announced: list[str] = []
    with pytest.raises(LostOnImportError) as lost:
        load_kernels(["user_kernels:right", f"{module}:kernel"], "cpu", announced.append)
    assert repr(lost.value.cause) == repr(cause)
    assert announced[-1] == f"{module}:kernel"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("arm", "mine", "its arm should be one of stream, .*, not 'mine'"),
        ("implementation", "a\tb", "its implementation should be up to 64 printable characters"),
        ("variant", "v" * 65, "its variant should be up to 64 printable characters"),
        ("formats", (), r"its formats should be a tuple of names, not \(\)"),
        ("formats", "int4-g128", "its formats should be a tuple of names, not 'int4-g128'"),
        ("activations", ["bf16"], "its activations should be a tuple of names"),
        ("batches", (1,), r"its batches should be the smallest and the largest, not \(1,\)"),
    ],
)
def test_a_record_that_no_run_could_have_a_row_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, field: str, value: object, says: str
) -> None:
    broken = replace(user_kernels.right, **{field: value})  # type: ignore[arg-type]
    monkeypatch.setattr(user_kernels, "right", broken)
    with pytest.raises(UserKernelError, match=f"right is no kernel that can be run: {says}"):
        load_kernels(["user_kernels:right"], "cpu")


def test_every_record_of_ours_and_of_the_field_is_one_that_can_be_run() -> None:
    peers = [getattr(kernels.peers, name.partition(":")[2]) for name in kernels.peers.names("cpu")]
    assert [fault_of(kernel) for kernel in (*kernels.cpu.KERNELS, *peers, *EXAMPLES)] == [None] * (
        len(kernels.cpu.KERNELS) + len(peers) + len(EXAMPLES)
    )


def test_an_installed_package_registers_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("mine", "user_kernels:right", user.GROUP)

    def entry_points(group: str, name: str = "") -> tuple[importlib.metadata.EntryPoint, ...]:
        return (point,) if group == user.GROUP and name in ("", "mine") else ()

    monkeypatch.setattr(user, "entry_points", entry_points)
    assert check_name("mine") == "mine"
    assert load_kernels(["mine"], "cpu") == [user_kernels.right]
    with pytest.raises(UserKernelError, match=r"registers a kernel 'other' .* there are: mine\."):
        check_name("other")


def test_a_name_that_two_packages_register_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("mine", value, user.GROUP)
        for value in ("user_kernels:right", "user_kernels:wrong")
    ]
    monkeypatch.setattr(user, "entry_points", lambda group, name="": tuple(points))
    with pytest.raises(UserKernelError) as refused:
        check_name("mine")
    assert str(refused.value) == (
        "several installed packages register a kernel 'mine'; name one of them: user_kernels:right, "
        "user_kernels:wrong."
    )
    points[1] = points[0]  # the same one, found twice
    assert load_kernels([check_name("mine")], "cpu") == [user_kernels.right]


@pytest.mark.parametrize(
    "name", ["", "a b", "module:", ":kernel", "module:a.b", "path/to.py:kernel"]
)
def test_the_command_refuses_other_names(name: str) -> None:
    result = command("--gpu", "cpu", "--format", "int4-g128", "--kernel", name)
    assert result.exit_code == 2
    assert "error: --kernel takes a name such as my_module:my_kernel" in result.stderr


# ---- the example --------------------------------------------------------------------------------


EXAMPLES = (my_kernel.kernel, my_triton_kernel.kernel, my_format.kernel)


def largest_error(kernel: Kernel, batch: int, activation: Float16 = "bf16") -> float:
    """Of a kernel against its reference, over the largest value of that."""
    weights = packing.random_weights(24, 256, INT4, activation, seed=3)
    x = packing.random_activations(batch, 256, activation, seed=3)
    out = torch.full((batch, 24), float("nan"), dtype=DTYPES[activation])
    kernel.bind(kernel.pack(weights), torch.from_numpy(x).to(out.dtype), out)()
    stated = kernel.reference or partial(packing.reference, kernel.arm)
    expected = stated(weights, x)
    return float(np.abs(out.double().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kernel", EXAMPLES, ids=lambda kernel: kernel.implementation)
@pytest.mark.parametrize("batch", [1, 5])
def test_the_examples_are_right(kernel: Kernel, batch: int) -> None:
    assert largest_error(kernel, batch) < kernel.tolerance


def test_the_triton_example_is_right_in_fp16_too_and_says_where_it_ran() -> None:
    """To fp16's rounding; the interpreter stands in for a GPU, and the kernel is called so."""
    kernel = my_triton_kernel.kernel
    assert largest_error(kernel, 2, "fp16") < 1e-3
    assert (kernel.device, kernel.implementation) == ("cpu", "mine-interpreted")


def test_the_triton_example_compiles_for_gpus_and_is_right_there(tmp_path: Path) -> None:
    """In the emulator: 24 rows are no multiple of a block, two rows of x, two groups of k."""
    stated = Path(__file__).parent / "data" / "my_triton_problem.py"
    kernel = f"{my_triton_kernel.__file__}:gemv"
    targets = ("--target", "sm_80", "--target", "sm_90")
    done = executed(tmp_path, kernel, "--problem", stated, *targets, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["trials"]
    assert {(t["target"], t["verdict"]) for t in found} == {("sm_80", "right"), ("sm_90", "right")}


def test_what_a_kernel_states_of_its_traffic_takes_the_place_of_its_format_s() -> None:
    """W of 8 x 256, two rows of x, by hand."""
    asked = (INT4, "bf16", 8, 256, 2)
    derived = traffic_of(my_triton_kernel.kernel, *asked)
    # half a byte per weight, 16 scales of two bytes, 2 x 256 numbers of x
    assert (derived.bytes_read, derived.bytes_written) == (1024 + 32 + 1024, 32)
    stated = traffic_of(my_kernel.kernel, *asked)
    # a byte per weight, the same scales, two matrices of 16 bits read and written
    assert (stated.bytes_read, stated.bytes_written) == (2048 + 32 + 8192 + 1024, 8192 + 32)
    assert stated.flops == derived.flops == 2 * 2 * 8 * 256
    with pytest.raises(ValueError, match=r"should be three whole numbers, not 8448\.0"):
        traffic_of(user_kernels.uncounted, *asked)


def test_a_reference_of_one_s_own_is_what_a_kernel_is_held_against() -> None:
    device = CpuDevice()
    problem = Problem("up", 64, 256, 3, INT4, "bf16")
    own = device.prepare(problem, user_kernels.own_format)
    assert device.verify(own) < 1e-2
    # log2 of a scale is off by up to a half: a weight by a factor from 0.71 to 1.41
    away = device.reference_error(own)
    assert away is not None
    assert 0.05 < away < 0.42
    plain = device.prepare(problem, replace(user_kernels.own_format, reference=None))
    assert device.reference_error(plain) is None
    assert device.verify(plain) == pytest.approx(
        away, abs=1e-2
    )  # against ours it is off by as much
    with pytest.raises(ValueError, match=r"finite numbers of shape \[3, 64\], but has \[3\]"):
        device.verify(device.prepare(problem, user_kernels.flat))


# ---- what is left out is said -------------------------------------------------------------------


def test_a_run_on_a_gpu_without_cupy_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dequant.say_left_out("cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bench.measure.devices, "find_device", lambda name: "cuda")
    monkeypatch.setattr(kernels.cuda, "missing", lambda: "CuPy is not installed")
    dequant.say_left_out("auto")
    assert capsys.readouterr().err == "CUDA C++ kernels are left out: CuPy is not installed.\n"


def test_peers_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels.peers, "installed", lambda name: None)
    assert dequant.find_peers("cpu", (INT4,), None) == []
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "peer left out: onnxruntime needs onnxruntime, onnx: pip install -e '.[peers]'.",
        "peer left out: bitsandbytes needs bitsandbytes: pip install -e '.[peers]'.",
        "peer left out: gemlite runs on an NVIDIA GPU only.",
        "peer left out: torchao needs torchao: pip install -e '.[peers]'.",
        "peers for int4-g128: none.",
    ]
    monkeypatch.setattr(kernels.peers, "installed", lambda name: "1.32.0")
    dequant.find_peers("cpu", (INT4, find_format("int8-ch"), find_format("mxfp4")), None)
    assert capsys.readouterr().err.splitlines()[1:] == [
        "peers for int4-g128: onnxruntime 1.32.0, onnxruntime-int8 1.32.0.",
        "peers for int8-ch: onnxruntime 1.32.0, onnxruntime-int8 1.32.0, bitsandbytes+bitsandbytes 1.32.0, "
        "bitsandbytes 1.32.0, bitsandbytes-outliers6+bitsandbytes 1.32.0, torchao+torch 1.32.0.",
        "peers for mxfp4: none.",
    ]


def test_peers_that_do_not_take_the_activations_are_named_and_not_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels.peers, "installed", lambda name: "1.32.0")

    def said(device: str, activation: Float16 | None) -> list[str]:
        monkeypatch.setattr(bench.measure.devices, "find_device", lambda name: device)
        dequant.find_peers(device, (INT4, find_format("nf4-b64")), activation)
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if not line.startswith("peer left out")]

    assert said("cpu", "fp16") == [
        "peers for int4-g128: none.",
        "peers for nf4-b64: none.",
        "peers that do not take activations in fp16: onnxruntime 1.32.0, onnxruntime-int8 1.32.0, "
        "bitsandbytes 1.32.0, bitsandbytes+torch 1.32.0.",
    ]
    assert said("cpu", None) == said("cpu", "bf16")
    assert said("cpu", None)[-1].startswith("peers for nf4-b64: bitsandbytes 1.32.0")
    assert said("cuda", None) == [  # in fp16
        "peers for int4-g128: gemlite 1.32.0.",
        "peers for nf4-b64: bitsandbytes 1.32.0, bitsandbytes+torch 1.32.0.",
        "peers that do not take activations in fp16: torchao 1.32.0.",
    ]
    assert said("cuda", "bf16")[0] == "peers for int4-g128: gemlite 1.32.0, torchao 1.32.0."


# ---- in a run -----------------------------------------------------------------------------------


def quick_device(name: str) -> CpuDevice:
    """The CPU with PyTorch's operators only, which need no compiling."""
    device = CpuDevice()
    device.cache_bytes = 1 << 20  # operators so small that it would hold thousands of copies
    about = device.describe().model_copy(update={"last_level_cache_bytes": device.cache_bytes})

    def kernels(problem: object) -> object:
        asked = (problem.format, problem.activation, problem.batch)  # type: ignore[attr-defined]
        return tuple(k for k in find_kernels("cpu", *asked) if k.implementation == "torch")

    device.describe = lambda: about  # type: ignore[method-assign]
    device.kernels = kernels  # type: ignore[method-assign, assignment]
    return device


def measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str
) -> tuple[Result, Profile]:
    """What the command prints and leaves when it measures one small operator with these kernels too."""
    protocol = Protocol(
        pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=21, processes=1,
        target_half_width=100.0, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    plan = Plan("cpu", "tiny", 2, OPERATORS, (INT4,), (1,), None, None, protocol)
    monkeypatch.setattr(dequant, "make_plan", lambda *asked: plan)
    monkeypatch.setattr(run, "Run", partial(run.Run, opener=quick_device))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    full = (name if ":" in name else f"user_kernels:{name}" for name in names)
    asked = [part for name in full for part in ("--kernel", name)]
    path = tmp_path / "profile.json"
    result = command("--gpu", "cpu", "--deadline", "5", "--output", str(path), *asked)
    assert mp.active_children() == []
    return result, load_profile(path)


def test_kernels_that_are_wrong_crash_or_hang_cost_their_rows_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("right", "own_format", "wrong", "unlucky", "uncounted", "crash", "hang")
    result, profile = measured(tmp_path, monkeypatch, *names)
    assert result.exit_code == 1
    rows = {row.implementation: row for row in profile.rows if row.operator == "up"}
    failures = {name: row.failure for name, row in rows.items() if row.failure}
    assert set(failures) == {"wrong", "unlucky", "uncounted", "crash", "hang"}
    assert str(failures.pop("wrong")).startswith("wrong result: off by 0.5")
    assert failures == {
        "unlucky": "could not run: out of luck",
        "uncounted": "could not run: its traffic should be three whole numbers, not 67584.0",
        "crash": "it crashed with SIGSEGV",
        "hang": "it did not finish within 5 s",
    }
    sound = [row for row in rows.values() if not row.failure]
    assert {"torch", "mine", "mine-shift"} <= {row.implementation for row in sound}
    assert {row.blocks for row in sound} == {21}  # theirs the same as ours
    # two matrices of 16 bits, as it states, and not one
    assert rows["mine"].traffic == Traffic(
        **asdict(traffic_of(my_kernel.kernel, INT4, "bf16", 64, 256, 1))
    )
    assert profile.complete
    text = " ".join(result.stdout.split())
    assert "FAILED unfused (crash, int4-g128) on up at batch 1: it crashed with SIGSEGV." in text
    assert (
        "FAILED unfused (hang, int4-g128) on up at batch 1: it did not finish within 5 s." in text
    )
    heads = [line.split() for line in result.stdout.splitlines() if line.startswith("B ")]
    assert any({"mine", "mine-shift"} <= set(head) for head in heads)  # beside each other
    away = rows["mine-shift"].reference_error
    assert away is not None
    assert (
        f"unfused (mine-shift, int4-g128) was compared with a reference of its own: it may differ from what "
        f"all others compute by {away:.1%} of the largest value of y." in text
    )
    assert {row.reference_error for row in sound if row.implementation != "mine-shift"} == {None}


def test_modules_that_are_lost_on_import_are_named_and_cost_the_run_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the profile, in the tables and at once on stderr; and `bench.check` does not overlook it."""
    how = {
        "crashes_on_import:kernel": "it crashed with SIGSEGV",
        "hangs_on_import:kernel": "it did not finish within 5 s",
        "unspeakable_on_import:kernel": r"it raised Unspeakable: out of \x1b[31mluck \ud800",
    }
    result, profile = measured(tmp_path, monkeypatch, *list(how)[:2], "right", *list(how)[2:])
    assert result.exit_code == 1
    assert {lost.name: lost.reason for lost in profile.lost_kernels} == how
    said = [line for line in result.stderr.splitlines() if line.startswith("FAILED")]
    assert said == [
        f"FAILED importing {name}: {why}; the run goes on without it." for name, why in how.items()
    ]
    text = " ".join(result.stdout.split())
    assert all(f"FAILED importing {name}: {why}." in text for name, why in how.items())
    assert profile.complete
    assert {row.blocks for row in profile.rows if row.implementation in ("mine", "torch")} == {21}
    assert not [row for row in profile.rows if row.failure]
    _, findings = check(tmp_path / "profile.json")
    (found,) = [f for f in findings if f.topic == "failed"]
    assert (found.severity, found.affected) == ("caution", 3)
    assert "3 kernels named on the command line could not be imported: crashes_on" in found.found


def test_a_run_whose_kernels_are_all_right_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has no row here is named, and no fault."""
    result, profile = measured(tmp_path, monkeypatch, "right", "elsewhere")
    assert result.exit_code == 0, result.stdout
    assert not [row for row in profile.rows if row.failure]
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warned == [
        "warning: user_kernels:elsewhere has no row: it takes none of these formats and batches."
    ]


def test_a_fused_kernel_without_bypass_is_no_headline() -> None:
    """However fast it is: there would be no φ."""

    def named(arm: str, maker: str) -> Implementation:
        return Implementation(
            arm=arm, implementation=maker, variant="default", weight_format="int4-g128"
        )

    def series(time_s: float) -> Series:
        return Series(np.arange(3), np.full(3, time_s), ())

    arms = {
        named("fused", "numba"): series(2.0),
        named("bypass", "numba"): series(1.5),
        named("fused", "mine"): series(1.0),
    }
    roles = pick_roles(arms, "int4-g128")
    assert roles.fused == named("fused", "numba")
    assert roles.bypass == named("bypass", "numba")
    del arms[named("bypass", "numba")]
    assert pick_roles(arms, "int4-g128").fused == named("fused", "mine")
