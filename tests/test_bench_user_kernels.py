"""Somebody else's kernels in a run: found by name, verified first, timed beside ours, and nothing but a row."""

from __future__ import annotations

import importlib.metadata
import io
import multiprocessing as mp
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import user_kernels
from rich.console import Console
from test_bench_dequant import command

import bench.measure.devices
import kernels.cuda
import kernels.peers
from bench import dequant
from bench.analysis.arms import Series, pick_roles
from bench.analysis.decompose import decompose
from bench.examples import my_kernel
from bench.measure import worker
from bench.measure.assemble import write
from bench.measure.devices.cpu import CpuDevice
from bench.measure.journal import Journal, read_journal
from bench.measure.ledger import Ledger, samples_table
from bench.measure.records import Plan
from bench.measure.run import Run
from bench.report import render
from kernels import find_kernels, packing, user
from kernels.formats import find_format
from kernels.user import UserKernelError, check_name, load_kernels
from profiles.schema import Implementation, Operator, Profile, Protocol

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


def test_an_installed_package_registers_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("mine", "user_kernels:right", user.GROUP)

    def entry_points(group: str, name: str = "") -> tuple[importlib.metadata.EntryPoint, ...]:
        return (point,) if group == user.GROUP and name in ("", "mine") else ()

    monkeypatch.setattr(user, "entry_points", entry_points)
    assert check_name("mine") == "mine"
    assert load_kernels(["mine"], "cpu") == [user_kernels.right]
    with pytest.raises(UserKernelError, match=r"registers a kernel 'other' .* there are: mine\."):
        check_name("other")


@pytest.mark.parametrize(
    "name", ["", "a b", "module:", ":kernel", "module:a.b", "path/to.py:kernel"]
)
def test_the_command_refuses_other_names(name: str) -> None:
    result = command("--gpu", "cpu", "--format", "int4-g128", "--kernel", name)
    assert result.exit_code == 2
    assert "error: --kernel takes a name such as my_module:my_kernel" in result.stderr


# ---- the example --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5])
def test_the_example_is_right(batch: int) -> None:
    weights = packing.random_weights(24, 256, INT4, "bf16", seed=3)
    x = packing.random_activations(batch, 256, "bf16", seed=3)
    out = torch.full((batch, 24), float("nan"), dtype=torch.bfloat16)
    my_kernel.kernel.bind(my_kernel.kernel.pack(weights), torch.from_numpy(x).bfloat16(), out)()
    expected = packing.reference("fused", weights, x)
    error = np.abs(out.double().numpy() - expected).max() / np.abs(expected).max()
    assert error < my_kernel.kernel.tolerance


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
    assert dequant.find_peers("cpu") == []
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "peer left out: onnxruntime needs onnxruntime, onnx: pip install -e '.[peers]'.",
        "peer left out: bitsandbytes needs bitsandbytes: pip install -e '.[peers]'.",
        "peer left out: gemlite runs on an NVIDIA GPU only.",
        "peer left out: torchao needs torchao: pip install -e '.[peers]'.",
    ]


# ---- in a run -----------------------------------------------------------------------------------


def quick_device(name: str) -> CpuDevice:
    """The CPU with PyTorch's operators only, which need no compiling."""
    device = CpuDevice()

    def kernels(problem: object) -> object:
        asked = (problem.format, problem.activation, problem.batch)  # type: ignore[attr-defined]
        return tuple(k for k in find_kernels("cpu", *asked) if k.implementation == "torch")

    device.kernels = kernels  # type: ignore[method-assign, assignment]
    return device


def measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str
) -> tuple[Ledger, dict[str, str], Profile]:
    """What a run with these kernels leaves, failures by implementation, and its profile."""
    monkeypatch.setenv("DEQUANT_BENCH_LOCKS", str(tmp_path))
    protocol = Protocol(
        pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=21, processes=1,
        target_half_width=0.05, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    plan = Plan("cpu", "tiny", 2, OPERATORS, (INT4,), (1,), None, None, protocol)
    plan = replace(plan, kernels=tuple(f"user_kernels:{name}" for name in names))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Journal(tmp_path / "run.jsonl") as journal:
        Run(plan, journal, lambda state: None, partial(quick_device)).measure()
    ledger = read_journal(tmp_path / "run.jsonl")
    rows, _ = decompose(samples_table(ledger.rows), ledger.workload, protocol, ledger.facts)
    assert mp.active_children() == []
    failures = {
        row.implementation: row.failure for row in rows if row.failure and row.operator == "up"
    }
    return ledger, failures, write(ledger, tmp_path / "profile.json")


def test_right_and_wrong_kernels_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, failures, profile = measure(tmp_path, monkeypatch, "right", "wrong", "unlucky", "crash")
    assert ledger.plan.kernels[0] == "user_kernels:right"
    assert set(failures) == {"wrong", "unlucky", "crash"}
    assert failures["wrong"].startswith("wrong result: off by 0.5")
    assert failures["unlucky"] == "could not run: out of luck"
    assert failures["crash"] == "it crashed with SIGSEGV"
    blocks = {
        (row["phase"], row["block"]) for row in ledger.rows if row["implementation"] == "mine"
    }
    assert blocks == {(row["phase"], row["block"]) for row in ledger.rows}  # the same as ours
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(render(profile))
    text = console.export_text()
    assert "FAILED unfused (crash, int4-g128) on up at batch 1: it crashed with SIGSEGV." in text


@pytest.mark.proof
def test_a_hanging_kernel_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "KERNEL_DEADLINE_S", 10.0)
    _, failures, _ = measure(tmp_path, monkeypatch, "hang", "right")
    assert failures == {"hang": "it did not finish within 10 s"}


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
