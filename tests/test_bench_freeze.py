"""The frozen model: the one of this checkout, and what a change of it is."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from bench.static import freeze
from bench.static.freeze import FOLDER, SPECS, digest, frozen, statements

PUBLISHED = Path(__file__).parent / "data" / "published"


@pytest.fixture
def copy(tmp_path: Path) -> tuple[Path, Path]:
    """What the digest is of, to be changed."""
    folder, specs = tmp_path / "static", tmp_path / "specs"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "ptx"))
    shutil.copytree(SPECS, specs, ignore=shutil.ignore_patterns("tuned"))
    assert digest(folder, specs) == frozen().digest
    return folder, specs


def test_the_model_is_the_frozen_one() -> None:
    """Otherwise: raise the version in bench/static/frozen.toml, and list the tables that were in view."""
    assert frozen().digest == frozen().version.digest, "the model changed, and its version did not"
    assert frozen().name == frozen().version.version


def test_measured_rates_make_another_model(copy: tuple[Path, Path]) -> None:
    (copy[1] / "measured").mkdir()
    (copy[1] / "measured" / "h100-sxm.json").write_text("{}")
    assert digest(*copy) != frozen().digest


def test_the_tables_in_view_are_as_they_were() -> None:
    """A table that is imported later is not listed until a version is made in view of it."""
    assert frozen().version.tables
    for table in frozen().version.tables:
        content = (PUBLISHED / table.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == table.sha256, table.file


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("parameters.py", "0.367", "0.368"),
        ("parameters.py", "(4.0, 2.0, 64.0", "(3.0, 2.0, 64.0"),
        ("model.py", "** (1 / p)", "** (2 / p)"),
        ("conformal.py", "len(filled) + 1", "len(filled)"),
        ("estimate.py", "exp(-width)", "exp(width)"),
        ("ours.py", "TENSOR_CAPABILITY = 80", "TENSOR_CAPABILITY = 75"),
        ("peers.toml", "total = 4.38", "total = 4.37"),
    ],
)
def test_a_change_of_a_number_or_a_statement_is_another_model(
    copy: tuple[Path, Path], file: str, old: str, new: str
) -> None:
    path = copy[0] / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert digest(*copy) != frozen().digest


def test_a_boards_numbers_count_and_what_is_said_of_them_does_not(copy: tuple[Path, Path]) -> None:
    path = copy[1] / "h100-sxm.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("slope of bf16 GEMM time", "bf16 GEMM time, its slope"), "utf-8")
    assert digest(*copy) == frozen().digest
    path.write_text(text.replace("value = 3350, low", "value = 3351, low"), "utf-8")
    assert digest(*copy) != frozen().digest


def test_words_around_the_statements_do_not_count() -> None:
    plain = "X = '#1'\ndef f(x):\n    return x + 1"
    told = (
        '"""Why."""\n\nX = \'#1\'  # a word\n# another\ndef f(x):\n    """Adds.\n\n    One.\n    """\n'
        "    return x + 1\n"
    )
    assert statements(told) == statements(plain) == plain
    assert statements(plain.replace("#1", "#2")) != plain


def test_a_model_that_changed_says_so() -> None:
    changed = freeze.Frozen(frozen().version, "0" * 64)
    assert changed.name == f"{frozen().version.version}, changed since"
