"""Published traits of sensors: the numbers of the paper's table, and whose name gets them."""

import pytest
from pydantic import ValidationError

from profiles.sensors import Traits, completed, load_boards, published_traits

PAPER = {  # update period in ms, then averaging windows in ms: instant, average
    "Tesla P100-SXM2-16GB": (20, 10, None),
    "Tesla V100-SXM2-32GB": (20, 10, None),
    "NVIDIA GeForce RTX 2080 Ti": (100, 100, None),
    "NVIDIA TITAN RTX": (100, 100, None),
    "Quadro RTX 8000": (100, 20, None),
    "NVIDIA A100-SXM4-80GB": (100, 25, None),
    "NVIDIA GeForce RTX 3090": (100, 100, 1000),
    "NVIDIA A10": (100, None, 1000),
    "NVIDIA RTX A6000": (100, None, 1000),
    "NVIDIA GeForce RTX 4090": (100, 110, 1000),
    "NVIDIA H100 PCIe": (100, 25, 1000),
    "NVIDIA GH200 480GB": (100, 20, None),
}
CHANNELS = ("power_instant_w", "power_average_w")


@pytest.mark.parametrize("name", PAPER)
def test_boards_have_the_numbers_of_the_paper(name: str) -> None:
    traits = published_traits(name)
    assert traits is not None
    update_ms, *averaging_ms = PAPER[name]
    assert traits.update_s == update_ms / 1000
    expected = {c: ms / 1000 for c, ms in zip(CHANNELS, averaging_ms, strict=True) if ms}
    assert traits.averaging_s == expected
    assert traits.counter_update_s == (None if "P100" in name else 0.1)
    assert (traits.lag_s, traits.gain_uncertainty, traits.source) == (None, 0.05, "published")
    assert {"lag_s"} <= set(traits.missing)
    assert "2312.02741" in traits.origin
    assert "2026" in traits.origin


def test_every_board_is_tested() -> None:
    assert len(load_boards()) == len(PAPER)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",  # not the word a10
        "NVIDIA A1000",
        "NVIDIA H200",
        "NVIDIA GeForce RTX 4090 Laptop GPU",  # AD103, not AD102
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "Quadro RTX 8000 with Max-Q Design",
        "NVIDIA GeForce RTX 2080",
        "NVIDIA RTX 6000 Ada Generation",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_unknown_boards_have_none(name: str) -> None:
    assert published_traits(name) is None


@pytest.mark.parametrize(
    ("name", "another"),
    [
        ("NVIDIA H100 PCIe", False),
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H100 NVL", True),
        ("simulated H100", True),
        ("NVIDIA A100-PCIE-40GB", True),
        ("NVIDIA GeForce RTX 3090", False),
    ],
)
def test_another_variant_is_said_to_be_one(name: str, another: bool) -> None:
    traits = published_traits(name)
    assert traits is not None
    assert ("another variant" in traits.origin) == another


def test_duty_cycles() -> None:
    h100, turing = published_traits("H100"), published_traits("RTX 2080 Ti")
    ada = published_traits("RTX 4090")
    assert h100
    assert turing
    assert ada
    assert h100.duty_cycle("power_instant_w") == pytest.approx(0.25)
    assert h100.duty_cycle("power_average_w") == 1
    assert turing.duty_cycle("power_instant_w") == 1
    assert ada.duty_cycle("power_instant_w") == 1  # 110 of 100 ms
    with pytest.raises(KeyError):
        turing.duty_cycle("power_average_w")


def test_what_is_not_known_needs_a_reason() -> None:
    given = {"model": "x", "update_s": 0.1, "averaging_s": {}, "counter_update_s": 0.1}
    with pytest.raises(ValidationError, match="lag_s is null"):
        Traits(**given, lag_s=None)
    Traits(**given, lag_s=None, missing={"lag_s": "not looked for"})
    with pytest.raises(ValidationError, match="greater than 0"):
        Traits(**(given | {"update_s": 0.0}), lag_s=0.0)


def test_a_published_offset_is_an_uncertainty_and_never_small() -> None:
    offsets = {
        name: traits.offset_uncertainty_w
        for name in ("RTX 4090", "RTX 3090", "A100", "H100")
        if (traits := published_traits(name)) is not None
    }
    assert offsets == {"RTX 4090": 22.6, "RTX 3090": 5.0, "A100": 5.0, "H100": 5.0}


def test_what_was_found_goes_before_what_is_published_but_knows_no_gain() -> None:
    published = published_traits("RTX 4090")
    assert published is not None
    found = Traits(
        model="RTX 4090", update_s=0.05, averaging_s={"power_instant_w": 0.04},
        counter_update_s=None, lag_s=0.01, source="characterised",
        missing={"counter_update_s": "none was found"},
    )  # fmt: skip
    both = completed(found, published)
    assert (both.update_s, both.lag_s, both.source) == (0.05, 0.01, "characterised")
    assert both.averaging_s == {"power_instant_w": 0.04, "power_average_w": 1.0}
    assert both.counter_update_s == published.counter_update_s
    assert both.missing == {}
    assert both.offset_uncertainty_w == 22.6
    assert completed(found, None) is found
