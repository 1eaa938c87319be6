"""Other people's kernels as the model sees them: instruction counts of shipped machine code.

The counts are in `peers.toml`, with their origin. They stand in for measurements that we do not have, and
they are what published times can be compared with: `bench/validate.py` does, for those that have any.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.static.cost import InstructionCounts, KernelCost

PEERS_FILE = Path(__file__).with_name("peers.toml")
NO_LIMIT = 1 << 30
PARTS = ("counts", "per_row", "per_tile")


@dataclass(frozen=True)
class Peer:
    """One kernel and what it reads.

    Attributes:
        key: its name in the file.
        format: of the weights: "int4", "nf4", "int8", "fp8", "16-bit", ...
        listed: whether it has a row in the table of limits.
        version: of what was counted; "" where nothing was.
        cost: what it asks of a GPU.
    """

    key: str
    format: str
    listed: bool
    version: str
    cost: KernelCost


@cache
def load_peers() -> dict[str, Peer]:
    """Every kernel in `peers.toml`, in its order."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(PEERS_FILE.read_text(encoding="utf-8"))
    return {key: _peer(key, dict(table)) for key, table in tables.items()}


def listed_peers() -> tuple[Peer, ...]:
    """The kernels of the table of limits."""
    return tuple(peer for peer in load_peers().values() if peer.listed)


def _peer(key: str, table: dict[str, Any]) -> Peer:
    weight_format, listed = table.pop("format"), table.pop("listed", False)
    version = table.pop("version", "")
    batches = (table.pop("batch_minimum", 1), table.pop("batch_maximum", NO_LIMIT))
    parts: dict[str, Any] = {
        name: InstructionCounts(**table.pop(name)) for name in PARTS if name in table
    }
    return Peer(key, weight_format, listed, version, KernelCost(batches=batches, **parts, **table))
