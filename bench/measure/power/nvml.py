"""Joules and watts of an NVIDIA board from its driver: the energy counter and two kinds of power, side by side.

    one reading   | energy, instant, average | event reasons | SM clock, memory clock or temperature |
                    GetFieldValues, one call   every time      in turn

Counter and powers must be of the same moment, so they come in one call where the driver has their fields.
Event reasons decide whether a window counts, and what causes them may be over soon, so they are always asked.
Clocks and temperature change slowly, and every call into the driver costs the host time: one of them per
reading, in turn, so that all readings cost the same. A channel not asked this time is not in the reading.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from bench.analysis.traces import CHANNELS
from bench.measure.power import SensorError, SensorInfo
from bench.measure.power.boards import (
    FATAL,
    Board,
    clause,
    facts,
    find,
    refuse_shared_watts,
    start,
    strangers,
)
from bench.measure.power.channels import Call, ask_fields, outcome, probe

IN_TURN = ("sm_clock_mhz", "memory_clock_mhz", "temperature_c")


class NvmlSensor:
    """The sensor of one board. Made by `open`."""

    def __init__(
        self, nv: Any, board: Board, fields: tuple[str, ...], calls: dict[str, Call],
        missing: dict[str, str],
    ) -> None:  # fmt: skip
        self._nv, self._board, self._open = nv, board, True
        self._fields = fields
        self._always = {c: call for c, call in calls.items() if c not in IN_TURN}
        self._in_turn = [(c, call) for c, call in calls.items() if c in IN_TURN]
        self._turn = 0
        self._info = SensorInfo(
            name="NVML",
            scope="the GPU, without its CPU" if "GH200" in board.name else "the whole board",
            model=board.name,
            channels=tuple(c for c in CHANNELS if c in fields or c in calls),
            missing=missing,
            facts=facts(nv, board),
        )

    @classmethod
    def open(cls, which: str) -> NvmlSensor:
        """The sensor of one board; `info.missing` says which channels it lacks and why.

        Args:
            which: the board's UUID, the hash of that in a profile (`DeviceInfo.uuid_hash`), its PCI id,
                or NVML's index.

        Raises:
            SensorError: NVML cannot be used, the board is not there, or its watts are not the program's
                alone (MIG, virtual GPU, other processes).
        """
        nv = start()
        try:
            board = find(nv, which)
            refuse_shared_watts(nv, board)
            return cls(nv, board, *probe(nv, board.handle))
        except BaseException:
            _shut_down(nv)
            raise

    @property
    def info(self) -> SensorInfo:
        """See the protocol."""
        return self._info

    def read(self) -> tuple[dict[str, float], str]:
        """See the protocol."""
        if not self._open:
            raise SensorError("the sensor has been closed")
        answers: dict[str, float | Exception] = {}
        if self._fields:
            answers |= ask_fields(self._nv, self._board.handle, self._fields)
        calls = dict(self._always)
        if self._in_turn:
            channel, call = self._in_turn[self._turn % len(self._in_turn)]
            calls[channel] = call
            self._turn += 1
        for channel, call in calls.items():
            answers[channel] = outcome(self._nv, call)
        return _sorted_out(answers)

    def read_channel(self, channel: str) -> tuple[dict[str, float], str]:
        """One channel alone, to learn what it costs.

        Raises:
            SensorError: see `read`.
        """
        if channel in self._fields:
            return _sorted_out(ask_fields(self._nv, self._board.handle, (channel,)))
        call = (self._always | dict(self._in_turn))[channel]
        return _sorted_out({channel: outcome(self._nv, call)})

    def strangers(self) -> tuple[int | None, int | None]:
        """How many processes of others use the board now, and how many cannot be told; see `boards`.

        To be asked again around every window: `open` has refused a board that others were using then.
        """
        return strangers(self._nv, self._board)

    def close(self) -> None:
        """See the protocol."""
        if self._open:
            self._open = False
            _shut_down(self._nv)


def _sorted_out(answers: Mapping[str, float | Exception]) -> tuple[dict[str, float], str]:
    """Values, and in words what was wrong.

    Raises:
        SensorError: one of the errors says that the board or the driver is gone.
    """
    values: dict[str, float] = {}
    problems: dict[str, list[str]] = {}
    for channel, answer in answers.items():
        if not isinstance(answer, Exception):
            values[channel] = answer
            continue
        code = getattr(answer, "value", None)
        why = str(answer) if code is None else clause(answer)
        if code in FATAL:
            raise SensorError(why)
        problems.setdefault(why, []).append(channel)
    return values, "; ".join(f"{', '.join(names)}: {why}" for why, names in problems.items())


def _shut_down(nv: Any) -> None:
    with contextlib.suppress(nv.NVMLError):  # when the driver is gone, all of ours is too
        nv.nvmlShutdown()
