"""The CUDA C++ kernels as machine code: registers, spills and instructions per weight."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.static import cuda_audit
from bench.static.cuda_audit import (
    ARCHITECTURES,
    SLACK,
    TARGETS,
    Compiled,
    audit_plan,
)
from bench.static.occupancy import resident_programs
from kernels.cuda.plan import ARMS, GEMV_VARIANTS, SOURCES, gemv_plan
from kernels.formats import find_format

HEADLINES = [(s, f) for s, f in TARGETS if f != "nf4-b64-s16"]
NEVER_BYPASSED = ("LOP3", "PRMT", "F2FP", "LDS")


def compiled(source: str, name: str, arm: str, arch: str) -> Compiled:
    variant = next(v for v in SOURCES if name in SOURCES[v] and SOURCES[v][name].file == source)
    plan = gemv_plan(variant, arm, find_format(name), 4096, 4096, 1)  # type: ignore[arg-type]
    return Compiled(source, name, arm, arch, audit_plan(plan, arch))


@pytest.mark.parametrize(("source", "name"), HEADLINES)
def test_kernels_reach_their_targets_without_spills(source: str, name: str) -> None:
    """`make proof` looks at all kernels, arms and architectures."""
    for arch in ("80", "90a", "100a", "120a"):
        found = compiled(source, name, "fused", arch)
        assert found.failure is None
        assert found.audit.looped
        assert found.audit.registers is not None
        assert found.audit.registers <= 128
        if found.target is not None:
            assert found.instructions_per_weight <= SLACK * found.target


def test_the_declared_weights_are_those_that_the_machine_code_multiplies() -> None:
    """One tensor-core instruction multiplies 256 weights, 8 per lane; one half2 instruction two."""
    for source, name, offsets in (
        ("int4_mma.cu", "int4-g128", 8),
        ("int8_mma.cu", "int8-ch", 8),
        ("fp8_mma.cu", "fp8_e4m3-ch", 0),
        ("nf4_pairs.cu", "nf4-b64", 0),
    ):
        audit = compiled(source, name, "fused", "90a").audit
        assert 8 * (audit.classes["mma"] - offsets) == audit.weights
        bits = find_format(name).bits
        assert audit.weights is not None
        assert audit.loads[128] - 4 == audit.weights * bits // 128  # and four loads of x
    audit = compiled("int4_simt.cu", "int4-g128", "fused", "90a").audit
    assert audit.weights is not None
    products, numbers, widened = audit.weights // 2, audit.weights // 2, 4 * 3
    assert audit.classes["half2"] == pytest.approx(products + numbers + widened, abs=1)


@pytest.mark.parametrize(("source", "name"), HEADLINES)
def test_the_bypass_dequantizes_nothing(source: str, name: str) -> None:
    """Fewer of everything that turns codes into numbers; as many loads of words."""
    fused, bypass = (compiled(source, name, arm, "90a").audit for arm in ("fused", "bypass"))
    assert bypass.loads == fused.loads
    assert bypass.classes.get("cvt", 0) == 0
    assert bypass.classes.get("exchange", 0) == 0
    assert bypass.classes["int"] < fused.classes["int"] + fused.classes.get("cvt", 0) - 20


PRODUCTS = [(v, f) for v in GEMV_VARIANTS for f in SOURCES[v]]
EVERYWHERE = [
    pytest.param(
        a, b, marks=[] if (a, b) in (("80", 1), ("90a", 1), ("120a", 8)) else pytest.mark.proof
    )
    for a in ARCHITECTURES
    for b in (1, 5, 8)
]


@pytest.mark.parametrize(("arch", "batch"), EVERYWHERE)
def test_as_many_blocks_of_bypass_as_of_fused_are_resident(arch: str, batch: int) -> None:
    for variant, name in PRODUCTS:
        weight_format, warps = find_format(name), []
        for arm in ARMS:
            rows = min(batch, SOURCES[variant][name].batches[1])
            plan = gemv_plan(variant, arm, weight_format, 4096, 4096, rows)
            audit = audit_plan(plan, arch)
            assert audit.resident_warps is not None
            warps.append(audit.resident_warps)
        assert warps[0] == warps[1] >= 16, (variant, name, warps)


def test_blocks_that_fit_by_hand() -> None:
    assert resident_programs(90, 64, 1024, 8) == 4  # registers: 65536 / (64 * 256)
    assert resident_programs(90, 65, 1024, 8) == 3  # 65 are handed out as 72
    assert resident_programs(89, 32, 33 * 1024, 8) == 2  # shared memory: 100 / (33 + 1)
    assert resident_programs(89, 32, 1024, 8) == 6  # 48 warps
    assert (
        resident_programs(90, 104, 1024, 2) == 8
    )  # 4 warps of each quarter, though 19 would fit the whole


# What dequantization adds to 128 columns of 32 rows: instructions of a lane, by class. Eight tensor-core
# instructions compute the offset of the integers; of int4, fp32 arithmetic scales it.
DEQUANTIZATION = {
    "int4_mma.cu": {"int": 64 + 16, "mma": 8, "fp32": 6},  # LOP3, shifts
    "int8_mma.cu": {"int": 64, "mma": 8, "fp32": 4},  # PRMT
    "nf4_pairs.cu": {"int": 64 + 64, "exchange": 64},  # shifts, LOP3, LDS
    "fp8_mma.cu": {"cvt": 64},
}


@pytest.mark.parametrize("arch", ["89", "90a", "120a"])
@pytest.mark.parametrize(("source", "name"), [h for h in HEADLINES if h[0] in DEQUANTIZATION])
def test_fused_less_bypass_is_the_dequantization(source: str, name: str, arch: str) -> None:
    """A bypass that moved registers would hide as much of it; uniform instructions are not counted."""
    fused, bypass = (compiled(source, name, arm, arch).audit.classes for arm in ("fused", "bypass"))
    for kind in ("int", "half2", "fp32", "cvt", "mma", "exchange", "load"):
        kinds = ("int", "imad") if kind == "int" else (kind,)  # either pipe can shift
        difference = sum(fused.get(k, 0) - bypass.get(k, 0) for k in kinds)
        assert difference == pytest.approx(DEQUANTIZATION[source].get(kind, 0), abs=6), kind


def test_a_target_that_is_missed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiled("fp8_mma.cu", "fp8_e4m3-ch", "fused", "90a")
    monkeypatch.setitem(TARGETS, ("fp8_mma.cu", "fp8_e4m3-ch"), 0.5)
    assert found.failure is not None
    assert found.failure.endswith("times its target")
    spilled = replace(found, audit=replace(found.audit, spill_instructions=3))
    assert spilled.failure == "spills (3)"
    longer = replace(found, audit=replace(found.audit, unknown_loops=1))
    assert longer.failure == "a loop within the loop: how often it runs is not in the code"


@pytest.mark.proof
def test_no_kernel_fails_anywhere() -> None:
    found = list(cuda_audit.compiled())
    assert {one.arch for one in found} == set(ARCHITECTURES)
    assert [one for one in found if one.failure] == []


def test_the_command_prints_both_tables_and_fails_with_the_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [plan] = [p for name, arm, p in cuda_audit.plans() if (name, arm) == ("fp8_e4m3-ch", "fused")]
    monkeypatch.setattr(cuda_audit, "plans", lambda: iter([("fp8_e4m3-ch", "fused", plan)]))
    monkeypatch.setattr(cuda_audit, "PROBES", cuda_audit.PROBES[8:9])  # LOP3
    monkeypatch.setattr(cuda_audit, "ARCHITECTURES", ("90a",))
    monkeypatch.setattr(cuda_audit.compiled, "__defaults__", (("90a",),))
    monkeypatch.setattr(cuda_audit.proofs, "__defaults__", (("90a",),))
    assert cuda_audit.show(as_json=False) == 0
    out = capsys.readouterr().out
    assert "fp8_mma fp8_e4m3-ch" in out
    assert "LOP3 dependent" in out
    fp8 = [line.split() for line in out.splitlines() if line.startswith("fp8 ")]
    assert fp8[0][1:4] == ["ours:", "fp8_mma.cu", "0.81"]  # the fewest first
    assert "gemlite" in fp8[1]
    assert "3.36" in fp8[1]
    assert max(map(len, out.splitlines())) <= 80
    monkeypatch.setitem(TARGETS, ("fp8_mma.cu", "fp8_e4m3-ch"), 0.5)
    assert cuda_audit.show(as_json=True) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("fp8_mma.cu, fp8_e4m3-ch, fused, sm_90a: needs 1.6")
    [kernel] = json.loads(out)["kernels"]
    assert kernel["architecture"] == "sm_90a"
    assert kernel["spills"] == 0
