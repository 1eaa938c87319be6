"""One run per device: who is refused, what it is told, and that a dead holder holds nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import fake_device
import pytest

from bench.measure.devices import DeviceError
from bench.measure.lock import DeviceBusyError, DeviceLock, lock_path, start_ticks

CPU = fake_device.FakeDevice().describe()
GPU = CPU.model_copy(update={"kind": "cuda", "name": "NVIDIA H100", "uuid_hash": "ab12"})
OTHER_GPU = GPU.model_copy(update={"uuid_hash": "cd34"})


def test_the_second_is_told_who_holds_it() -> None:
    with DeviceLock(CPU), DeviceLock(GPU), DeviceLock(OTHER_GPU):
        with pytest.raises(DeviceBusyError) as refusal, DeviceLock(CPU):
            pass
        assert str(refusal.value).startswith(
            f"the CPU of this machine is in use by process {os.getpid()} (bench.dequant"
        )
        with pytest.raises(DeviceBusyError, match=r"^NVIDIA H100 is in use by process"):
            DeviceLock(GPU).__enter__()
    with DeviceLock(CPU):
        pass


def test_the_file_is_open_to_all_users_and_says_nothing_when_free(own_locks: Path) -> None:
    before = os.umask(0o077)
    try:
        with DeviceLock(GPU):
            pass
    finally:
        os.umask(before)
    path = lock_path(GPU)
    assert path == own_locks / "dequant-bench-cuda-ab12.lock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert path.read_bytes() == b""


def test_a_killed_holder_holds_nothing() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_bench_lock import CPU, DeviceLock\n"
        "with DeviceLock(CPU):\n"
        "    print('held', flush=True)\n"
        "    input()\n"
    )
    here = Path(__file__).resolve().parent
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(here), str(here.parent)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(DeviceBusyError, match=rf"in use by process {process.pid} \("):
        DeviceLock(CPU).__enter__()
    process.kill()
    process.communicate()
    assert json.loads(lock_path(CPU).read_text())["pid"] == process.pid, (
        "it had no time to clear it"
    )
    with DeviceLock(CPU):
        assert json.loads(lock_path(CPU).read_text())["pid"] == os.getpid()


def test_a_number_that_was_given_to_another_process_is_not_believed() -> None:
    with DeviceLock(CPU):
        path = lock_path(CPU)
        facts = json.loads(path.read_text())
        assert facts["start_ticks"] == start_ticks(os.getpid())
        path.write_text(json.dumps(facts | {"start_ticks": facts["start_ticks"] - 1}))
        with pytest.raises(DeviceBusyError, match="in use by another run that does not say"):
            DeviceLock(CPU).__enter__()
        path.write_text("{half")
        with pytest.raises(DeviceBusyError, match="in use by another run that does not say"):
            DeviceLock(CPU).__enter__()
    path.write_text(json.dumps(facts))  # alive and well, but it holds no lock
    with DeviceLock(CPU):
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = lock_path(CPU)
    path.symlink_to(victim)
    with pytest.raises(DeviceError, match="cannot be opened"):
        DeviceLock(CPU).__enter__()
    path.unlink()
    os.link(victim, path)
    with pytest.raises(DeviceError, match="is not the plain file"):
        DeviceLock(CPU).__enter__()
    assert victim.read_text() == "precious"


def test_processes_are_told_apart_by_their_beginning() -> None:
    assert start_ticks(os.getpid()) == start_ticks(os.getpid())
    assert start_ticks(os.getpid()) != start_ticks(1)
    assert start_ticks(2**22 + 1) is None
