"""Verification before timing, repeats, rotation and the order of a block, on a device without hardware."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fake_device import COPY_BYTES, TIMES_S, FakeDevice, fake_kernel

from bench.measure.devices import Prepared, Problem
from bench.measure.session import ArmName, Session
from kernels.formats import find_format
from kernels.kernel import Configuration, Kernel, UnsupportedError
from profiles.schema import Operator

OPERATORS = (Operator(name="up", n=64, k=128), Operator(name="down", n=128, k=128))
INT4 = find_format("int4-g128")


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def session(device: FakeDevice) -> Session:
    return Session(device, OPERATORS, "bf16", "eager")


def test_every_arm_is_verified_and_listed_with_its_repeats(session: Session) -> None:
    states = session.begin(INT4, [1, 2], {})
    assert len(states) == len(TIMES_S) * len(OPERATORS) * 2
    for state in states:
        assert state.error == 1e-4
        assert state.failure == ""
        compared = state.name.arm in ("bypass", "fused", "native", "unfused")
        length_s = 3e-3 if compared else 1.2e-3
        assert state.repeats == math.ceil(length_s / TIMES_S[state.name.arm])


def test_unfused_is_dequantize_and_the_16_bit_kernel(session: Session) -> None:
    unfused = [s.name for s in session.begin(INT4, [1], {}) if s.name.arm == "unfused"]
    assert [(n.operator, n.implementation) for n in unfused] == [
        ("up", "fake+fake"),
        ("down", "fake+fake"),
    ]


def test_a_wrong_kernel_is_named_and_never_timed(session: Session, device: FakeDevice) -> None:
    device.errors = {"fused": 0.25, "bypass": float("inf")}
    failed = {s.name.arm: s for s in session.begin(INT4, [1], {}) if s.failure}
    assert failed["fused"].error == 0.25
    assert failed["fused"].failure == (
        "wrong result: off by 0.25 of the largest value, and 0.01 is allowed"
    )
    assert failed["bypass"].error is None
    timed = {t.name.arm for t in session.block(1, (0,))}
    assert timed == set(TIMES_S) - {"fused", "bypass"}


def test_a_kernel_that_runs_but_cannot_be_timed_costs_its_row_only(
    session: Session, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that allocates, and is then refused by the capture of a graph."""
    estimate_s = device.estimate_s

    def refuse(prepared: Prepared) -> float:
        if prepared.kernel.arm == "fused":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return estimate_s(prepared)

    monkeypatch.setattr(device, "estimate_s", refuse)
    failed = {s.name.arm: s.failure for s in session.begin(INT4, [1], {}) if s.failure}
    assert failed == {"fused": "could not run: operation not permitted when stream is capturing"}
    assert {t.name.arm for t in session.block(1, (0,))} == set(TIMES_S) - {"fused"}


def test_a_block_times_every_arm_of_every_operator_once(
    session: Session, device: FakeDevice
) -> None:
    session.begin(INT4, [1], {})
    timed = session.block(1, (7,))
    assert sorted((t.name.operator, t.name.arm) for t in timed) == sorted(
        (o.name, arm) for o in OPERATORS for arm in TIMES_S
    )
    assert [t.position for t in timed] == list(range(len(timed)))
    starts = [t.sample.started_s for t in timed]
    assert starts == sorted(starts)


def test_a_block_can_be_of_some_arms_only(session: Session) -> None:
    names = {s.name for s in session.begin(INT4, [1], {}) if s.name.arm in ("fused", "bypass")}
    assert {t.name for t in session.block(1, (0,), names)} == names


def test_the_order_is_drawn_from_the_seed_and_keeps_operators_together(session: Session) -> None:
    session.begin(INT4, [1], {})
    first, again = session.block(1, (1,)), session.block(1, (1,))
    assert [t.name for t in first] == [t.name for t in again]
    orders = {tuple(t.name for t in session.block(1, (seed,))) for seed in range(20)}
    assert len(orders) == 20
    for order in orders:
        operators = [name.operator for name in order]
        assert operators in (sorted(operators), sorted(operators, reverse=True))
    leaders = {order[0].arm for order in orders}
    assert len(leaders) > 3


def test_rotation_touches_twice_the_cache_between_two_uses(
    session: Session, device: FakeDevice
) -> None:
    states = session.begin(INT4, [1, 4], {})
    lean = {s.name for s in states if s.name.arm in ("fused", "bypass", "unfused", "native")}
    for batch, only in ((1, None), (4, None), (1, lean), (4, lean)):
        device.sampled.clear()
        session.block(batch, (0,), only)
        uses: dict[tuple[str, str], int] = {}
        for operator, arm, repeats in device.sampled:
            pool = (operator, "matrix" if arm == "native" else "words")
            uses[pool] = uses.get(pool, 0) + repeats + 1  # and the discarded launch
        touched = sum(uses.values()) * COPY_BYTES
        for pool, used in uses.items():
            own_cycle = (device.copies[pool] - 1) * COPY_BYTES
            with_others = (device.copies[pool] / used - 1) * touched
            assert max(own_cycle, with_others) >= 2 * device.cache_bytes
    assert session.rotation_bytes >= 2 * device.cache_bytes


