"""The frozen model: the one of this checkout, and what a change of it is."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from bench.static import freeze
from bench.static.freeze import ROOT, SPECS, STATIC, digest, frozen, statements
from bench.static.published import load_rows

PUBLISHED = Path(__file__).parent / "data" / "published"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout with what the digest is of, to be changed."""
    for folder in (STATIC, SPECS, Path("kernels")):
        unused = shutil.ignore_patterns("__pycache__", "ptx", "tuned", "cuda")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unused)
    shutil.copy(ROOT / SPECS.with_suffix(".py"), tmp_path / SPECS.parent)
    assert of(tmp_path) == frozen().digest
    return tmp_path


def of(root: Path) -> str:
    """The digest of such a checkout, with the kernels of the frozen version."""
    return digest(frozen().version.peers, root)


def test_the_model_is_the_frozen_one() -> None:
    """Otherwise: raise the version in bench/static/frozen.toml, and list the tables that were in view."""
    assert frozen().digest == frozen().version.digest, "the model changed, and its version did not"
    assert frozen().name == frozen().version.version


def test_measured_rates_make_another_model(copy: Path) -> None:
    (copy / SPECS / "measured").mkdir()
    (copy / SPECS / "measured" / "h100-sxm.json").write_text("{}")
    assert of(copy) != frozen().digest


def test_the_tables_in_view_are_as_they_were() -> None:
    """A table that is imported later is not listed until a version is made in view of it."""
    assert frozen().version.tables
    for table in frozen().version.tables:
        content = (PUBLISHED / table.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == table.sha256, table.file


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("bench/static/parameters.py", "0.367", "0.368"),
        ("bench/static/parameters.py", "(4.0, 2.0, 64.0", "(3.0, 2.0, 64.0"),
        ("bench/static/model.py", "** (1 / p)", "** (2 / p)"),
        ("bench/static/conformal.py", "len(filled) + 1", "len(filled)"),
        ("bench/static/estimate.py", "exp(-width)", "exp(width)"),
        ("bench/static/ours.py", "TENSOR_CAPABILITY = 80", "TENSOR_CAPABILITY = 75"),
        ("bench/static/peers.toml", "total = 4.38", "total = 4.37"),
        ("bench/static/audit.py", "N, K = 4096, 14336", "N, K = 4096, 4096"),
        ("bench/static/audit.py", "counts.integer + counts.fast_conversion", "counts.integer"),
        ("bench/static/sass.py", '"LOP3"', '"LOP4"'),
        ("bench/static/occupancy.py", "REGISTERS = 65536", "REGISTERS = 32768"),
        ("bench/static/modelled.py", "(b.low, b.high)", "(b.high, b.low)"),
        ("bench/static/modelled.py", "exp(width + _beyond(b, alone))", "exp(width)"),
        ("profiles/specs.py", "SCHEDULERS = 4", "SCHEDULERS = 2"),
        ("kernels/kernel.py", "2 * batch * weights", "batch * weights"),
        ("kernels/triton/gemv.py", "rows = 4 if batch <= 4 else 2", "rows = 2"),
        ("kernels/triton/gemm.py", "batch <= 16:", "batch <= 32:"),
        ("kernels/triton/gemm.py", "2 * programs * tile.num_warps", "programs * tile.num_warps"),
    ],
)
def test_a_change_of_a_number_or_a_statement_is_another_model(
    copy: Path, file: str, old: str, new: str
) -> None:
    path = copy / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert of(copy) != frozen().digest


def test_a_boards_numbers_count_and_what_is_said_of_them_does_not(copy: Path) -> None:
    path = copy / SPECS / "h100-sxm.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("slope of bf16 GEMM time", "bf16 GEMM time, its slope"), "utf-8")
    assert of(copy) == frozen().digest
    path.write_text(text.replace("value = 3350, low", "value = 3351, low"), "utf-8")
    assert of(copy) != frozen().digest


def test_a_kernel_that_is_added_is_no_other_model_and_one_that_goes_is(copy: Path) -> None:
    path = copy / STATIC / "peers.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + '\n[another]\nname = "A"\ncounts = { total = 1.0 }\n', "utf-8")
    assert of(copy) == frozen().digest
    path.write_text(text.replace("[marlin]", "[merlin]"), "utf-8")
    with pytest.raises(KeyError, match="marlin"):
        of(copy)


def test_every_kernel_of_the_tables_in_view_is_part_of_the_model() -> None:
    assert {row.kernel for row in load_rows(PUBLISHED)} <= set(frozen().version.peers)


def test_the_text_of_a_kernel_is_no_part_of_it(copy: Path) -> None:
    """It enters by what is counted in its machine code."""
    path = copy / "kernels" / "triton" / "gemm.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("def gemm_kernel(", "def gemm_kernel(ANOTHER, "), "utf-8")
    assert "ANOTHER" in path.read_text(encoding="utf-8")
    assert of(copy) == frozen().digest


def test_definitions_are_whole_and_a_name_that_is_missing_is_an_error() -> None:
    text = "A, B = 1, 2\n@cache\ndef f():\n    return 3\nC: int = (\n    4\n)\n"
    assert statements(text, ["f"]) == "@cache\ndef f():\n    return 3"
    assert statements(text, ["B", "C"]) == "A, B = 1, 2\nC: int = (\n    4\n)"
    with pytest.raises(KeyError, match="D"):
        statements(text, ["D"])


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
