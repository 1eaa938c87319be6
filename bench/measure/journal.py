"""The samples of a run while it lasts: one JSON line each, on disk after every block.

The journal is what survives when a run does not. It is removed once the profile is safely written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Append-only samples beside the profile that they will become.

    Attributes:
        path: the journal's file.
        rows: every sample so far, as columns by name (profiles.schema.SAMPLE_COLUMNS).
        elapsed_s: of all samples so far.

    Raises:
        OSError: from the constructor and from add: the place cannot be written, or is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.elapsed_s = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Appends one block's samples and waits until they are on disk."""
        self.rows += rows
        self.elapsed_s += sum(row["time_s"] * row["calls"] for row in rows)
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Deletes the file: its samples are in a profile now, or there are none."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
