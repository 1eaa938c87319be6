"""Specifications of GPUs: every number is explained, and numbers that hang together agree."""

import math
import tomllib
from datetime import date

import pytest
from pydantic import ValidationError

from profiles.specs import SPECS_FOLDER, Gpu, Number, load_gpu, load_gpus, numbers

GPUS = load_gpus()
ISSUE_LIST = (
    *("t4", "a10", "rtx3090", "a100-40", "a100-80", "l4", "l40s", "rtx4090"),
    *("h100-pcie", "h100-sxm", "h200", "b200", "rtx5090", "orin"),
)
NUMBER = {
    "value": 2.0,
    "low": 1.0,
    "high": 3.0,
    "unit": "W",
    "sort": "datasheet",
    "source": "a page",
    "read_on": date(2026, 11, 22),
}

OTHER = {name: NUMBER[name] for name in ("value", "sort", "source", "read_on")}


def test_every_board_that_is_asked_for_is_there() -> None:
    assert set(GPUS) == set(ISSUE_LIST)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_number_has_a_source_and_a_sort_that_fits_it(gpu: Gpu) -> None:
    found = {**numbers(gpu), **(numbers(gpu.multiprocessor) if gpu.multiprocessor else {})}
    assert {"sms", "sm_clock_mhz", "memory_gib", "memory_gb_per_s", "l2_mb"} <= set(found)
    for number in found.values():
        assert len(number.source) > 5
        assert number.read_on.year == 2026
        assert ("recalled" in number.source) <= (number.sort == "assumed")
        assert ("ptxas" in number.source) <= (number.sort in ("toolchain", "assumed"))


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_bandwidth_is_bus_width_times_data_rate(gpu: Gpu) -> None:
    product = gpu.memory_bus_bits.value * gpu.memory_pin_gbit_per_s.value / 8
    bandwidth = gpu.memory_gb_per_s
    assert bandwidth.low * 0.998 <= product <= bandwidth.high * 1.002


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_memory_is_what_its_name_says_less_what_the_driver_keeps(gpu: Gpu) -> None:
    """Datasheets (gigabytes of 2^30 bytes) beside what drivers report: a sixteenth goes to error correction."""
    sold = {
        "t4": 16, "a10": 24, "rtx3090": 24, "a100-40": 40, "a100-80": 80, "l4": 24, "l40s": 48,
        "rtx4090": 24, "h100-pcie": 80, "h100-sxm": 80, "h200": 141, "b200": 180, "rtx5090": 32,
        "orin": 64,
    }  # fmt: skip
    assert 15 / 16 - 0.001 <= gpu.memory_gib.value / sold[gpu.key] <= 1
    in_name = [word for word in gpu.name.split() if word.isdigit() and gpu.name.endswith("GB")]
    assert all(sold[gpu.key] == int(word) for word in in_name)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_tensor_rate_is_a_power_of_two_per_clock_and_multiprocessor(gpu: Gpu) -> None:
    """Vendors quote it below the highest clock on some boards: by 8 % at most here."""
    if gpu.tensor_fp16_tflops is None:
        assert gpu.key == "orin"
        return
    per_clock = gpu.tensor_fp16_tflops.value * 1e6 / gpu.sms.value / gpu.sm_clock_mhz.value
    whole = 2 ** round(math.log2(per_clock))
    assert -0.085 < per_clock / whole - 1 < 0.005


@pytest.mark.parametrize(
    ("name", "sms", "bandwidth", "integer", "half2", "slow", "fast"),
    [
        ("t4", 40, 320.0, 64, 64, 16, 16),
        ("a10", 72, 600.2, 64, 64, 16, 64),
        ("a100", 108, 2039.0, 64, 128, 16, 16),
        ("H100", 132, 3350.0, 64, 128, 16, 64),
        ("GeForce RTX 4090", 128, 1008.0, 64, 64, 16, 64),
        ("b200", 148, 8000.0, 64, 64, 16, 64),
    ],
)
def test_values_against_the_tables_they_come_from(
    name: str, sms: int, bandwidth: float, integer: int, half2: int, slow: int, fast: int
) -> None:
    gpu = load_gpu(name)
    lanes = gpu.multiprocessor
    assert lanes is not None
    assert (gpu.sms.value, gpu.memory_gb_per_s.value) == (sms, bandwidth)
    assert (lanes.integer_lanes.value, lanes.half2_lanes.value) == (integer, half2)
    assert (lanes.conversion_lanes.value, lanes.fast_conversion_lanes.value) == (slow, fast)


def test_published_conflicts_are_kept_and_not_averaged() -> None:
    l4, b200, h100 = load_gpu("l4"), load_gpu("b200"), load_gpu("h100")
    assert (l4.sms.value, [o.value for o in l4.sms.others]) == (58, [60])
    assert [o.value for o in b200.memory_gb_per_s.others] == [7700, 8200]
    assert h100.multiprocessor is not None
    fast = h100.multiprocessor.fast_conversion_lanes
    assert (fast.value, fast.low, [o.value for o in fast.others]) == (64, 16, [16])
    assert fast.disputed
    assert not h100.multiprocessor.integer_lanes.disputed


def test_what_is_not_known_is_absent() -> None:
    orin = load_gpu("orin")
    assert orin.multiprocessor is not None
    assert (orin.tensor_fp8_tflops, orin.multiprocessor.dram_latency_s) == (None, None)
    assert orin.tensor_fp16_tflops is not None
    assert orin.tensor_fp16_tflops.sort == "assumed"  # read in a quotation, and derived
    assert load_gpu("t4").dram_efficiency is None
    assert load_gpu("a100-40").dram_efficiency is None  # the one of the 80 GB board is not borrowed


@pytest.mark.parametrize(
    "change",
    [
        {"low": 2.5},
        {"source": " "},
        {"unit": ""},
        {"sort": "guess"},
        {"others": [{**OTHER, "value": 9.0}]},
        {"extra": 1},
    ],
)
def test_a_number_without_its_reasons_is_refused(change: dict[str, object]) -> None:
    Number.model_validate({**NUMBER, "others": [OTHER]})
    with pytest.raises(ValidationError):
        Number.model_validate({**NUMBER, **change})


def test_an_unknown_board_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="a100-40, a100-80"):
        load_gpu("V100")


def test_no_source_is_listed_that_nothing_uses() -> None:
    for path in SPECS_FOLDER.glob("*.toml"):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        said = [s for n in table["numbers"].values() for s in (n, *n.get("others", ()))]
        assert set(table["sources"]) == {s["source"] for s in said}
