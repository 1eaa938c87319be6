"""A profile with joules on disk: a short simulated run of two operators on an H100, and its power trace.

path = write(folder)             # run.json, run.*.parquet and run.*.power.parquet
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import planted_truth

import bench.measure.run as run_module
from bench.analysis.energy import Rules
from bench.measure import assemble
from bench.measure.devices.simulated import open_simulated
from bench.measure.journal import Journal
from bench.measure.records import EnergyPlan, Plan
from bench.measure.run import Run
from kernels.formats import find_format
from profiles.schema import Operator, Protocol

OPERATORS = (Operator(name="qkv", n=6144, k=4096), Operator(name="down", n=4096, k=14336, count=2))
BATCHES = (1, 8, 64)
RULES = Rules(window_s=1.0, updates=9, idle_s=2.0, settle_s=0.2, trials=3)
PROTOCOL = Protocol(
    pilot_blocks=10, fresh_blocks_minimum=6, fresh_blocks_maximum=6, processes=2,
    target_half_width=0.02, confidence=0.95, sample_minimum_s=1e-3,
)  # fmt: skip
PLAN = Plan(
    "simulated:h100", "made-up", 32, OPERATORS, (find_format("int4-g128"),), BATCHES, None, None,
    PROTOCOL, 0, EnergyPlan("default", BATCHES, RULES),
)  # fmt: skip


def write(folder: Path, batches: tuple[int, ...] = BATCHES) -> Path:
    """Runs it, and writes what a run writes."""
    path = folder / "run.json"
    plan = replace(PLAN, batches=batches, energy=EnergyPlan("default", batches, RULES))
    with (
        mock.patch.object(run_module, "Worker", planted_truth.InProcess),
        Journal(folder / "run.jsonl") as journal,
    ):
        Run(plan, journal, lambda progress: None, open_simulated).measure()
        ledger = journal.ledger
    assemble.write(ledger, path)
    return path
