"""The hot path of other people's code: hand-written loops, and what is installed against what was typed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench.static import gemlite_code, peer_audit
from bench.static.audit import Audit, Job
from bench.static.peer_code import Counted, blocks, count_code, hot_loop
from bench.static.peers import load_peers
from bench.static.sass import Instruction
from kernels import peers
from profiles.specs import load_gpu


def code(*lines: str) -> tuple[Instruction, ...]:
    """Instructions from "OPCODE operands" with an optional guard in front; `>5` is a jump to number 5."""
    found = []
    for index, line in enumerate(lines):
        guard, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        opcode, _, operands = rest.partition(" ")
        if operands.startswith(">"):
            operands = hex(16 * int(operands[1:]))
        found.append(Instruction(index, opcode, operands, guard))
    return tuple(found)


MOVED = code(
    "MOV",            # 0
    "LDG.E.128",      # 1  head
    "@P1 BRA >6",     # 2  to a block of the loop that was moved behind it
    "LOP3",           # 3
    "@P0 BRA >1",     # 4  back
    "EXIT",           # 5
    "HFMA2",          # 6
    "BRA >3",         # 7  into the middle: not a loop of its own
)  # fmt: skip

ENDS = code(
    "LDG.E.128",      # 0  head
    "@P1 BRA >5",     # 1
    "LDG.E.U8",       # 2  the end of a row, by the byte
    "PRMT",           # 3
    "BRA >6",         # 4
    "LDG.E.128",      # 5
    "@P2 BRA >8",     # 6
    "BRA >10",        # 7
    "BRA.CONV >10",   # 8  parted lanes
    "CALL.ABS.NOINC", # 9
    "FFMA",           # 10
    "@P0 BRA >0",     # 11
    "EXIT",           # 12
)  # fmt: skip


def test_a_loop_is_found_wherever_its_blocks_were_put() -> None:
    assert hot_loop(MOVED) == {1, 2, 3, 4, 6, 7}
    counted = count_code(MOVED, 2)
    assert (counted.instructions, counted.looped, counted.left_out) == (6, True, 0)
    assert counted.per_weight["total"] == 3.0
    assert counted.per_weight["half2"] == 0.5


def test_the_end_of_a_row_and_parted_lanes_are_left_out() -> None:
    counted = count_code(ENDS, 1)
    assert counted.instructions == 7  # 0 1 5 6 7 10 11
    assert counted.left_out == 5
    assert counted.classes["load"] == 2
    assert "int" not in counted.classes


def test_narrow_loads_stay_where_there_are_no_wide_ones() -> None:
    bytes_only = tuple(
        i if i.opcode != "LDG.E.128" else Instruction(i.index, "LDG.E.U8", "") for i in ENDS
    )
    assert count_code(bytes_only, 1).classes["load"] == 3


def test_blocks_begin_where_branches_lead() -> None:
    assert blocks(MOVED, hot_loop(MOVED)) == [[1, 2], [3, 4], [6, 7]]


def test_code_without_a_loop_is_counted_whole_but_for_its_padding() -> None:
    counted = count_code(code("LDG.E.128", "FFMA", "EXIT", "NOP", "BRA >4"), 4)
    assert (counted.instructions, counted.looped) == (3, False)


NESTED = code(
    "LDG.E.128",                         # 0  head
    "NOP",                               # 1
    "BRA >6",                            # 2  to the inner loop, most of which was moved behind
    "FFMA",                              # 3
    "@P1 BRA >0",                        # 4
    "EXIT",                              # 5
    "MOV R7, RZ",                        # 6
    "HFMA2",                             # 7  head of the inner loop
    "@P2 BRA >13",                       # 8
    "VIADD R7, R7, 0x1",                 # 9
    "ISETP.GE.AND P0, PT, R7, 0x3, PT",  # 10
    "@!P0 BRA >7",                       # 11
    "BRA >3",                            # 12
    "LOP3",                              # 13 of the inner loop too
    "BRA >9",                            # 14
)  # fmt: skip


def test_a_loop_within_the_loop_counts_as_often_as_it_runs() -> None:
    """Seven instructions around it, and thrice seven of it: where its blocks lie does not matter."""
    assert hot_loop(NESTED) == set(range(15)) - {5}
    counted = count_code(NESTED, 4)
    assert (counted.classes["half2"], counted.instructions, counted.lower_bound) == (
        3,
        7 + 3 * 7,
        False,
    )


def test_a_loop_of_unknown_length_makes_a_lower_bound() -> None:
    end = Instruction(10, "ISETP.GE.AND", "P0, PT, R7, R20, PT")
    counted = count_code((*NESTED[:10], end, *NESTED[11:]), 4)
    assert (counted.classes["half2"], counted.instructions, counted.lower_bound) == (1, 14, True)


# ---- what was typed -----------------------------------------------------------------------------

TYPED_80 = {"gemm_4bit_simt": 8.34, "kDequantizeBlockwise": 23.25}  # research, tables of 2026-11
TYPED_90 = {
    "gemm_4bit_simt": 8.06,
    "kgemm_4bit_inference_naive": 10.06,
    "kDequantizeBlockwise": 24.06,
}
TYPED_100 = {"gemm_4bit_simt": 7.84}


@pytest.mark.skipif(
    peers.installed("bitsandbytes") != "0.50.2", reason="bitsandbytes 0.50.2 is not installed"
)
@pytest.mark.parametrize(
    ("capability", "typed"), [(80, TYPED_80), (90, TYPED_90), (100, TYPED_100)]
)
def test_what_was_typed_of_bitsandbytes_is_what_its_wheel_holds(
    capability: int, typed: dict[str, float]
) -> None:
    path = peer_audit.bitsandbytes_library()
    assert path is not None
    found = {
        shipped.label: counted.per_weight["total"]
        for shipped, counted in peer_audit.count_shipped(path, capability, "fp16").items()
    }
    for label, value in typed.items():
        assert found[label] == pytest.approx(value, abs=0.006), label


@pytest.mark.skipif(
    peers.installed("gemlite") != "0.6.0.post2", reason="gemlite 0.6.0.post2 is not installed"
)
def test_what_was_typed_of_gemlite_is_within_two_percent_of_what_is_compiled() -> None:
    """512 instructions were typed; here the whole kernel has 519, of the same tile and the same 64 weights."""
    cell = {"format": "int4-g128", "activation": "fp16", "batch": 1}
    [found] = gemlite_code.count_gemlite("H100 SXM5 80 GB", 90, 132, [cell])
    assert isinstance(found, gemlite_code.Gemlite)
    assert "BLOCK_SIZE_N=128 BLOCK_SIZE_K=8 num_warps=1" in found.tile
    typed = load_peers()["gemlite-gemv"].cost.counts.total
    assert found.counted.per_weight["total"] == pytest.approx(typed, rel=0.02)


# ---- the table ----------------------------------------------------------------------------------


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peer is installed, and nothing of ours is compiled."""
    monkeypatch.setattr(peers, "installed", lambda name: None)
    monkeypatch.setattr(peer_audit.cuda_audit, "plans", list)


