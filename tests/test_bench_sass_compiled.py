"""Audits of code that a compiler made: worker processes, foreign binaries, kernels in other files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer
from processes import alive
from typer.testing import CliRunner

from bench import sass as command
from bench.static import audit_pool, foreign
from bench.static.audit import Audit, Job, audit_code, rows_of
from bench.static.audit_pool import Pool, Worker
from bench.static.compile import tool
from bench.static.foreign import ForeignError, audit_binary
from bench.static.sass import disassemble

ROOT = Path(__file__).parent.parent
EXAMPLE = "bench/examples/dequant_gemv.py:gemv"
APP = typer.Typer()
APP.command()(command.main)

# Per pass: one load of 16 bytes, four FFMA; the address, the counter and the branch are the compiler's.
PTX = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry sums(.param .u64 words, .param .u64 out, .param .u32 count)
{
    .reg .b64 %rd<4>; .reg .f32 %f<8>; .reg .b32 %r<4>; .reg .pred %p;
    ld.param.u64 %rd0, [words]; ld.param.u64 %rd1, [out]; ld.param.u32 %r0, [count];
    mov.f32 %f4, 0f00000000; mov.u32 %r1, 0;
AGAIN:
    .pragma "nounroll";
    ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0];
    fma.rn.f32 %f4, %f0, %f0, %f4; fma.rn.f32 %f4, %f1, %f1, %f4;
    fma.rn.f32 %f4, %f2, %f2, %f4; fma.rn.f32 %f4, %f3, %f3, %f4;
    add.u64 %rd0, %rd0, 16; add.u32 %r1, %r1, 1;
    setp.lt.u32 %p, %r1, %r0;
    @%p bra AGAIN;
    st.global.f32 [%rd1], %f4;
    ret;
}
"""


@pytest.fixture(scope="module")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cubin")
    (folder / "sums.ptx").write_text(PTX)
    subprocess.run(
        [tool("ptxas"), "-arch=sm_90", folder / "sums.ptx", "-o", folder / "sums.cubin"], check=True
    )
    return folder / "sums.cubin"


def test_a_foreign_function_by_hand(cubin: Path) -> None:
    (audit,) = audit_binary(cubin, False, "^su")
    assert (audit.name, audit.capability, audit.looped) == ("sums", 90, True)
    assert audit.loads == {128: 1}
    assert audit.classes["fp32"] == 4
    assert audit.classes["load"] == 1
    assert audit.instructions <= 16
    assert (audit.spills, audit.shared_bytes, audit.weights) == (0, 0, None)
    assert audit.registers is not None
    assert 8 <= audit.registers <= 32


def test_both_disassemblers_say_the_same(cubin: Path) -> None:
    """Ours are read with nvdisasm -json, foreign ones with cuobjdump."""
    read = disassemble(cubin.read_bytes(), tool("nvdisasm"))["sums"]
    (audit,) = audit_binary(cubin, False, "sums", weights=4)
    ours = audit_code("sums", 90, read, weights=4)
    assert replace(ours, registers=audit.registers, shared_bytes=audit.shared_bytes) == audit


def test_the_command_on_a_foreign_binary(cubin: Path) -> None:
    done = CliRunner().invoke(APP, ["--cubin", str(cubin), "--json"])
    (row,) = json.loads(done.stdout)["kernels"]
    assert (row["instructions_per"], row["instructions"]["fp32"]) == ("pass", 4)
    assert row["ratios"] == {}
    asked = ["--cubin", str(cubin), "--weights", "8", "--format", "int4-g128"]
    done = CliRunner().invoke(APP, [*asked, "--json"])
    (row,) = json.loads(done.stdout)["kernels"]
    assert (row["instructions_per"], row["instructions"]["fp32"]) == ("weight", 0.5)
    assert row["ratios"]["h100-sxm"]["value"] > 0
    assert "Give --weights N" in CliRunner().invoke(APP, asked[:2]).output
    assert "Give --weights N" not in CliRunner().invoke(APP, asked).output


