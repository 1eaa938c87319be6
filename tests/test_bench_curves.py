"""The picture of joules per token shows the numbers of the profile, and says why where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import planted_energy
import pytest

from bench import curves
from profiles.reader import load_profile
from profiles.schema import Energy, Profile

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_energy.write(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def profile(path: Path) -> Profile:
    return load_profile(path, allow=("simulated",))


class Axes:
    """Takes down what would be drawn."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, args, options))


def test_points_and_curves_are_those_of_the_profile(profile: Profile) -> None:
    axes = Axes()
    curves._panel(axes, profile, "int4-g128")  # type: ignore[arg-type]
    bars = {o["label"].split(" ")[0]: (a, o) for n, a, o in axes.calls if n == "errorbar"}
    assert set(bars) == {"vendor", "fused", "bypass", "unfused"}
    rows = sorted(
        (r for r in profile.energy.rows if r.kernel.arm == "fused"), key=lambda r: r.batch
    )
    (batch, value), options = bars["fused"]
    assert batch.tolist() == [r.batch for r in rows] == [1, 8, 64]
    assert value.tolist() == [r.token_j.value for r in rows]
    assert (value - options["yerr"][0]).tolist() == pytest.approx([r.token_j.low for r in rows])
    assert (value + options["yerr"][1]).tolist() == pytest.approx([r.token_j.high for r in rows])
    lines = [(a, o) for n, a, o in axes.calls if n == "plot"]
    assert len(lines) == 4
    fitted = {c.arm: c for c in profile.energy.curves}
    for arm, curve in fitted.items():
        (x, y), options = next((a, o) for a, o in lines if o["color"] == curves.COLORS[arm])
        assert (x[0], x[-1]) == (1, pytest.approx(64))
        assert np.allclose(y, curve.a_j.value + curve.b_j.value / x)  # type: ignore[operator]
        assert options["linestyle"] == ("--" if curve.fits else ":")


def test_every_arm_has_a_colour_of_its_own() -> None:
    from bench.analysis.decompose import ARM_ORDER

    assert set(curves.COLORS) == set(ARM_ORDER)
    assert len(set(curves.COLORS.values())) == len(ARM_ORDER)


def test_the_command_writes_a_png_beside_the_profile(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.curves", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    picture = path.with_suffix(".energy.png")
    assert (done.returncode, done.stdout) == (0, f"Wrote {picture}\n")
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(content[16:20]) > 900  # pixels wide


def test_without_joules_there_is_no_picture_but_a_reason(tmp_path: Path, profile: Profile) -> None:
    without = profile.model_copy(update={"energy": Energy(reason="no energy sensor: none")})
    with pytest.raises(ValueError, match="no joules to draw: no energy sensor: none"):
        curves.draw(without, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_sentence(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.curves", str(path), "--output", str(tmp_path / "no" / "a.png")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write")
    assert done.stderr.count("\n") == 1
