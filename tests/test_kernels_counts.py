"""Counting machine instructions: by hand on small listings, and on a kernel whose counts are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench.static import sass, targets
from kernels.formats import find_format

CODE = """
import json, sys
from bench.static import sass
from bench.static.audit import Job, audit_job
for arm, variant, name, activation in json.load(sys.stdin):
    audit = audit_job(Job(arm, variant, name, activation, 1, 90))
    print(json.dumps({
        "weights": audit.weights, "loads": audit.loads, "spills": audit.spills,
        "classes": [audit.classes.get(name, 0) for name in sass.CLASS_NAMES],
        "instructions": audit.instructions, "integer_to_float": audit.slow_conversions,
        "warps": audit.resident_warps,
    }))
"""


def listing(text: str) -> sass.Code:
    """Instructions from lines of `[@predicate] opcode operands`."""
    raw = []
    for line in text.strip().splitlines():
        words = line.split(maxsplit=2)
        predicate = words.pop(0) if words[0].startswith("@") else ""
        opcode, *operands = " ".join(words).split(maxsplit=1)
        raw.append({"opcode": opcode, "operands": "".join(operands), "predicate": predicate})
    return sass.parse(raw)


# sm_80's way to write a loop with a shuffle: 0x60 to 0x80 run one lane's part when a warp has parted.
DIVERGENT = """
MOV R1, 0x0
LDG.E.128 R4, [R2]
BRA.DIV ~URZ, 0x60
SHFL.IDX R5, R4, 0x1, 0x1f
FFMA R0, R5, R4, R0
BRA 0x90
WARPSYNC 0xffffffff
SHFL.IDX R5, R4, 0x1, 0x1f
BRA 0x40
@P0 BRA 0x10
EXIT
BRA 0xb0
"""


def test_cold_copies_for_parted_warps_are_not_counted() -> None:
    hot = sass.hot_path(listing(DIVERGENT))
    assert [i.index for i in hot] == [1, 2, 3, 4, 5, 9]
    assert sass.per_class(hot) == {"load": 1, "exchange": 1, "fp32": 1, "other": 3}


def test_a_guarded_block_is_counted() -> None:
    """Whether it runs depends on the data: the count is the most that a pass may take."""
    code = listing(
        """
        LDG.E.128 R4, [R2]
        @!P1 BRA 0x40
        IADD3 R5, R4, 0x1, RZ
        IADD3 R5, R5, 0x1, RZ
        LOP3.LUT R6, R5, 0xf000f, R7, 0xea, !PT
        BRA.U !UP0, 0x0
        EXIT
        """
    )
    assert len(sass.hot_path(code)) == 6
    assert sass.per_class(sass.hot_path(code)) == {"load": 1, "int": 3, "other": 2}


def test_without_a_loop_the_whole_function_counts_but_not_its_padding() -> None:
    code = listing(
        "LDG.E R1, [R2]\nI2F.F16.U32 R3, R1\n@P0 EXIT\nSTG.E [R4], R3\nEXIT\nBRA 0x50\nNOP"
    )
    assert [i.opcode for i in sass.hot_path(code)] == [
        "LDG.E", "I2F.F16.U32", "EXIT", "STG.E", "EXIT",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("opcode", "name"),
    [
        ("LOP3.LUT", "int"), ("IMAD.MOV.U32", "imad"), ("PRMT", "int"), ("UIADD3", "other"),
        ("HFMA2.MMA", "half2"), ("HADD2.F32", "half2"), ("HFMA2.BF16_V2", "half2"),
        ("IMAD.WIDE.U32", "imad"), ("IDP.4A.U8.S8", "imad"), ("UIMAD.WIDE", "other"),
        ("FSETP.GT.AND", "int"), ("FSEL", "int"), ("FMNMX", "int"), ("POPC", "cvt"), ("FLO.U32", "cvt"),
        ("FFMA2", "fp32"), ("I2FP.F32.U32", "cvt"), ("F2FP.F16.E4M3.UNPACK_B", "cvt"),
        ("HMMA.16816.F32", "mma"), ("HGMMA.64x16x16.F32", "mma"),
        ("IMMA.16832.S8.S8.SAT", "mma"), ("QMMA.16832.F32.E4M3.E4M3", "mma"),
        ("IGMMA.64x64x32.S8.S8", "mma"), ("UTCQMMA", "mma"), ("LDSM.16.M88.4", "exchange"),
        ("LDGSTS.E.BYPASS.128", "load"), ("BAR.SYNC.DEFER_BLOCKING", "other"),
    ],
)  # fmt: skip
def test_classes_of_opcodes(opcode: str, name: str) -> None:
    assert sass.class_of(listing(opcode)[0]) == name


def test_targets_name_formats_that_exist() -> None:
    for arm, name, activation in targets.TARGETS:
        assert find_format(name).quantized
        assert arm in ("fused", "dequantize")
        assert activation in ("fp16", "bf16")


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, ...], dict[str, object]]:
    """Counts of kernels on sm_90, from a process that may compile."""
    cases = [("fused", "gemv", "int8-ch", "fp16"), ("bypass", "gemv", "int8-ch", "fp16")]
    cases += [(arm, targets.TUNED[arm], *rest) for arm, *rest in targets.TARGETS]
    cases += [
        ("bypass", targets.TUNED[arm], *rest) for arm, *rest in targets.TARGETS if arm == "fused"
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(cases),
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


def test_a_real_kernel_by_hand(counted: dict[tuple[str, ...], dict[str, object]]) -> None:
    """4 rows x 2048 weights over 64 lanes: 128 each, in 8 loads of 16 bytes; their 32 x in 4."""
    fused, bypass = (counted[arm, "gemv", "int8-ch", "fp16"] for arm in ("fused", "bypass"))
    for count in (fused, bypass):
        assert count["weights"] == 128
        assert count["loads"] == {"128": 12}
        assert sum(count["classes"]) == count["instructions"]  # type: ignore[call-overload]
    where = sass.CLASS_NAMES.index
    assert fused["classes"][where("cvt")] == 128  # type: ignore[index]
    assert fused["classes"][where("load")] == 12  # type: ignore[index]
    assert bypass["classes"][where("cvt")] == 0  # type: ignore[index]
    assert 128 <= bypass["classes"][where("fp32")] <= 128 + 4  # type: ignore[index]
    assert fused["integer_to_float"] == 0  # I2FP, which is not on the slow unit


@pytest.mark.parametrize("key", targets.TARGETS, ids="-".join)
def test_tuned_kernels_reach_their_targets(
    key: tuple[str, str, str], counted: dict[tuple[str, ...], dict[str, object]]
) -> None:
    arm, name, activation = key
    count = counted[arm, targets.TUNED[arm], name, activation]
    assert count["instructions"] / count["weights"] <= targets.TARGETS[key]  # type: ignore[operator]
    assert count["integer_to_float"] == 0
    assert not count["spills"]
    if arm == "fused":
        bypass = counted["bypass", targets.TUNED[arm], name, activation]
        assert bypass["loads"] == count["loads"]
        assert bypass["weights"] == count["weights"]
        assert bypass["warps"] == count["warps"]
        assert not bypass["spills"]
