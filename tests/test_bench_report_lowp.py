"""What a report says of the arms beside the ladder: lowp, its quantization, upcast, and what is not here."""

from __future__ import annotations

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