def test_functions_that_are_not_there(cubin: Path) -> None:
    with pytest.raises(ForeignError, match=r"has 'gemm' in it; of 1 names the first are: sums\.$"):
        audit_binary(cubin, False, "gemm")
    with pytest.raises(ForeignError, match="no function for sm_80 whose name"):
        audit_binary(cubin, False, "sums", [80])


def test_a_gate_on_a_foreign_binary_needs_weights(cubin: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text('[[limit]]\nkernel = "sums"\nfp32 = 0.4\nspills = 0')
    asked = ["--cubin", str(cubin), "--gate", str(gate)]
    done = CliRunner().invoke(APP, asked)
    assert done.exit_code == 2
    assert "give --weights" in done.stderr
    done = CliRunner().invoke(APP, [*asked, "--weights", "8"])
    assert done.exit_code == 1
    assert done.stderr == "gate: sums on sm_90: fp32 is 0.5, limit 0.4.\n"


def test_real_kernels_by_hand() -> None:
    """gemv of int8: 128 weights a pass and one conversion each, of which bypass has none."""
    fused = Job("fused", "gemv", "int8-ch", "fp16", 1, 90)
    jobs = [fused, replace(fused, arm="bypass")]
    with Pool() as pool:
        answers = dict(pool.answers([{"job": asdict(job)} for job in jobs]))
    audits = {job: answers[i] for i, job in enumerate(jobs)}
    assert all(isinstance(audit, Audit) for audit in audits.values()), audits
    rows = {row.name.split("/")[1]: row for row in rows_of(audits)}  # type: ignore[arg-type]
    extra = rows["fused-bypass"]
    assert extra.weights == 128
    assert extra.value("cvt") == 1.0
    assert extra.value("load") == 0.0
    assert extra.value("half2") == pytest.approx(0.0, abs=0.05)
    assert rows["fused"].audit is not None
    assert rows["fused"].audit.slow_conversions == 0  # I2FP on sm_90
    assert rows["fused"].audit.loads == {128: 12}


def test_a_compiler_that_dies_costs_one_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    if json.loads(line)['n'] == 1: os.abort()\n"
        "    if json.loads(line)['n'] == 2: print('no JSON', flush=True); continue\n"
        "    print(json.dumps({'error': line.strip()}), flush=True)\n"
    )
    monkeypatch.setattr(audit_pool, "COMMAND", (sys.executable, str(script)))
    with Pool(workers=1) as pool:
        answers = dict(pool.answers([{"n": n} for n in range(4)]))
        folder = Path(pool.folder.name)
    assert answers[0] == '{"n": 0}'
    assert answers[1] == "it does not compile: the compiler itself ended with SIGABRT."
    assert "the worker failed: JSONDecodeError" in str(answers[2])
    assert answers[3] == '{"n": 3}'
    assert not folder.exists()


def test_leaving_the_block_ends_the_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(  # what it starts holds its pipes, too
        "import json, subprocess, sys, time\n"
        "sys.stdin.readline(); child = subprocess.Popen(['sleep', '600'])\n"
        "print(json.dumps({'error': str(child.pid)}), flush=True); time.sleep(600)\n"
    )
    monkeypatch.setattr(audit_pool, "COMMAND", (sys.executable, str(script)))
    processes = []
    readers = []  # alive when the pipes are closed: closing what another thread reads is undefined

    def slow(worker: Worker, request: dict[str, object]) -> object:
        answer = ask(worker, request)
        time.sleep(0.2)
        return answer

    def watched(worker: Worker) -> None:
        readers.extend(thread for thread in pools[0].threads if thread.is_alive())
        stop(worker)

    def interrupted() -> None:
        try:
            with Pool(workers=1) as pool:
                pools.append(pool)
                for _, child in pool.answers([{}, {}]):
                    children.append(child)
                    processes.append(pool.workers[0].process)
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            ended.extend(pools)

    pools: list[Pool] = []
    ended: list[Pool] = []
    children: list[object] = []
    ask, stop = Worker.ask, Worker.stop
    monkeypatch.setattr(Worker, "ask", slow)
    monkeypatch.setattr(Worker, "stop", watched)
    leaving = threading.Thread(target=interrupted, daemon=True)  # so that a hang fails
    leaving.start()
    leaving.join(timeout=20)
    assert ended == pools
    (process,) = processes
    assert process is not None
    assert process.poll() is not None
    assert readers == []
    assert alive([int(str(children[0]))], b"sleep") == []


