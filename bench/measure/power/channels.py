"""The channels of an NVIDIA board: how each is asked for, and when its answer is a value.

A driver that lacks a sensor may say so, or answer 0, NaN or a number that stands for "not available". None of
these is a measurement: such a channel does not exist, and the reason is kept.

Units and meaning: nvml.h of nvidia-ml 13.0, as nvidia-ml-py 13.615 has them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from bench.analysis.traces import CHANNELS
from bench.measure.power.boards import CLAUSES, FUNCTION_NOT_FOUND, NOT_SUPPORTED, clause

FIELDS = {"energy_j": 83, "power_instant_w": 186, "power_average_w": 185}  # in mJ, mW, mW
SCOPE_GPU = 0  # not the module with its CPU, nor the memory alone
ZERO_TRIES, ZERO_WAIT_S = 4, 0.1  # the counter and most sensors are renewed within 0.1 s
_THOUSANDTHS = ("energy_j", "power_instant_w", "power_average_w")
# Lowest and highest credible value; 10 kW is several times what any board draws.
_CREDIBLE = {
    "energy_j": (0.001, 2.0**53),
    "power_instant_w": (0.001, 1e4),
    "power_average_w": (0.001, 1e4),
    "sm_clock_mhz": (1, 5e4),
    "memory_clock_mhz": (1, 5e4),
    "temperature_c": (1, 200),
    "event_reasons": (0, 2.0**53),
}
_NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)  # NVML_VALUE_NOT_AVAILABLE, as 32 bits and as 64
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
_SM, _MEMORY = 1, 2  # nvmlClockType_t

Call = Callable[[], float]


class NoValueError(Exception):
    """NVML answered, but not with a value; the message is a clause."""


def probe(nv: Any, handle: Any) -> tuple[tuple[str, ...], dict[str, Call], dict[str, str]]:
    """Which channels come as fields, which by calls of their own, and why the others do not come."""
    fields: list[str] = []
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    ways = _ways(nv, handle)
    for channel in CHANNELS:
        reasons = []
        if channel in FIELDS:
            why = _first_value(nv, channel, lambda c=channel: _field(nv, handle, c))  # type: ignore[misc]
            if not why:
                fields.append(channel)
                continue
            reasons.append(why)
        for call in ways[channel]:
            why = _first_value(nv, channel, call)
            if not why:
                calls[channel] = _checking(channel, call)
                break
            reasons.append(why)
        else:
            missing[channel] = _most_telling(reasons)
    return tuple(fields), calls, missing


def _most_telling(reasons: list[str]) -> str:
    """Of why the ways to a channel fail: the first that is more than a missing feature, or the first."""
    known = [r for r in reasons if r not in (CLAUSES[NOT_SUPPORTED], CLAUSES[FUNCTION_NOT_FOUND])]
    return [*known, *reasons, "there is no way known to ask for it"][0]


def _ways(nv: Any, handle: Any) -> dict[str, list[Call]]:
    """How a channel can be read without fields, the best way first."""

    def call(name: str, *arguments: object) -> list[Call]:
        function = getattr(nv, name, None)  # the binding drops functions after years
        return [] if function is None else [lambda: function(handle, *arguments)]

    power = _channel_of_power_usage(nv, handle)
    usage = call("nvmlDeviceGetPowerUsage")
    return {
        "energy_j": call("nvmlDeviceGetTotalEnergyConsumption"),
        "power_instant_w": usage if power == "power_instant_w" else [],
        "power_average_w": usage if power == "power_average_w" else [],
        "sm_clock_mhz": call("nvmlDeviceGetClockInfo", _SM),
        "memory_clock_mhz": call("nvmlDeviceGetClockInfo", _MEMORY),
        "temperature_c": call("nvmlDeviceGetTemperature", 0) + call("nvmlDeviceGetTemperatureV", 0),
        "event_reasons": call("nvmlDeviceGetCurrentClocksEventReasons")
        + call("nvmlDeviceGetCurrentClocksThrottleReasons"),
    }


def _channel_of_power_usage(nv: Any, handle: Any) -> str | None:
    """Which power nvmlDeviceGetPowerUsage is; None where that cannot be told.

    "On Ampere (except GA100) or newer GPUs, the API returns power averaged over 1 sec interval. On GA100
    and older architectures, instantaneous power is returned." (nvml.h). GA100 is capability 8.0.
    """
    try:
        major, minor = nv.nvmlDeviceGetCudaComputeCapability(handle)
    except nv.NVMLError:
        return None
    return "power_instant_w" if (major, minor) <= (8, 0) else "power_average_w"


def _first_value(nv: Any, channel: str, call: Call) -> str:
    """Empty once a channel gives a value; otherwise why not. What reads 0 is asked again for a while."""
    why = ""
    for attempt in range(ZERO_TRIES):
        if attempt:
            time.sleep(ZERO_WAIT_S)
        raw = math.nan
        try:
            raw = call()
            _checked(channel, raw)
            return ""
        except nv.NVMLError as error:
            return clause(error)
        except NoValueError as problem:
            why = str(problem)
            if raw != 0:
                break
    return why


def _field(nv: Any, handle: Any, channel: str) -> float:
    """One field's raw value."""
    return _raw(nv, nv.nvmlDeviceGetFieldValues(handle, [(FIELDS[channel], SCOPE_GPU)])[0])


def ask_fields(nv: Any, handle: Any, channels: tuple[str, ...]) -> dict[str, float | Exception]:
    """All fields in one call: for each channel its value, or what was wrong."""
    try:
        found = nv.nvmlDeviceGetFieldValues(handle, [(FIELDS[c], SCOPE_GPU) for c in channels])
    except nv.NVMLError as error:
        return dict.fromkeys(channels, error)
    return {
        channel: outcome(nv, lambda c=channel, f=one: _checked(c, _raw(nv, f)))  # type: ignore[misc]
        for channel, one in zip(channels, found, strict=True)
    }


def _raw(nv: Any, found: Any) -> float:
    """What a field says in the type that it claims."""
    if found.nvmlReturn:
        raise nv.NVMLError(found.nvmlReturn)
    if not 0 <= found.valueType < len(_MEMBERS):
        raise NoValueError(f"a value of the unknown type {found.valueType}")
    value: float = getattr(found.value, _MEMBERS[found.valueType])
    return value


def _checking(channel: str, call: Call) -> Call:
    return lambda: _checked(channel, call())


def _checked(channel: str, raw: float) -> float:
    """A raw number in the channel's unit.

    Raises:
        NoValueError: it stands for something else, or cannot be.
    """
    if math.isnan(raw):
        raise NoValueError("it reads NaN")
    if raw in _NOT_AVAILABLE:
        raise NoValueError(f"it reads {raw:.0f}, which stands for not available")
    low, high = _CREDIBLE[channel]
    value = raw / 1000 if channel in _THOUSANDTHS else float(raw)
    if not low <= value <= high:
        raise NoValueError("it reads 0" if raw == 0 else f"it reads {raw:g}, which cannot be")
    return value


def outcome(nv: Any, call: Call) -> float | Exception:
    """A call's value, or what went wrong with it."""
    try:
        return call()
    except (nv.NVMLError, NoValueError) as problem:
        return problem
