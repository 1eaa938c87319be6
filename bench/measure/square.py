"""A square wave on the device at hand, to find out what its energy sensor is like.

    rest | on off on off ... 80 lengths of 60 to 500 ms | off 3 s | on 3 s | off 3 s | rest

The load is the vendor's 16-bit kernel at batch 1, layer after layer; what matters is that it goes on and off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.analysis.characterise import Characterisation, characterise, square_wave
from bench.analysis.traces import switched_s
from bench.measure.devices import Burst, Device, open_device
from bench.measure.lock import DeviceLock
from bench.measure.meters import Meter, NoMeter, find_meter
from bench.measure.power import SensorInfo
from bench.measure.worker import Setup, Worker
from kernels.formats import WeightFormat
from profiles.schema import DeviceInfo, Operator

IDLE_S = 3.0


class SquareError(RuntimeError):
    """The square wave could not be run; the message is a clause."""


@dataclass(frozen=True)
class Found:
    """What was found, and on what.

    Attributes:
        device: the device.
        info: the sensor.
        characterisation: what the square wave shows of it.
    """

    device: DeviceInfo
    info: SensorInfo
    characterisation: Characterisation


def bursts() -> tuple[Burst, ...]:
    """The square wave as seconds of work and of rest after it; the rest before it is a recording's own."""
    steps = square_wave()[1:]
    return tuple((on.seconds, off.seconds) for on, off in zip(steps[::2], steps[1::2], strict=True))


def characterise_here(
    gpu: str,
    operators: tuple[Operator, ...],
    weight_format: WeightFormat,
    opener: Callable[[str], Device] = open_device,
    open_meter: Callable[[DeviceInfo], Meter | NoMeter] = find_meter,
) -> Found:
    """Runs the square wave.

    Args:
        gpu: which device.
        operators: of the layer that is the load.
        weight_format: whose problems name the load; its 16-bit kernel is run.
        opener: how a worker opens the device.
        open_meter: finds what measures its energy.

    Raises:
        DeviceError: the device is not there, or in use.
        SquareError: there is no sensor, no kernel, or too little memory.
        WorkerLostError: the load crashed.
    """
    worker = Worker(Setup(gpu, operators, None, None, {}), opener)
    try:
        device = worker.opened.device
        with DeviceLock(device):
            meter = open_meter(device)
            if isinstance(meter, NoMeter):
                raise SquareError(meter.reason)
            try:
                states = worker.begin(weight_format.name, [1], {}).states
                layer = tuple(s.name for s in states if s.name.arm == "vendor" and not s.failure)
                if len(layer) != len(operators):
                    raise SquareError("no 16-bit kernel of the library runs here")
                repeats = {s.name: s.repeats for s in states if not s.failure}
                refused = worker.begin(weight_format.name, [1], repeats, [layer]).refused
                if refused:
                    raise SquareError(refused[layer])
                worker.ready(layer)
                recording = meter.record(
                    lambda: worker.steady(bursts(), (0, 0, 1, 0, 1), IDLE_S), IDLE_S, 0.0
                )
            finally:
                meter.close()
    finally:
        worker.close()
    switched = switched_s(recording.loads)
    return Found(device, meter.info, characterise(recording.trace, switched, device.evidence))
