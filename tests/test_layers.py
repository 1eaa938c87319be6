"""The arrows of the architecture: who may import whom, and whose packages Python finds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("bench", "kernels", "profiles")
SOURCES = sorted(p for package in OURS for p in (ROOT / package).rglob("*.py"))
TORCH = ("torch", "triton", "numba", "llvmlite", "cupy")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, at_import_only: bool = False) -> set[str]:
    """Modules that a file imports anywhere, or only those that importing it loads."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
        for child in ast.iter_child_nodes(node):
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not (at_import_only and (lazy or typing_only)):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def within(module: str, *packages: str) -> bool:
    return any(module == p or module.startswith(p + ".") for p in packages)


def violations(path: Path) -> list[str]:
    """Arrows that a file draws and may not."""
    module, used = module_of(path), imports(path)
    command = module.startswith("bench.") and module.count(".") == 1
    wrong = []
    for name in used:
        if within(module, "profiles") and within(name, "bench", "kernels"):
            wrong.append("profiles imports nothing of ours")
        if within(module, "profiles") and within(name, *TORCH):
            wrong.append("profiles needs no torch")
        if within(module, "kernels") and within(name, "bench"):
            wrong.append("kernels know nothing of bench")
        if within(module, "bench.analysis") and within(name, *TORCH, "pynvml", "bench.measure"):
            wrong.append("analysis needs only the profile")
        if within(name, "pynvml") and not within(module, "bench.measure.power"):
            wrong.append("only bench.measure.power talks to NVML")
        if within(name, *TORCH) and not (
            within(module, "kernels", "bench.measure.devices", "bench.static", "bench.examples")
        ):
            wrong.append("only devices, kernels and the static tools import torch or compilers")
        if within(name, "bench") and name.count(".") == 1 and not command:
            target = ROOT / (name.replace(".", "/") + ".py")
            if target.exists():
                wrong.append("nobody imports a command")
    return [f"{module}: {reason}" for reason in wrong]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    assert violations(path) == []


def test_a_wrong_arrow_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "profiles" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("def f():\n    from bench.measure import run\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert violations(bad) == ["profiles.bad: profiles imports nothing of ours"]


def test_the_drivers_binding_is_loaded_when_a_board_is_asked_for_and_not_before() -> None:
    users = [path for path in SOURCES if "pynvml" in imports(path)]
    assert [module_of(path) for path in users] == ["bench.measure.power.boards"]
    assert not any("pynvml" in imports(path, at_import_only=True) for path in users)
    code = (
        "import sys, bench.power, bench.measure.power.files\n"
        "heavy = {'pynvml', 'torch', 'numba', 'triton', 'scipy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("package", OURS)
def test_the_checkout_wins_over_installed_packages(package: str) -> None:
    """Hugging Face ships a package named `kernels`; without our __init__.py it would win."""
    code = f"import {package}; print({package}.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()) == ROOT / package / "__init__.py"


def test_help_loads_neither_torch_nor_numba() -> None:
    code = (
        "import sys, bench.dequant\n"
        "heavy = {'torch', 'numba', 'triton', 'scipy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
