"""Profiles with planted times per arm, operator, batch and format: what bench.trap is tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from planted_profile import DEVICE, WORKLOAD, profile_of, table_of

from bench.analysis.replicates import Book
from profiles.schema import Operator, Profile

OPERATORS = (
    Operator(name="small", n=1024, k=1024),
    Operator(name="middle", n=2048, k=2048),
    Operator(name="large", n=8192, k=4096),
)
ARMS = ("native", "stream", "unpack", "scale", "bypass", "fused", "dequantize", "unfused")
WITH_LOWP = (*ARMS, "lowp")  # quantizes x itself, as its name says: planted+planted
Variant = Callable[[str, int], str]  # arm, batch
Time = Callable[[str, Operator, int, str], float | None]  # arm, operator, batch, format


def rows_of(
    time: Time,
    batches: tuple[int, ...],
    formats: tuple[str, ...] = ("int4-g128",),
    operators: tuple[Operator, ...] = OPERATORS,
    mode: str = "graph",
    noise: float = 0.002,
    block_noise: float = 0.0,
    seed: int = 0,
    arms: tuple[str, ...] = ARMS,
    variant: Variant = lambda arm, batch: "default",
) -> list[dict[str, Any]]:
    """Samples: three processes of eight blocks; `block_noise` is shared by all arms of a block."""
    rng = np.random.default_rng(seed)
    rows = []
    for weight_format in formats:
        for batch in batches:
            for process in range(3):
                for block in range(8):
                    common = float(np.exp(block_noise * rng.standard_normal()))
                    for o in operators:
                        for position, arm in enumerate(arms):
                            planted = time(arm, o, batch, weight_format)
                            if planted is None:
                                continue
                            factor = common * float(np.exp(noise * rng.standard_normal()))
                            rows.append(_row(o, arm, batch, weight_format, mode, process, block)
                                        | {"time_s": planted * factor, "position": position,
                                           "variant": variant(arm, batch)})  # fmt: skip
    return rows


def _row(
    o: Operator, arm: str, batch: int, weight_format: str, mode: str, process: int, block: int
) -> dict[str, Any]:
    return {
        "process": process, "block": block, "phase": "fresh", "operator": o.name, "n": o.n, "k": o.k,
        "batch": batch, "format": weight_format, "arm": arm,
        "implementation": "planted+planted" if arm == "lowp" else "planted",
        "variant": "default", "weight_format": "bf16" if arm == "native" else weight_format,
        "launch_mode": mode, "cache_state": "cold", "calls": 10, "started_s": 0.0, "minor_faults": 0,
        "involuntary_switches": 0, "steal_s": 0.0, "probe_us": 5.0, "sm_clock_mhz": None,
        "temperature_c": None, "flags": "",
    }  # fmt: skip


def planted(
    time: Time,
    batches: tuple[int, ...],
    formats: tuple[str, ...] = ("int4-g128",),
    operators: tuple[Operator, ...] = OPERATORS,
    mode: str = "graph",
    model: str = "Qwen3-8B",
    layers: int = 36,
    kind: str = "measured",
    **noise: Any,
) -> tuple[Profile, pa.Table]:
    """A profile of such samples, and the samples."""
    rows = rows_of(time, batches, formats, operators, mode, **noise)
    workload = WORKLOAD.model_copy(
        update={"model": model, "layers": layers, "operators": operators, "formats": formats,
                "batches": batches, "launch_mode": mode}
    )  # fmt: skip
    device = DEVICE.model_copy(update={"memory_bytes": 20 << 30})
    return profile_of(rows, workload=workload, device=device, kind=kind), table_of(rows)


def book(time: Time, batches: tuple[int, ...], size: int = 400, **settings: Any) -> Book:
    """The same, opened."""
    profile, samples = planted(time, batches, **settings)
    return Book.open(profile, samples, size)


def simple(
    t0_q: float = 2e-6,
    t0_16: float = 2e-6,
    c_q: float = 0.2e-12,
    c_16: float = 0.7e-12,
    phi: float = 0.05e-12,
    row_s: float = 0.0,
) -> Time:
    """t0 + c n k for both arms; phi per weight and tile of 16 rows; `row_s` per weight and row in both."""

    def time(arm: str, o: Operator, batch: int, weight_format: str) -> float:
        size, tiles = o.n * o.k, -(-batch // 16)
        free = t0_q + size * (c_q + row_s * batch)
        per_weight = {
            "stream": c_q * 0.8,
            "unpack": c_q * 0.8 + 0.01e-12,
            "scale": c_q * 0.8 + 0.03e-12,
        }
        if arm in per_weight:
            return t0_q + size * per_weight[arm]
        return {
            "native": t0_16 + size * (c_16 + row_s * batch),
            "bypass": free,
            "fused": free + size * tiles * phi,
            "dequantize": t0_q + size * 1e-12,
            "unfused": t0_q + t0_16 + size * (1e-12 + c_16 + row_s * batch),
        }[arm]

    return time
