"""R, supply over demand, against the budgets that were worked out by hand from the same counts."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from bench.static import limits_plot, limits_table
from bench.static.audit import Audit, Job
from bench.static.limits import Ratio, supply_demand
from bench.static.peers import listed_peers, load_peers
from kernels.formats import find_format
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
    assert supply_demand(load_gpu("h200"), PEERS["marlin-sm90"]).verdict == "undecided"


def test_every_pass_dequantizes_again() -> None:
    once = supply_demand(load_gpu("h100"), PEERS["tinygemm"], 1).value
    four = supply_demand(load_gpu("h100"), PEERS["gemlite-gemm"], 64 * 4).value
    one = supply_demand(load_gpu("h100"), PEERS["gemlite-gemm"], 64).value
    assert once is not None
    assert one is not None
    assert four == pytest.approx(one / 4)


def test_cards_with_gddr_hide_what_cards_with_hbm_do_not() -> None:
    plain = PEERS["triton-plain"]
    for gpu in ("rtx3090", "rtx4090", "l4", "l40s", "rtx5090"):
        assert supply_demand(load_gpu(gpu), plain).verdict == "hidden"
    assert supply_demand(load_gpu("a10"), plain).verdict == "undecided"  # 0.88 at its base clock
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


@pytest.mark.parametrize(
    ("value", "low", "high", "reached", "verdict"),
    [
        (1.6, 1.1, 1.7, 1.04, "hidden"),
        (1.6, 0.9, 1.7, 1.04, "undecided"),  # at the base clock it is not
        (1.2, 1.05, 1.3, 0.8, "undecided"),  # nor at 65 % of issue
        (0.9, 0.5, 1.1, 0.6, "undecided"),
        (0.9, 0.5, 0.95, 0.6, "cast-bound"),
        (None, None, None, None, "unknown"),
    ],
)
def test_a_verdict_holds_over_the_whole_interval(value, low, high, reached, verdict) -> None:
    ratio = Ratio(value, low, high, reached)
    assert ratio.verdict == verdict
    colour, _ = limits_plot.colour(ratio)
    assert (colour == limits_plot.YELLOW) == (verdict == "undecided")


def test_the_table_has_every_board_and_says_that_it_is_modelled() -> None:
    gpus = tuple(load_gpus().values())
    lines = limits_table.peer_lines(gpus, listed_peers(), 1)
    console = Console(width=260, record=True, file=StringIO())
    console.print(limits_table.render(gpus, lines, 1))
    text = console.export_text()
    assert "MODELLED" in text
    assert all(gpu.key in text for gpu in gpus)
    data = limits_table.to_data(gpus, lines, 1)
    assert len(data) == len(gpus) * len(lines)
    assert {entry["kind"] for entry in data} == {"modelled"}
    assert all(entry["reason"] for entry in data if entry["value"] is None)
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in data if entry["value"])


def audit(job: Job) -> Audit:
    """Two instructions a weight; in Triton's own operations four."""
    total = 256 if job.variant.endswith("ptx") else 512
    return Audit(job.name, job.capability, {"other": total}, 0, {}, True, weights=128)


def test_our_lines_take_the_best_fused_kernel_of_each_board() -> None:
    """H100: 25.34e12 thread-instructions/s per 3.35e12 bytes/s: 5.149 per weight of 4.125 bits, over two."""
    gpus = [load_gpu("h100"), load_gpu("a10")]
    formats = [find_format("int8-ch"), find_format("int4-g128")]
    audits = {job: audit(job) for job in limits_table.our_jobs(gpus, formats, 1)}
    assert {(j.capability, j.variant) for j in audits} == {
        (c, v) for c in (90, 86) for v in ("gemv", "gemv-ptx")
    }
    lines = limits_table.our_lines(gpus, formats, 1, audits)
    assert [line.format for line in lines] == ["int4-g128", "int8-ch"]  # few bits first
    ratio = lines[0].ratios["h100-sxm"]
    assert ratio.value == pytest.approx(5.149 / 2, abs=1e-3)
    assert ratio.at_reached_issue == pytest.approx(0.65 * 5.149 / 2, abs=1e-3)
    lost = {job: a for job, a in audits.items() if job.capability == 90}
    assert limits_table.our_lines(gpus, formats, 1, lost)[0].ratios["a10"].value is None


def test_our_lines_serve_the_batch_that_is_asked_for() -> None:
    gpus, formats = [load_gpu("h100")], [find_format("int4-g128")]
    assert {j.variant for j in limits_table.our_jobs(gpus, formats, 256)} == {"gemm", "gemm-ptx"}
    assert {j.batch for j in limits_table.our_jobs(gpus, formats, 256)} == {256}
    found = {}
    for batch in (64, 256):
        audits = {job: audit(job) for job in limits_table.our_jobs(gpus, formats, batch)}
        found[batch] = limits_table.our_lines(gpus, formats, batch, audits)[0].ratios["h100-sxm"]
    assert found[256].value == pytest.approx(found[64].value / 4)  # four tiles of 64 rows


@pytest.mark.parametrize(
    ("value", "reached", "kind"),
    [(0.5, 0.3, "Reds"), (1.2, 0.8, "yellow"), (4.0, 2.6, "Blues"), (None, None, "grey")],
)
def test_colours_are_those_of_the_verdict(value, reached, kind) -> None:
    found, _ = limits_plot.colour(Ratio(value, value, value, reached, reason="none"))
    if kind in ("Reds", "Blues"):
        red, _, blue, _ = found
        assert (red > blue) == (kind == "Reds")
    else:
        assert found == {"yellow": limits_plot.YELLOW, "grey": limits_plot.GREY}[kind]


def test_more_to_spare_is_a_deeper_blue_and_only_deep_cells_have_white_text() -> None:
    cells = [limits_plot.colour(Ratio(2 * r, 2 * r, 2 * r, r)) for r in (1.1, 2.0, 8.0, 100.0)]
    brightness = [sum(c[0][:3]) for c in cells]
    assert brightness == sorted(brightness, reverse=True)
    assert [dark for _, dark in cells] == [False, False, True, True]


def test_boards_are_drawn_in_the_order_of_what_they_can_spend_on_a_byte() -> None:
    """B200: 148 x 128 x 1.965e9 / 8e12 = 4.65 instructions; L40S: 142 x 128 x 2.52e9 / 864e9 = 53.0."""
    assert limits_plot.instructions_per_byte(load_gpu("b200")) == pytest.approx(4.65, abs=0.01)
    assert limits_plot.instructions_per_byte(load_gpu("l40s")) == pytest.approx(53.0, abs=0.1)
