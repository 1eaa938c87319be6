"""What a report says of the arms beside the ladder: lowp, its quantization, upcast, and what is not here."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

from planted_profile import WORKLOAD, profile_of, sample_rows
from rich.console import Console

from bench.analysis.arms import ArmKey, Problem
from bench.analysis.decompose import ArmFacts
from bench.analysis.trust import failures
from bench.report import render
from profiles.schema import NOT_HERE, Profile

OTHERS = {  # seconds at batch 1
    ("lowp", "triton", "dot"): 100e-6,
    ("lowp", "triton+triton", "dot"): 125e-6,
    ("upcast", "triton", "gemv"): 1000e-6,
}
FORMAT = "int8-ch"


def rows_with_others() -> list[dict[str, Any]]:
    """A quiet run of int8 weights, with exact times of the other arms."""
    rows = [row | {"format": FORMAT} for row in sample_rows()]
    for row in rows:
        if row["weight_format"] == "int4-g128":
            row["weight_format"] = FORMAT
    native = [row for row in rows if row["arm"] == "native"]
    for (arm, implementation, variant), time_s in OTHERS.items():
        reads = "bf16" if arm == "upcast" else FORMAT
        other = {"arm": arm, "implementation": implementation, "variant": variant}
        other["weight_format"] = reads
        rows += [row | other | {"time_s": time_s * row["batch"]} for row in native]
    return rows


def profile() -> Profile:
    problem = Problem("o_proj", 1, FORMAT, "eager", "cold")
    facts = {
        ArmKey(problem, "lowp", "triton", "dot", FORMAT): ArmFacts(
            error_vs_reference=1e-3, activation_error=0.0234, configuration="untuned, block_n=32"
        ),
        ArmKey(problem, "lowp", "torch", "scaled_mm", FORMAT): ArmFacts(
            failure=f"{NOT_HERE}FP8 tensor cores need compute capability 8.9"
        ),
    }
    workload = WORKLOAD.model_copy(update={"formats": (FORMAT,)})
    return profile_of(rows_with_others(), workload=workload, facts=facts)


def lines_of(found: Profile) -> list[str]:
    console = Console(width=200, file=StringIO())
    console.print(render(found))
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_product_quantization_and_speed_up_stand_beside_each_other() -> None:
    lines = lines_of(profile())
    at = lines.index("int8-ch: beside the ladder, one layer")
    heads = " ".join(lines[at + 1 : at + 3])
    assert all(word in heads for word in ("lowp W8A8", "product", "quantize x", "upcast"))
    batch, lowp, product, quantization, speedup, upcast, ratio = lines[at + 3].split()
    assert (batch, lowp, product, quantization, upcast) == (
        *("1", "0.125", "0.100", "0.025"),
        "1.000" if upcast == "1.000" else "1.00",
    )
    assert abs(float(speedup) - 500 / 125) < 0.1
    assert abs(float(ratio) - 500 / 1000) < 0.02


def test_the_error_of_quantized_activations_is_a_number_of_its_own() -> None:
    text = " ".join(lines_of(profile()))
    assert "Quantizing the activations changes y by up to 2.3% of its largest value" in text


def test_what_the_device_lacks_is_said_and_fails_no_run() -> None:
    found = profile()
    assert failures(found) == []
    text = " ".join(lines_of(found))
    assert (
        "Not on this device: lowp (torch, int8-ch): FP8 tensor cores need compute capability 8.9."
        in text
    )
    assert "FAILED" not in text


def test_untuned_rows_are_counted() -> None:
    found = profile()
    (row,) = (r for r in found.rows if r.configuration)
    assert (row.arm, row.configuration) == ("lowp", "untuned, block_n=32")
    text = " ".join(lines_of(found))
    assert f"1 of {len(found.rows)} rows ran in an untuned launch configuration" in text


def test_a_run_without_them_has_no_such_table() -> None:
    assert not any("beside the ladder" in line for line in lines_of(profile_of(sample_rows())))


FIELD = {  # arm, implementation, variant: seconds at batch 1
    ("vendor", "torch", "default"): 310e-6,
    ("vendor", "onnxruntime", "1.32.0"): 320e-6,
    ("vendor", "onnxruntime-int8", "1.32.0"): 330e-6,
    ("unfused", "torchao+torch", "0.18.0"): 340e-6,
    ("lowp", "torch+torch", "int_mm"): 350e-6,
    ("lowp", "bitsandbytes", "0.50.2"): 90e-6,
    ("lowp", "bitsandbytes+bitsandbytes", "0.50.2"): 360e-6,
    ("lowp", "bitsandbytes-outliers6+bitsandbytes", "0.50.2"): 370e-6,
}


def test_everybody_s_kernels_fit_into_80_columns_each_by_its_name_and_version() -> None:
    """A product alone (90 us) is no kernel that could take the place of another."""
    rows = rows_with_others()
    rows = [row for row in rows if row["arm"] != "lowp"]
    native = [row for row in rows if row["arm"] == "native"]
    for (arm, implementation, variant), time_s in FIELD.items():
        other = {"arm": arm, "implementation": implementation, "variant": variant}
        rows += [
            row | other | {"weight_format": FORMAT, "time_s": time_s * row["batch"]}
            for row in native
        ]
    workload = WORKLOAD.model_copy(update={"formats": (FORMAT,)})
    console = Console(width=80, file=StringIO())
    console.print(render(profile_of(rows, workload=workload)))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    begin = lines.index("int8-ch: everybody's kernels for one layer, ms")
    end = lines.index("int8-ch: cost of dequantization in one layer")
    text = "\n".join(lines[begin:end])
    assert "…" not in text
    found = dict(zip(*columns(lines[begin + 1 :]), strict=True))
    again = lines.index("int8-ch: everybody's kernels for one layer, ms, continued")
    found |= dict(zip(*columns(lines[again + 1 :]), strict=True))
    told = {" ".join(head.split()): time for head, time in found.items()}
    assert {name: told[name] for name in told if name.split()[0] in ("vendor", "lowp")} == {
        "vendor torch": "0.310",
        "vendor onnxruntime": "0.320",
        "vendor onnxruntime int8": "0.330",
        "lowp torch": "0.350",
        "lowp bitsandbytes": "0.360",
        "lowp bitsandbytes outliers6": "0.370",
    }
    assert told["unfused torchao"] == "0.340"
    said = " ".join(text.split())
    assert "Versions: onnxruntime 1.32.0, torchao 0.18.0, bitsandbytes 0.50.2." in said


def columns(lines: list[str]) -> tuple[list[str], list[str]]:
    """The heads of a table, their lines joined, and the cells of its first row."""
    last = next(i for i, line in enumerate(lines) if line.startswith("B "))
    cells = list(re.finditer(r"\S+", lines[last + 1]))[1:]
    heads = []
    for index, cell in enumerate(cells):
        left = cells[index - 1].end() if index else 2
        heads.append(" ".join(line[left : cell.end()].strip() for line in lines[: last + 1]))
    return heads, [cell[0] for cell in cells]
