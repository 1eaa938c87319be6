"""A small profile of a quiet run, planted: samples with one per cent of noise, and what follows from them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.analysis.arms import ArmKey, Problem
from bench.analysis.decompose import ArmFacts, decompose
from profiles.reader import write_profile
from profiles.schema import (
    SAMPLE_COLUMNS,
    DeviceInfo,
    Git,
    Operator,
    Profile,
    Protocol,
    Software,
    Workload,
    samples_schema,
)

MISSING = {"sm_clock_mhz": "not read", "temperature_c": "not read"}
TIMES_S = {"native": 500e-6, "vendor": 600e-6, "stream": 100e-6, "bypass": 150e-6, "fused": 200e-6,
           "dequantize": 300e-6, "unfused": 900e-6}  # fmt: skip
PROTOCOL = Protocol(
    pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=90, processes=3,
    target_half_width=0.05, confidence=0.95, sample_minimum_s=1e-3,
)  # fmt: skip
WORKLOAD = Workload(
    model="tiny", layers=2, operators=(Operator(name="o_proj", n=64, k=128),), activation="bf16",
    formats=("int4-g128",), batches=(1, 8), launch_mode="eager", cache_state="cold",
    rotation_bytes=3 << 20, seeds={"order": 0},
)  # fmt: skip
DEVICE = DeviceInfo(
    name="Planted CPU", kind="cpu", uuid_hash="ab", cores=2, last_level_cache_bytes=1 << 20,
    memory_bytes=1 << 30, capability="avx2", extra={"governor": "performance"},
)  # fmt: skip
SOFTWARE = Software(
    python="3.11.7", os="Linux 6", numpy="2.0", torch="2.13", triton=None, numba="0.68", driver=None,
    cuda=None, threading_layer="omp",
    missing=dict.fromkeys(("triton", "driver", "cuda"), "not used on a CPU"),
)  # fmt: skip


def sample_rows(seed: int = 0) -> list[dict[str, Any]]:
    """Samples of a quiet run: independent noise of one per cent, three processes alike."""
    rng = np.random.default_rng(seed)
    rows = []
    plan = [(0, "pilot", block) for block in range(10)]
    plan += [(process, "fresh", block) for process in range(3) for block in range(8)]
    for batch in WORKLOAD.batches:
        for process, phase, block in plan:
            for position, (arm, time_s) in enumerate(TIMES_S.items()):
                seconds = time_s * batch * float(1 + 0.01 * rng.standard_normal())
                calls = max(1, int(np.ceil(3e-3 / seconds)))
                rows.append(
                    {
                        "process": process, "block": block, "position": position, "phase": phase,
                        "operator": "o_proj", "n": 64, "k": 128, "batch": batch,
                        "format": "int4-g128", "arm": arm, "implementation": "planted",
                        "variant": "default",
                        "weight_format": "bf16" if arm in ("native", "vendor") else "int4-g128",
                        "launch_mode": "eager", "cache_state": "cold", "time_s": seconds,
                        "calls": calls, "started_s": 1.0 * len(rows), "minor_faults": 0,
                        "involuntary_switches": 0, "steal_s": 0.0, "probe_us": 5.0,
                        "sm_clock_mhz": None, "temperature_c": None, "flags": "",
                    }
                )  # fmt: skip
    return rows


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    missing = {
        c.name: "not read"
        for c in SAMPLE_COLUMNS
        if c.nullable and all(r[c.name] is None for r in rows)
    }
    return pa.Table.from_pylist(rows, schema=samples_schema(missing))


def profile_of(rows: list[dict[str, Any]], **changes: Any) -> Profile:
    """The profile of some samples, as a run would assemble it; `changes` are fields of it."""
    fields: dict[str, Any] = {
        "created": datetime(2026, 1, 31, 12, tzinfo=UTC), "kind": "measured", "complete": True,
        "device": DEVICE, "software": SOFTWARE, "git": Git(commit="a" * 40, dirty=False),
        "argv": ("bench.dequant",), "workload": WORKLOAD, "kernels_sha256": "0" * 64,
        "protocol": PROTOCOL,
    } | changes  # fmt: skip
    workload = fields["workload"]
    facts = {}
    for row in rows:
        problem = Problem(*(row[name] for name in Problem._fields))
        key = ArmKey(problem, *(row[name] for name in ArmKey._fields[1:]))
        facts[key] = ArmFacts(error_vs_reference=1e-3, calls_per_sample=row["calls"])
    facts |= fields.pop("facts", {})
    made = decompose(table_of(rows), workload, fields["protocol"], facts, fields["kind"])
    return Profile(**{"rows": made[0], "comparisons": made[1]} | fields)


def write_small(folder: Path) -> tuple[bytes, bytes, str]:
    """A small profile on disk: its JSON, its Parquet and the name of the latter."""
    rows = sample_rows()
    written = write_profile(profile_of(rows), table_of(rows), folder / "run.json")
    assert written.samples is not None
    name = written.samples.file
    return (folder / "run.json").read_bytes(), (folder / name).read_bytes(), name
