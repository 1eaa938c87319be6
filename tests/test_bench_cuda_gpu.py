"""What only a GPU can show of energy: steady layers as fast as they were timed, and a sensor that answers."""

from __future__ import annotations

import pytest

from bench.measure.devices import open_device
from bench.measure.meters import NoMeter, find_meter
from bench.measure.session import Session
from kernels.formats import find_format
from profiles.schema import Operator

pytestmark = pytest.mark.gpu
OPERATORS = (Operator(name="qkv", n=6144, k=4096), Operator(name="down", n=4096, k=14336, count=2))


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_layers_run_as_fast_as_they_were_timed(mode: str) -> None:
    device = open_device("cuda")
    session = Session(device, OPERATORS, "fp16", mode)  # type: ignore[arg-type]
    weight_format = find_format("int4-g128")
    states = session.begin(weight_format, [1], {})
    fused = [s for s in states if s.name.arm == "fused" and not s.failure]
    assert {s.local_bytes for s in fused} == {0}
    plain = ("triton", "gemv")
    layer = tuple(s.name for s in fused if (s.name.implementation, s.name.variant) == plain)
    assert len(layer) == len(OPERATORS)
    counts = {o.name: o.count for o in OPERATORS}
    timed = [session.block(1, (0, block), set(layer)) for block in range(5)]
    times = [sum(counts[t.name.operator] * t.sample.time_s for t in block) for block in timed]
    repeats = {s.name: s.repeats for s in states if not s.failure}
    session.begin(weight_format, [1], repeats, [layer])
    assert not session.refused
    session.ready(layer)
    (load,) = session.steady(((1.0, 0.0),), (0,), 0.0)
    assert 1.0 <= load.ended_s - load.began_s < 1.3
    assert [s for s, _ in load.marks] == sorted(s for s, _ in load.marks)
    # clocks settle elsewhere under a steady load, and a graph of one operator hides its own launches
    assert load.layer_s == pytest.approx(min(times), rel=0.3)


def test_the_sensor_of_the_board_in_use_is_found() -> None:
    meter = find_meter(open_device("cuda").describe())
    assert not isinstance(meter, NoMeter), meter
    try:
        assert {"energy_j", "power_instant_w", "power_average_w"} & set(meter.info.channels)
        assert meter.info.facts["uuid_hash"] == open_device("cuda").describe().uuid_hash
    finally:
        meter.close()