def test_a_device_that_replays_in_order_rotates_each_pool_alone(device: FakeDevice) -> None:
    device.own_cycle = True
    session = Session(device, OPERATORS, "bf16", "graph")
    session.begin(INT4, [1], {})
    assert set(device.copies.values()) == {2 * device.cache_bytes // COPY_BYTES + 1}


def test_a_later_process_repeats_what_the_first_planned(session: Session) -> None:
    name = ArmName("up", 1, "int4-g128", "fused", "fake", "default", "int4-g128")
    states = session.begin(INT4, [1], {name: 99})
    assert {s.name: s.repeats for s in states}[name] == 99


def test_arms_that_crashed_before_are_left_alone(device: FakeDevice) -> None:
    name = ArmName("up", 1, "int4-g128", "fused", "fake", "default", "int4-g128")
    session = Session(device, OPERATORS, "bf16", "eager", skip={name: "it crashed with SIGSEGV"})
    failures = {s.name: s.failure for s in session.begin(INT4, [1], {}) if s.failure}
    assert failures == {name: "it crashed with SIGSEGV"}
    assert name not in {t.name for t in session.block(1, (0,))}


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize(
    ("arm", "stale"),
    [("bypass", "fused"), ("fused", "bypass"), ("unpack", "stream"), ("stream", "unpack")],
)
def test_a_stage_that_runs_the_code_of_another_fails_verification(
    arm: str, stale: str, batch: int
) -> None:
    """On this CPU, with real kernels: every stage has a reference of its own."""
    from bench.measure.devices.cpu import CpuDevice

    device = CpuDevice()
    problem = Problem("up", 64, 256, batch, INT4, "bf16")
    stages = {k.arm: k for k in device.kernels(problem) if k.implementation == "numba"}
    right = device.verify(device.prepare(problem, stages[arm]))
    wrong = device.verify(device.prepare(problem, replace(stages[arm], bind=stages[stale].bind)))
    assert right <= stages[arm].tolerance < wrong


def test_a_scale_stage_that_reads_halves_is_held_against_rounded_numbers() -> None:
    """The CPU's does not round NF4's numbers to bf16, and is wrong if it says that it reads halves."""
    from bench.measure.devices.cpu import CpuDevice

    device = CpuDevice()
    problem = Problem("up", 64, 256, 1, find_format("nf4-b64"), "bf16")
    (scale,) = (
        k for k in device.kernels(problem) if (k.arm, k.implementation) == ("scale", "numba")
    )
    right = device.verify(device.prepare(problem, scale))
    rounded = device.verify(device.prepare(problem, replace(scale, reading="halves")))
    assert right < 1e-5 < 1e-4 < rounded


def test_memory_of_one_format_serves_the_next() -> None:
    """What is too small for the next format makes room for it: sixteen formats must not pile up."""
    from bench.measure.devices.cpu import CpuDevice

    device = CpuDevice()
    for size in (1 << 20, 3 << 20, 2 << 20, 5 << 20):
        device._reserve((size,), torch.uint8)
        device.release()
    assert [len(memory) for memory in device._free] == [5 << 20]


class LowpDevice(FakeDevice):
    """A device with a low-precision kernel, and with one whose instructions it lacks."""

    def kernels(self, problem: Problem) -> tuple[Kernel, ...]:
        return (*super().kernels(problem), fake_kernel("lowp"), fake_kernel("lowp", "missing"))

    def prepare(self, problem: Problem, kernel: Kernel) -> Prepared:
        if kernel.implementation == "missing":
            raise UnsupportedError("this GPU has no such tensor cores")
        prepared = super().prepare(problem, kernel)
        return replace(prepared, configuration=Configuration(None, f"untuned, {kernel.arm}"))

    def activation_error(self, prepared: Prepared) -> float:
        return 0.125

    def estimate_s(self, prepared: Prepared) -> float:
        return 1e-4


def test_what_a_device_lacks_is_said_and_is_no_failure_of_the_kernel() -> None:
    states = Session(LowpDevice(), OPERATORS[:1], "bf16", "eager").begin(INT4, [1], {})
    missing, found = (
        next(s for s in states if (s.name.arm, s.name.implementation) == ("lowp", implementation))
        for implementation in ("missing", "fake")
    )
    assert missing.failure == "not on this device: this GPU has no such tensor cores"
    assert (found.failure, found.activation_error) == ("", 0.125)
    assert found.configuration == "untuned, lowp"
    assert {s.activation_error for s in states if s.name.arm != "lowp"} == {None}