@pytest.mark.usefixtures("nothing")
def test_what_is_not_installed_is_imported_and_said_to_be() -> None:
    found = peer_audit.audit_peers(load_gpu("h100"), "fp16", {})
    assert {line.kind for line in found.lines} == {"imported"}
    by_name = {line.kernel: line for line in found.lines}
    naive = by_name["bitsandbytes NF4 naive (legacy)"]
    assert (naive.version, naive.per_weight["total"], naive.per_weight["cvt"]) == (
        "0.50.2",
        10.06,
        0.03,
    )
    assert "tinygemm bf16" not in by_name
    assert found.missing[:2] == [
        "bitsandbytes needs bitsandbytes: pip install -e '.[peers]'",
        "gemlite needs gemlite: pip install -e '.[peers]'",
    ]
    data = peer_audit.to_data(found)
    assert data["kernels"][0]["kind"] == "imported"
    bf16 = peer_audit.audit_peers(load_gpu("h100"), "bf16", {})
    sides = {
        line.kernel: line.per_weight["total"] for line in bf16.lines if "tinygemm" in line.kernel
    }
    assert sides == {"tinygemm bf16": 3.3, "tinygemm (PyTorch int4mm), bf16": 4.38}


@pytest.mark.usefixtures("nothing")
def test_a_lower_bound_of_ours_is_marked() -> None:
    job = Job("fused", "gemv", "int4-g128", "fp16", 1, 90)
    audit = Audit(job.name, 90, {"int": 64}, 0, {}, looped=True, weights=64, unknown_loops=1)
    found = peer_audit.audit_peers(load_gpu("h100"), "fp16", {job: audit})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(peer_audit.render(found))
    assert "≥ ours: Triton gemv" in console.export_text()
    bounds = [k["kernel"] for k in peer_audit.to_data(found)["kernels"] if k["lower_bound"]]
    assert bounds == ["ours: Triton gemv"]


@pytest.mark.usefixtures("nothing")
def test_a_lower_bound_of_others_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted({"int": 64}, looped=True, left_out=0, weights=64, lower_bound=True)
    shipped = dict.fromkeys(peer_audit.BITSANDBYTES, counted)
    tile = gemlite_code.Gemlite("gemv", "BLOCK_SIZE_N=128", counted)
    monkeypatch.setattr(peer_audit, "_absent", lambda name: None)
    monkeypatch.setattr(peer_audit, "version", lambda name: "1")
    monkeypatch.setattr(peer_audit, "bitsandbytes_library", lambda: Path("library.so"))
    monkeypatch.setattr(peer_audit, "count_shipped", lambda *_: shipped)
    monkeypatch.setattr(peer_audit, "count_gemlite", lambda *_: [tile] * len(peer_audit.GEMLITE))
    lines = peer_audit.audit_peers(load_gpu("h100"), "fp16", {}).lines
    assert {line.kind for line in lines if line.lower_bound} == {"modelled"}
    assert sum(line.lower_bound for line in lines) == len(shipped) + len(peer_audit.GEMLITE)


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(peer_audit.render(peer_audit.audit_peers(load_gpu("h100"), "fp16", {})))
    lines = console.export_text().splitlines()
    marlin = next(line for line in lines if "Marlin" in line)
    assert marlin.split()[:4] == ["Marlin", "*", "2.59", "0.80"]
    assert max(map(len, lines)) <= width