@pytest.mark.parametrize("asked", [False, True])
def test_what_a_dead_worker_started_is_ended(
    asked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It died between two requests; where the next one is to say so, its child holds no pipe."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, subprocess, sys\n"
        f"pipes = {dict.fromkeys(('stdin', 'stdout'), subprocess.DEVNULL) if asked else {}}\n"
        "sys.stdin.readline(); child = subprocess.Popen(['sleep', '600'], **pipes)\n"
        "print(child.pid, flush=True); os._exit(1)\n"
    )
    monkeypatch.setattr(audit_pool, "COMMAND", (sys.executable, str(script)))
    worker = Worker({**os.environ})
    process = worker.process = worker._start()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    child = int(process.stdout.readline())
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if asked:
        assert worker.ask({}) == "it does not compile: the compiler itself ended with exit code 1."
    worker.stop()
    assert alive([child], b"sleep") == []


def test_somebody_elses_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no loop, and 8 programs of 4 warps share 30 x 512 weights: 15 for each lane."""
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(APP, ["--source", EXAMPLE, "--gpu", "h100,h200,a100", "--json"])
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["kernels"]
    assert [row["arch"] for row in rows] == ["sm_90", "sm_80"]
    for row in rows:
        assert (row["kernel"], row["weights_per_pass"]) == ("dequant_gemv.py:gemv", 15)
        assert not row["audit"]["looped"]
        assert row["audit"]["num_warps"] == 4
        assert row["audit"]["spills"] == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("bench/examples/dequant_gemv.py:nothing", "has no kernel named nothing; it has: gemv."),
        ("bench/examples/missing.py:gemv", "there is no kernel file"),
        ("bench/examples/dequant_gemv.cu:gemv", "--source takes a Triton file (.py), not"),
    ],
)
def test_sources_that_cannot_be_used(
    source: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(APP, ["--source", source, "--gpu", "h100"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_loads_no_compiler() -> None:
    code = (
        "import sys, bench.sass\n"
        "heavy = {'torch', 'numba', 'triton', 'scipy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


GARBLED = r"""#!/bin/sh
case "$1" in
--extract-elf) printf 'Extracting \377 k.1.sm_90.cubin\n'; : > k.1.sm_90.cubin ;;
--dump-resource-usage) printf 'Function na\377me:\n  REG:8 STACK:0 SHARED:16\n' ;;
--dump-sass)
    printf 'code for sm_90\n\t\tFunction : na\377me\n'
    printf '        /*0000*/                   FADD R1, R2, R3 ;\n'
    printf '        /*0010*/                   EXIT ;\n' ;;
esac
"""


def test_what_a_tool_prints_need_not_be_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in a binary may have any bytes; each of the three calls of cuobjdump meets one."""
    fake = tmp_path / "cuobjdump"
    fake.write_text(GARBLED)
    fake.chmod(0o755)
    monkeypatch.setattr(foreign, "tool", lambda name: fake)
    library = tmp_path / "library.so"
    library.write_bytes(b"")
    [found] = audit_binary(library, True, "^na", weights=2)
    assert (found.name, found.capability, found.registers) == ("na\ufffdme", 90, 8)
    assert (found.instructions, found.shared_bytes) == (2, 16)
