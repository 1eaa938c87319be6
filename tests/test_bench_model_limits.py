"""R, supply over demand, against the budgets that were worked out by hand from the same counts."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from bench.static import limits_table
from bench.static.limits import Ratio, supply_demand
from bench.static.peers import listed_peers, load_peers
from profiles.specs import load_gpu, load_gpus

PEERS = {key: peer.cost for key, peer in load_peers().items()}


@pytest.mark.parametrize(
    ("gpu", "kernel", "percent", "limiter"),
    [
        ("a100-80", "marlin-sm90", 190, "issue"),
        ("a100-80", "exllamav2-sm90", 169, "issue"),
        ("a100-80", "awq-v2", 164, "issue"),
        ("a100-80", "gemlite-gemv", 63, "issue"),
        ("a100-80", "bnb-simt", 67, "issue"),
        ("a100-80", "gemlite-int8", 119, "XU"),
        ("h100", "marlin-sm90", 199, "issue"),  # 5.15 / 2.59 at 1.98 GHz
        ("b200", "marlin-sm90", 93, "issue"),
        ("b200", "gemlite-int8", 58, "XU"),
        ("rtx4090", "marlin-sm90", 815, "issue"),
        ("rtx4090", "gemlite-gemv", 272, "issue"),
    ],
)
def test_ratios_are_budget_over_instructions(
    gpu: str, kernel: str, percent: int, limiter: str
) -> None:
    ratio = supply_demand(load_gpu(gpu), PEERS[kernel])
    assert ratio.value is not None
    assert 100 * ratio.value == pytest.approx(percent, abs=1)
    assert ratio.limiter == limiter


def test_marlin_on_a_b200_by_hand() -> None:
    """148 x 1.965e9 x 128 / 2.59 weights/s against 8e12 / 0.515625."""
    ratio = supply_demand(load_gpu("b200"), PEERS["marlin-sm90"])
    supply, demand = 148 * 1.965e9 * 128 / 2.59, 8e12 / (4.125 / 8)
    assert ratio.value == pytest.approx(supply / demand)
    assert ratio.at_reached_issue == pytest.approx(0.65 * supply / demand)
    assert ratio.low == pytest.approx(148 * 700e6 * 128 / 2.59 / (8.2e12 / (4.125 / 8)))
    assert ratio.high == pytest.approx(148 * 1.965e9 * 128 / 2.59 / (7.7e12 / (4.125 / 8)))
    assert ratio.verdict == "cast-bound"


def test_less_issue_does_not_slow_another_pipe() -> None:
    ratio = supply_demand(load_gpu("a100"), PEERS["gemlite-int8"])
    assert ratio.at_reached_issue == pytest.approx(ratio.value)
    assert ratio.verdict == "hidden"
    assert supply_demand(load_gpu("h200"), PEERS["marlin-sm90"]).verdict == "open"


def test_every_pass_dequantizes_again() -> None:
    once = supply_demand(load_gpu("h100"), PEERS["tinygemm"], 1).value
    four = supply_demand(load_gpu("h100"), PEERS["gemlite-gemm"], 64 * 4).value
    one = supply_demand(load_gpu("h100"), PEERS["gemlite-gemm"], 64).value
    assert once is not None
    assert one is not None
    assert four == pytest.approx(one / 4)


def test_cards_with_gddr_hide_what_cards_with_hbm_do_not() -> None:
    plain = PEERS["triton-plain"]
    for gpu in ("a10", "rtx3090", "rtx4090", "l4", "l40s", "rtx5090"):
        assert supply_demand(load_gpu(gpu), plain).verdict == "hidden"
    for gpu in ("a100-40", "a100-80", "h100-pcie", "h100-sxm", "h200", "b200"):
        assert supply_demand(load_gpu(gpu), plain).verdict == "cast-bound"


def test_a_ratio_that_cannot_be_said_has_a_reason() -> None:
    bare = load_gpu("orin").model_copy(update={"multiprocessor": None})
    assert "8.7" in supply_demand(bare, PEERS["gemlite-gemv"]).reason
    needs = supply_demand(load_gpu("a100"), PEERS["gemlite-fp8"])
    assert (needs.value, needs.verdict) == (None, "unknown")
    assert "8.9" in needs.reason
    spilled = replace(PEERS["gemlite-gemv"], unmodelled="spills")
    assert supply_demand(load_gpu("a100"), spilled).reason == "spills"


def test_open_means_that_it_depends_on_the_issue_rate() -> None:
    assert Ratio(1.2, 1.0, 1.3, 0.8, "issue").verdict == "open"
    assert Ratio(1.6, 1.0, 1.7, 1.04, "issue").verdict == "hidden"
    assert Ratio(0.9, 0.5, 1.1, 0.6, "XU").verdict == "cast-bound"


def test_the_table_has_every_board_and_says_that_it_is_modelled() -> None:
    gpus, peers = tuple(load_gpus().values()), listed_peers()
    console = Console(width=260, record=True, file=StringIO())
    console.print(limits_table.render(gpus, peers, 1))
    text = console.export_text()
    assert "MODELLED" in text
    assert all(gpu.key in text for gpu in gpus)
    data = limits_table.to_data(gpus, peers, 1)
    assert len(data) == len(gpus) * len(peers)
    assert {entry["kind"] for entry in data} == {"modelled"}
    assert all(entry["reason"] for entry in data if entry["value"] is None)
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in data if entry["value"])
