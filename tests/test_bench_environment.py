"""Facts about the machine and the checkout, read from planted files and a temporary repository."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from bench.measure import environment


def plant(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def plant_cache(root: Path, cpu: int, index: int, level: int, size: str, shared: str) -> None:
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    folder.mkdir(parents=True)
    for name, text in {"level": level, "size": size, "shared_cpu_list": shared}.items():
        (folder / name).write_text(f"{text}\n")
    (folder / "type").write_text("Unified\n")


def run_git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_machine_reads_the_planted_files(tmp_path: Path) -> None:
    plant(
        tmp_path,
        proc__cpuinfo="model name\t: Planted CPU\nflags\t\t: fpu avx2 fma amx_bf16\n",
        proc__meminfo="MemFree: 1 kB\nMemTotal:       2048 kB\n",
        proc__loadavg="0.25 0.5 1.0 1/100 1\n",
        etc__machine_id="x",
    )
    (tmp_path / "etc/machine-id").write_text("planted\n")
    found = environment.machine(tmp_path)
    assert found.facts["name"] == "Planted CPU"
    assert found.facts["capability"] == "avx2 fma amx_bf16"
    assert found.facts["memory_bytes"] == 2048 * 1024
    assert found.facts["load_average_1min"] == 0.25
    assert found.facts["uuid_hash"] == hashlib.sha256(b"planted").hexdigest()[:16]


def test_every_unknown_fact_has_a_reason(tmp_path: Path) -> None:
    found = environment.machine(tmp_path)
    unknown = {name for name, value in found.facts.items() if value is None}
    assert unknown == set(found.missing)
    assert {"uuid_hash", "last_level_cache_bytes", "memory_bytes", "governor"} <= unknown
    assert all(found.missing.values())


def test_last_level_cache_counts_a_shared_cache_once(tmp_path: Path) -> None:
    for cpu in (0, 1, 2, 3):
        plant_cache(tmp_path, cpu, 2, 2, "1024K", str(cpu))
        plant_cache(tmp_path, cpu, 3, 3, "4096K", "0-1" if cpu < 2 else "2-3")
    assert environment.last_level_cache_bytes(tmp_path) == 2 * 4096 * 1024


def test_steal_is_the_eighth_number(tmp_path: Path) -> None:
    import os

    plant(tmp_path, proc__stat="cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 1 2 3 4 5 6 7 8\n")
    assert environment.steal_s(tmp_path) == 250 / os.sysconf("SC_CLK_TCK")
    assert environment.steal_s(tmp_path / "nowhere") is None


def test_software_names_versions_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "surely-not-installed"))
    found = environment.software()
    import numpy

    assert found.facts["numpy"] == numpy.__version__
    assert found.facts["surely-not-installed"] is None
    assert found.missing == {"surely-not-installed": "not installed"}


@pytest.mark.parametrize("package", ["cupy", "cupy-cuda12x", "cupy-cuda13x"])
def test_cupy_is_found_under_each_of_its_names(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def version(name: str) -> str:
        if name != package:
            raise environment.metadata.PackageNotFoundError(name)
        return "14.1.0"

    monkeypatch.setattr(environment.metadata, "version", version)
    assert environment.cuda_compilers() == {"cupy": "14.1.0", "nvrtc": None}


def test_git_reports_commit_and_dirt(tmp_path: Path) -> None:
    run_git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    run_git(tmp_path, "add", "a")
    run_git(tmp_path, "commit", "-q", "-m", "m")
    clean = environment.git(tmp_path)
    assert len(str(clean.facts["commit"])) == 40
    assert clean.facts["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.git(tmp_path).facts["dirty"] is True


def test_git_without_a_commit_and_without_a_checkout(tmp_path: Path) -> None:
    outside = environment.git(tmp_path)
    assert outside.facts == {"commit": None, "dirty": None}
    assert "not a git repository" in outside.missing["commit"]
    run_git(tmp_path, "init", "-q")
    empty = environment.git(tmp_path)
    assert empty.facts == {"commit": None, "dirty": False}
    assert empty.missing["commit"]


def test_git_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git(tmp_path).missing["commit"] == "git is not installed"


def test_source_hash_follows_names_and_contents_only(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "sub/b.py").write_text("y")
    before = environment.source_hash(tmp_path)
    assert len(before) == 64
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.pyc").write_text("compiled")
    (tmp_path / ".hidden").write_text("z")
    assert environment.source_hash(tmp_path) == before
    (tmp_path / "sub/b.py").rename(tmp_path / "sub/c.py")
    renamed = environment.source_hash(tmp_path)
    assert renamed != before
    (tmp_path / "sub/c.py").write_text("other")
    assert environment.source_hash(tmp_path) != renamed
    with pytest.raises(FileNotFoundError):
        environment.source_hash(tmp_path / "nowhere")


def test_import_loads_no_heavy_package() -> None:
    code = (
        "import sys; import bench.measure.environment as e; e.software(); "
        "print([m for m in ('torch', 'numba', 'triton', 'numpy', 'pynvml') if m in sys.modules])"
    )
    root = Path(environment.__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
