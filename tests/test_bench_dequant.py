"""The command line: what it refuses, in one sentence and with which code, and what a run leaves behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fake_device
import pytest
from typer.testing import CliRunner, Result

import bench.measure.devices
import bench.measure.run
from bench import dequant
from bench.dequant import choose_formats, default_output, how_long, make_plan
from bench.measure.devices import DeviceError, names_gpu
from bench.measure.run import longest_s
from kernels.formats import FORMATS, find_format, formats_with_bits
from profiles.reader import load_profile, load_samples
from profiles.schema import Profile

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--gpu", "cpu", "--batches", "1,2", "--format", "int4-g128"]


def command(*arguments: str) -> Result:
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(dequant.main)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs use a device without hardware."""
    use(monkeypatch, fake_device.healthy)


def use(monkeypatch: pytest.MonkeyPatch, opener: object) -> None:
    """Another device, in this process: what real workers do is tested elsewhere."""
    monkeypatch.setattr(bench.measure.run, "Worker", fake_device.InProcess)
    run = bench.measure.run.Run.__init__
    monkeypatch.setattr(
        bench.measure.run.Run,
        "__init__",
        lambda self, plan, journal, report, **others: run(
            self, plan, journal, report, opener, **{"open_meter": fake_device.no_meter, **others}
        ),
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--bits", "17"],
            "no quantized weight format has 17 bits; choose --bits from 1, 2, 3, 4, 5, 6, 7, 8.",
        ),
        (["--batches", "0"], "--batches takes numbers from 1 to 256, not 0."),
        (["--batches", "100000"], "--batches takes numbers from 1 to 256, not 100000."),
        (["--batches", "1,x"], "--batches takes whole numbers such as 1,4,16, not '1,x'."),
        (["--format", "int3"], "there is no weight format named 'int3'; choose one of"),
        (["--format", "bf16"], "bf16 has nothing to dequantize"),
        (["--format", "int8-ch", "--bits", "4"], "has 8 bits, but --bits 4 was given"),
        (["--gpu", "cpu", "--model", "GPT-9"], "GPT-9"),
        (["--gpu", "cpu", "--launch", "graph"], "a CPU has no graphs"),
        (["--activation", "int2"], "--activation takes fp16 or bf16, not 'int2'."),
        (["--launch", "magic"], "--launch takes graph or eager, not 'magic'."),
        (["--gpu", "cpu", "--output", "x.txt"], "--output must be a file that ends in .json"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(arguments: list[str], sentence: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "cuda" names none that could be modelled; what happens to h100 is in test_bench_modelled.py."""
    monkeypatch.setattr(
        "bench.measure.devices.cuda.find_gpu", lambda: (None, "PyTorch finds no CUDA driver")
    )
    result = command("--gpu", "cuda")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: --gpu cuda was asked for, but no usable NVIDIA GPU was found (PyTorch finds no CUDA "
        "driver). Use --gpu auto for what is there, or --gpu cpu to measure the CPU.\n"
    )


def test_another_gpu_than_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bench.measure.devices.cuda.find_gpu", lambda: ("NVIDIA GeForce RTX 4090", "")
    )
    with pytest.raises(DeviceError, match=r"the GPU found is NVIDIA GeForce RTX 4090"):
        bench.measure.devices.find_device("h100")
    assert bench.measure.devices.find_device("rtx4090") == "cuda"
    assert bench.measure.devices.find_device("auto") == "cuda"
    assert bench.measure.devices.find_device("cpu") == "cpu"


def test_names_of_gpus() -> None:
    assert names_gpu("h100", "NVIDIA H100 80GB HBM3")
    assert names_gpu("rtx-4090", "NVIDIA GeForce RTX 4090")
    assert not names_gpu("h100", "NVIDIA H200")
    assert not names_gpu("", "NVIDIA H200")
    assert not names_gpu("l4", "NVIDIA L40S")
    assert not names_gpu("a10", "NVIDIA A100-SXM4-80GB")
    assert names_gpu("a100", "NVIDIA A100-SXM4-80GB")


def test_a_model_whose_width_does_not_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the models in the table all divide by 128, so one is planted."""
    from dataclasses import replace

    from profiles import shapes

    odd = replace(shapes.load_model("Qwen3-0.6B"), hidden=1000)
    monkeypatch.setattr(shapes, "load_model", lambda name: odd)
    result = command("--gpu", "cpu")
    assert result.exit_code == 2
    assert "needs k divisible by its group size 128" in result.stderr
    assert "but k is 1000" in result.stderr


@pytest.mark.usefixtures("fake")
def test_a_run_leaves_a_profile_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "run.json"
    result = command(*QUICK, "--output", str(output))
    assert result.exit_code == 0, result.output
    profile = load_profile(output)
    assert {path.suffix for path in output.parent.iterdir()} == {".json", ".parquet"}
    assert profile.complete
    assert profile.kind == "measured"
    assert profile.workload.batches == (1, 2)
    assert profile.git.commit
    assert len(profile.kernels_sha256) == 64
    samples = load_samples(profile, output.parent)
    assert profile.samples is not None
    assert samples.num_rows == profile.samples.rows
    assert "int4-g128 fused beats bf16" in result.stdout
    assert "Joules: absent, a fake device draws nothing." in result.stdout
    assert str(output) in result.stderr.replace("\n", "")
    assert all(row.energy_j.value is None and row.energy_j.reason for row in profile.rows)


def test_a_wrong_kernel_makes_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, fake_device.with_wrong_bypass)
    result = command(*QUICK, "--output", str(tmp_path / "run.json"))
    assert result.exit_code == 1
    assert "FAILED bypass (fake, int4-g128)" in result.stdout
    assert "wrong result: off by 0.5 of the largest value" in result.stdout.replace("\n", " ")


@pytest.mark.usefixtures("fake")
def test_too_few_converged_rows_make_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unconverged(profile: Profile) -> tuple[int, int]:
        return 8, 10

    monkeypatch.setattr("bench.report.converged_share", unconverged)
    result = command(*QUICK, "--output", str(tmp_path / "run.json"))
    assert result.exit_code == 1


@pytest.mark.usefixtures("fake")
def test_no_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = command(*QUICK, "--output", str(tmp_path / "file" / "run.json"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: cannot write ")
    assert result.stderr.strip().endswith("Choose another --output.")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("where", ["journal", "profile"])
def test_a_full_disk_leaves_no_half_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = "bench.measure.journal.Journal.add" if where == "journal" else "os.replace"
    monkeypatch.setattr(target, full)
    output = tmp_path / "run.json"
    result = command(*QUICK, "--output", str(output))
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert not output.exists()
    if where == "profile":
        left = [path.name for path in tmp_path.iterdir()]
        assert left == ["run.journal.jsonl"], "the samples must survive"
        assert "run.journal.jsonl" in result.stderr


def heed_ctrl_c() -> None:
    """A shell's background jobs, and so tests run in one, inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_keeps_the_finished_blocks(tmp_path: Path) -> None:
    """A real run on this CPU, interrupted like a person would: SIGINT to the whole process group."""
    output = tmp_path / "run.json"
    arguments = [sys.executable, "-m", "bench.dequant", *QUICK, "--output", str(output)]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    journal = output.with_suffix(".journal.jsonl")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_text().count('"phase":"fresh"') > 1:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not output.exists()
    assert f"go on with\n    python -m bench.dequant --resume {journal}" in errors
    assert journal.exists()
    profile = load_profile(output.with_suffix(".incomplete.json"))
    assert not profile.complete
    assert load_samples(profile, tmp_path).num_rows > 0


def test_list_names_every_format_with_its_stored_bits() -> None:
    result = command("--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    rows = [line.split(maxsplit=3) for line in lines if line.strip()]
    assert [*rows[0][:3]] == ["format", "alias", "bits"]
    assert sorted(row[0] for row in rows[1:]) == sorted(f.name for f in FORMATS)
    said = {row[0]: [row[1], row[2], row[3].rstrip()] for row in rows}
    assert said["int4-g128"] == ["W4A16", "4.125", "integers, 16-bit scale per 128"]
    assert said["int8-ch-zp"] == ["W8A16", "8.006", "integers, 16-bit scale and zero per row"]
    assert said["nvfp4"] == ["W4A16/W4A4", "4.5", "e2m1 floats, e4m3 scale per 16, one fp32"]
    assert said["int1-g128"] == ["W1A16", "1.125", "signs, 16-bit scale per 128"]
    assert said["int8-ch"] == ["W8A16/W8A8", "8.004", "integers, 16-bit scale per row"]
    assert max(map(len, lines)) <= 80
    widths = [row[1].partition("/")[0] for row in rows[1:]]
    assert len([1 for a, b in pairwise(widths) if a != b]) == len(set(widths)) - 1, "not in groups"


def test_formats_by_alias_and_name() -> None:
    four = [f for f in FORMATS if f.bits == 4]
    assert choose_formats(None, None) == choose_formats(4, None) == tuple(four)
    assert choose_formats(None, "w4a16, int4-g128,int8-ch") == (*four, find_format("int8-ch"))
    assert choose_formats(4, "W4A16") == tuple(four)
    assert choose_formats(None, "nvint4") == (find_format("nvint4"),)


def test_many_formats_do_not_make_a_name_too_long() -> None:
    for formats in (choose_formats(None, "int4-g128,nf4-b64"), *map(formats_with_bits, (4, 8))):
        name = default_output("simulated:h100", "Llama-3.1-70B", formats).with_suffix("").name
        assert len(f"{name}.01234567.power.parquet") <= 255
        assert ("int4-g128-nf4-b64-" in name) == (len(formats) == 2)


def test_how_long_many_formats_take_is_said_first() -> None:
    """Two formats, one batch: at most 15 s of fresh blocks each, and a pilot of 10 lean blocks for 21."""
    plan = make_plan(
        "simulated:h100", choose_formats(None, "int8-ch,nvfp4"), None, (1,), None, None, 0
    )
    assert longest_s(plan) == pytest.approx(2 * 15 * (1 + 10 / 21 / 2))
    said = how_long(replace(plan, batches=(1, 4, 16)))
    assert said.startswith("2 formats x 3 batches: up to 2 min of timing;")
    assert said.endswith("For less: --format int8-ch, or --batches 1,16.")


def test_a_cpu_takes_both_types() -> None:
    for activation in ("fp16", "bf16", None):
        asked = choose_formats(None, "nvfp4"), None, (1,), activation, None, 0
        assert make_plan("cpu", *asked).activation == activation


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs use a device without hardware whose times vary."""
    use(monkeypatch, fake_device.noisy)


@pytest.mark.usefixtures("quick")
def test_what_a_full_disk_left_is_resumed(tmp_path: Path) -> None:
    """First the journal cannot grow, then the profile cannot be written, then there is room again."""
    output, journal = tmp_path / "run.json", tmp_path / "run.journal.jsonl"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.measure.run.Run, "_plan_fresh", full)
        result = command(*QUICK, "--output", str(output))
    assert result.exit_code == 2
    resume = f"python -m bench.dequant --resume {journal}"
    said = result.stderr.removeprefix(
        "Joules: none will be measured: a fake device draws nothing.\n"
    )
    assert said.strip() == (
        f"error: cannot write {output}: No space left on device.\n"
        f"The samples so far are safe in {journal}; go on with\n    {resume}"
    )
    again = command(*QUICK, "--output", str(output))
    assert again.exit_code == 2
    assert again.stderr == (
        f"error: {journal} holds the samples of a run that was not finished; go on with it by "
        f"{resume}, or choose another --output.\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.replace", full)
        assert command("--resume", str(journal)).exit_code == 2
    assert not output.exists()
    with journal.open("a") as file:
        file.write('{"crc32":"01')
    other = tmp_path / "elsewhere" / "other.json"
    other.parent.mkdir()
    result = command("--resume", str(journal), "--output", str(other))
    assert result.exit_code == 0, result.output
    assert f"warning: the last line of {journal} was torn (12 bytes)" in result.stderr
    assert not journal.exists()
    profile = load_profile(other)
    assert profile.complete
    assert len(profile.resumed) == 1, "the last one only wrote the profile"
    assert "Resumed 1 time after an interruption." in result.stdout


@pytest.mark.usefixtures("quick")
def test_a_resumed_run_takes_its_incomplete_profile_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other: one of the same name that another run left stays."""
    output, journal = tmp_path / "run.json", tmp_path / "run.journal.jsonl"
    part = output.with_suffix(".incomplete.json")
    for other in (None, output, tmp_path / "other.json"):
        with monkeypatch.context() as patch:
            stop_after(patch, 40)
            assert command(*QUICK, "--output", str(output)).exit_code == 130
        assert not load_profile(part).complete
        if other is output:  # as if another run had left it
            text = part.read_text().replace('"created": "20', '"created": "19', 1)
            part.write_text(text)
        arguments = [] if other is None else ["--output", str(other)]
        assert command("--resume", str(journal), *arguments).exit_code == 0
        assert part.exists() == (other is output)
        assert len(list(tmp_path.glob("run.incomplete.*.parquet"))) == int(other is output)


def stop_after(patch: pytest.MonkeyPatch, blocks: int) -> None:
    """Ctrl-C after so many blocks."""
    block, left = bench.measure.run.Run._block, iter(range(blocks))

    def counted(*arguments: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return block(*arguments)  # type: ignore[arg-type]

    patch.setattr(bench.measure.run.Run, "_block", counted)


@pytest.mark.usefixtures("quick")
def test_an_empty_journal_does_not_block_a_run(tmp_path: Path) -> None:
    output, journal = tmp_path / "run.json", tmp_path / "run.journal.jsonl"
    journal.touch()
    result = command("--resume", str(journal))
    assert result.exit_code == 2
    assert "holds no whole header, so nothing was measured; start the run again." in result.stderr
    result = command(*QUICK, "--output", str(output))
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(
        f"warning: {journal} was left by a run that ended before it measured anything; it is begun anew."
    )
    assert load_profile(output).complete
    assert not journal.exists()


@pytest.mark.usefixtures("quick")
def test_a_profile_that_nobody_could_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, journal = tmp_path / "run.json", tmp_path / "run.journal.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("profiles.reader.MAXIMUM_PROFILE_BYTES", 1000)
        result = command(*QUICK, "--output", str(output))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-3].startswith(
        f"error: no profile was written, for nobody could read it: {output} would be "
    )
    assert result.stderr.splitlines()[-2] == f"The samples so far are safe in {journal}; go on with"
    assert list(tmp_path.iterdir()) == [journal]
    assert command("--resume", str(journal)).exit_code == 0


def test_an_output_whose_name_no_profile_could_hold(tmp_path: Path) -> None:
    result = command("--gpu", "simulated:h100", "--output", os.fsdecode(b"r\xff.json"))
    assert result.exit_code == 2
    assert "must have a name of printable UTF-8, not 'r\\udcff.json'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--resume", "x.json"], "--resume takes a file that ends in .journal.jsonl, not x.json."),
        (["--resume", "x.journal.jsonl", "--gpu", "cpu"], "from the journal; leave out --gpu."),
        (["--resume", "x.journal.jsonl", "--format", "int8-ch"], "leave out --format."),
        (["--resume", "x.journal.jsonl", "--output", "y"], "must be a file that ends in .json"),
        (["--resume", "x.journal.jsonl"], "there is no journal x.journal.jsonl"),
    ],
)
def test_what_cannot_be_resumed(arguments: list[str], sentence: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
