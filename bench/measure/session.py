"""The arms of a format on one device, in one process: verify, choose repeats, rotate weights, run blocks.

    begin       every kernel of every operator and batch: prepare, verify (or warm up, where an earlier
                process of the run has verified it), choose repeats; then rotate the weights
    block       every operator, and every arm of it, once, in random order
    steady      one arm for seconds on end, layer after layer: what energy is measured on

A block spans all operators of the layer, so that sums over operators are paired like single operators.

Rotation. Between two uses of one copy of the weights more than twice the last-level cache must be touched.
On a device that replays copies in a fixed order a pool must do that alone. Elsewhere the other samples of a
block help: a pool gets the copies of one block and of as much more as touches twice the cache, for full
blocks and for those of the compared arms alone. Where layers of one arm follow each other, as many copies of
all its operators are needed as make layers of twice the cache.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.analysis.traces import Load
from bench.measure.devices import Burst, Device, Float16, Mode, PoolKey, Prepared, Problem, Sample
from kernels.formats import WeightFormat
from kernels.kernel import Kernel, Traffic, UnsupportedError, traffic_of
from kernels.unfused import compose
from profiles.files import printable
from profiles.schema import NOT_HERE, Operator

SAMPLE_S = 1.2e-3  # planned length of a sample: METHOD asks for more than 1 ms
COMPARED_SAMPLE_S = (
    3e-3  # of the arms whose differences are the result: longer samples, fewer blocks
)
COMPARED = ("bypass", "fused", "native", "vendor", "unfused")
BASELINES = ("native", "vendor")  # reading 16-bit weights: best16 is the faster of them
CACHE_MULTIPLE = 2  # bytes touched between two uses of a copy, in last-level caches
LONGEST_LINE = 300  # of what a kernel raises


@dataclass(frozen=True)
class ArmName:
    """What identifies one timed arm; the fields are those of a profile's row."""

    operator: str
    batch: int
    format: str
    arm: str
    implementation: str
    variant: str
    weight_format: str

    @classmethod
    def of(cls, problem: Problem, kernel: Kernel) -> ArmName:
        """The name of a kernel on a problem."""
        reads = kernel.reads(problem.format, problem.activation).name
        return cls(
            problem.operator, problem.batch, problem.format.name,
            kernel.arm, kernel.implementation, kernel.variant, reads,
        )  # fmt: skip

    @property
    def kernel(self) -> tuple[str, ...]:
        """What the same kernel has in common on every operator and batch."""
        return (self.format, self.arm, self.implementation, self.variant, self.weight_format)

    def __str__(self) -> str:
        return (
            f"{self.arm} ({self.implementation}, {self.weight_format}) "
            f"on {self.operator} at batch {self.batch}"
        )


Layer = tuple[ArmName, ...]  # one arm on every operator


@dataclass(frozen=True)
class Bar:
    """A kernel that crashed on several problems is left alone on others, from some batch on.

    Attributes:
        kernel: ArmName.kernel.
        batch: problems from this batch on; those of smaller ones came before the crash.
        reason: how it crashed.
    """

    kernel: tuple[str, ...]
    batch: int
    reason: str

    def covers(self, name: ArmName) -> bool:
        """Whether an arm is the kernel on such a problem."""
        return name.kernel == self.kernel and name.batch >= self.batch


@dataclass(frozen=True)
class ArmState:
    """What is known of an arm before it is timed.

    Attributes:
        name: which arm.
        error: largest error over the largest magnitude of the reference; None when it was not
            verified here.
        repeats: launches per sample.
        traffic: bytes and operations of one launch; None where it was not tried here.
        failure: why it is not timed; empty when it is. NOT_HERE begins what the device cannot do.
        estimate_s: roughly the seconds of one launch; None when it was not estimated here.
        activation_error: of `lowp`, what quantizing x adds to the error of y.
        configuration: its launch configuration in words, see Kernel.configuration.
        reference_error: how far the reference of its own is from ours, where it has one.
        local_bytes: of local memory per thread, None where nobody says.
    """

    name: ArmName
    error: float | None
    repeats: int
    traffic: Traffic | None = None
    failure: str = ""
    estimate_s: float | None = None
    activation_error: float | None = None
    configuration: str = ""
    reference_error: float | None = None
    local_bytes: int | None = None


@dataclass(frozen=True)
class Timed:
    """One sample of one arm."""

    name: ArmName
    position: int
    sample: Sample


@dataclass
class _Arm:
    prepared: Prepared
    state: ArmState


@dataclass
class Session:
    """A format on a device; see the module.

    Attributes:
        device: the device.
        operators: the operators of a layer.
        activation: dtype of x.
        mode: "graph" or "eager".
        skip: arms that crashed a worker before; they are listed as failed and left alone.
        bars: kernels that are not tried on problems on which they have not run before.
        rotation_bytes: after begin, the bytes touched between two uses of any one copy.
        refused: after begin for layers, those that cannot be run, and why.
        users: kernels that somebody else wrote, timed after ours.
        announce: called with an arm's name before it runs for the first time and before each sample,
            and with None when no arm is to blame for what follows.
    """

    device: Device
    operators: tuple[Operator, ...]
    activation: Float16
    mode: Mode
    skip: Mapping[ArmName, str] = field(default_factory=dict)
    announce: Callable[[ArmName | None], None] = lambda name: None
    bars: tuple[Bar, ...] = ()
    users: Sequence[Kernel] = ()
    rotation_bytes: int = 0
    refused: dict[Layer, str] = field(default_factory=dict)
    _arms: dict[int, list[_Arm]] = field(default_factory=dict, repr=False)

    def begin(
        self,
        weight_format: WeightFormat,
        batches: Collection[int],
        planned: Mapping[ArmName, int],
        layers: Collection[Layer] | None = None,
    ) -> list[ArmState]:
        """Verifies every arm of a format and rotates its weights; the format before is forgotten.

        Args:
            weight_format: the format.
            batches: the batches that blocks will be asked for.
            planned: launches per sample of the arms that an earlier process of the run verified;
                these are warmed up instead of verified again.
            layers: what `steady` will be asked for; None: `block` will be.

        Returns:
            One state per arm, in the order of the ladder; failed ones among them.
        """
        self.device.release()
        self._arms = {}
        failed: list[ArmState] = []
        for batch in batches:
            problems = [
                Problem(o.name, o.n, o.k, batch, weight_format, self.activation)
                for o in self.operators
            ]
            arms = [
                self._consider(problem, kernel, planned)
                for problem in problems
                for kernel in self._kernels(problem)
            ]
            sound = [arm for arm in arms if isinstance(arm, _Arm)]
            unfused = _unfused(sound, planned)
            if unfused is not None:
                arms += [self._consider(problem, unfused, planned) for problem in problems]
            self._arms[batch] = [arm for arm in arms if isinstance(arm, _Arm)]
            failed += [arm for arm in arms if isinstance(arm, ArmState)]
        self.announce(None)
        if layers is None:
            self._rotate()
        else:
            self._rotate_layers(layers)
        return [arm.state for arms in self._arms.values() for arm in arms] + failed

    def _kernels(self, problem: Problem) -> list[Kernel]:
        """Ours, then those of others, that have a row for the problem."""
        asked = (problem.format, problem.activation, problem.batch)
        others = [kernel for kernel in self.users if kernel.accepts(*asked)]
        return [*self.device.kernels(problem), *others]

    def block(
        self,
        batch: int,
        seed: tuple[int, ...],
        only: Collection[ArmName] | None = None,
        elapsed_s: float = 0.0,
    ) -> list[Timed]:
        """Times every arm of every operator once, or those named in `only`.

        Operators come in random order, and so do the arms of each; the arms of one operator are
        neighbours in time, because what is compared should see the same moment of the machine.
        """
        rng = np.random.default_rng(seed)
        self.device.start_block(seed, elapsed_s)
        timed: list[Timed] = []
        for index in rng.permutation(len(self.operators)):
            operator = self.operators[index].name
            arms = [
                arm
                for arm in self._arms[batch]
                if arm.state.name.operator == operator and (only is None or arm.state.name in only)
            ]
            for choice in rng.permutation(len(arms)):
                arm = arms[choice]
                self.announce(arm.state.name)
                sample = self.device.sample(arm.prepared, arm.state.repeats, self.mode)
                timed.append(Timed(arm.state.name, len(timed), sample))
        return timed

    def ready(self, layer: Layer) -> None:
        """Makes one arm ready for `steady`.

        Raises:
            ValueError: an operator's arm is not there.
        """
        arms = self._of_layer(layer)
        self.announce(layer[0])
        self.device.ready(
            [(arm.prepared, self._count(arm)) for arm in arms],
            self._layers_of(arms),
            self.mode,
        )

    def steady(
        self, bursts: Sequence[Burst], seed: tuple[int, ...], elapsed_s: float
    ) -> tuple[Load, ...]:
        """Runs the arm that is ready, layer after layer.

        Args:
            bursts: how long, and how long to rest after that, again and again.
            seed: of the moment, for a simulated device; see `Device.start_block`.
            elapsed_s: the same.
        """
        self.device.start_block(seed, elapsed_s)
        loads = self.device.steady(bursts)
        self.announce(None)
        return loads

    def _of_layer(self, layer: Layer) -> list[_Arm]:
        known = {arm.state.name: arm for arm in self._arms.get(layer[0].batch, ())}
        missing = [str(name) for name in layer if name not in known]
        if missing:
            raise ValueError(f"{missing[0]} cannot run")
        return [known[name] for name in layer]

    def _layers_of(self, arms: Sequence[_Arm]) -> int:
        """Layers with weights of their own, so that as many, less one, exceed twice the cache."""
        return math.ceil(CACHE_MULTIPLE * self.device.cache_bytes / self._layer_bytes(arms)) + 1

    def _layer_bytes(self, arms: Sequence[_Arm]) -> int:
        return sum(self._count(arm) * arm.prepared.copy_bytes for arm in arms)

    def _count(self, arm: _Arm) -> int:
        """How often a layer has the arm's operator."""
        return next(o.count for o in self.operators if o.name == arm.state.name.operator)

    def _rotate_layers(self, layers: Collection[Layer]) -> None:
        """Gives the pools of each layer enough copies, or notes why it cannot."""
        copies: dict[PoolKey, int] = {}
        size: dict[PoolKey, int] = {}
        distances = []
        self.refused = {}
        for layer in layers:
            try:
                arms = self._of_layer(layer)
            except ValueError as missing:
                self.refused[layer] = str(missing)
                continue
            needed = self._layers_of(arms)
            distances.append((needed - 1) * self._layer_bytes(arms))
            for arm in arms:
                pool = arm.prepared.pool
                count = needed * self._count(arm)
                copies[pool] = max(copies.get(pool, 1), count)
                size[pool] = arm.prepared.copy_bytes
        total = sum(count * size[pool] for pool, count in copies.items())
        free = self.device.free_bytes()
        if total > free:
            why = (
                f"cold weights for whole layers need {total / 1e9:.1f} GB, "
                f"and {free / 1e9:.1f} GB are free"
            )
            self.refused = {layer: self.refused.get(layer, why) for layer in layers}
            return
        self.device.rotate(copies)
        self.rotation_bytes = min(distances, default=0)

    def _consider(
        self, problem: Problem, kernel: Kernel, planned: Mapping[ArmName, int]
    ) -> _Arm | ArmState:
        """The arm, ready to be timed; or its state with the reason why it may not be."""
        name = ArmName.of(problem, kernel)
        state = ArmState(name, None, 1)
        self.announce(name)
        if name in self.skip:
            return replace(state, failure=self.skip[name])
        for bar in self.bars:
            if bar.covers(name) and name not in planned:
                return replace(state, failure=bar.reason)
        try:
            asked = (problem.format, problem.activation, problem.n, problem.k, problem.batch)
            state = replace(state, traffic=traffic_of(kernel, *asked))
            prepared = self.device.prepare(problem, kernel)
            state = replace(state, configuration=prepared.configuration.text)
            if name in planned:
                self.device.warm(prepared)
                return _Arm(prepared, replace(state, repeats=planned[name]))
            error = self.device.verify(prepared)
            if kernel.arm == "lowp":
                state = replace(state, activation_error=self.device.activation_error(prepared))
            if kernel.reference is not None:
                state = replace(state, reference_error=self.device.reference_error(prepared))
            if not error <= kernel.tolerance:
                return replace(
                    state,
                    error=error if math.isfinite(error) else None,
                    failure=f"wrong result: off by {error:.2g} of the largest value, "
                    f"and {kernel.tolerance:.2g} is allowed",
                )
            state = replace(state, local_bytes=self.device.local_bytes(prepared))
            estimate_s = self.device.estimate_s(prepared)
        except UnsupportedError as reason:
            return replace(state, failure=f"{NOT_HERE}{reason}")
        except Exception as reason:  # whatever a compiler or a driver may raise costs this row only
            self.device.check()
            return replace(state, failure=f"could not run: {first_line(reason)}")
        compared = kernel.arm in COMPARED and name.weight_format in (
            problem.format.name,
            problem.activation,
        )
        length_s = COMPARED_SAMPLE_S if compared else SAMPLE_S
        repeats = max(1, math.ceil(length_s / estimate_s))
        return _Arm(prepared, replace(state, error=error, repeats=repeats, estimate_s=estimate_s))

    def _rotate(self) -> None:
        """Gives every pool enough copies, and notes the bytes between two uses of the worst one."""
        enough = CACHE_MULTIPLE * self.device.cache_bytes
        size = {
            arm.prepared.pool: arm.prepared.copy_bytes
            for arms in self._arms.values()
            for arm in arms
        }
        copies = {
            pool: math.ceil(enough / size[pool]) + 1 for pool in size
        }  # enough without others
        blocks = [_Block.of(arms) for arms in self._arms.values()]
        blocks += [
            _Block.of([arm for arm in arms if _in_every_block(arm)]) for arms in self._arms.values()
        ]
        if not self.device.own_cycle:
            for pool in size:
                with_others = [
                    b.uses[pool] * (enough / b.touched + 1) for b in blocks if b.uses[pool]
                ]
                copies[pool] = max(2, min(copies[pool], math.ceil(max(with_others))))
        total = sum(count * size[pool] for pool, count in copies.items())
        shrink = min(1.0, self.device.free_bytes() / max(total, 1))
        copies = {pool: max(2, math.floor(count * shrink)) for pool, count in copies.items()}
        self.device.rotate(copies)
        distances: list[float] = []
        for pool, count in copies.items():
            alone = (count - 1) * size[pool]
            with_others = [(count / b.uses[pool] - 1) * b.touched for b in blocks if b.uses[pool]]
            distances.append(alone if self.device.own_cycle else max(alone, min(with_others)))
        self.rotation_bytes = int(min(distances, default=0))


@dataclass(frozen=True)
class _Block:
    """What a block does to the caches: launches per pool, and the bytes of weights that it touches."""

    uses: Mapping[PoolKey, int]
    touched: int

    @classmethod
    def of(cls, arms: Sequence[_Arm]) -> _Block:
        """A block of these arms.

        Of the 16-bit arms only the smallest counts as touching its weights: a block beyond the
        minimum has but one of them.
        """
        uses: dict[PoolKey, int] = defaultdict(int)
        sixteen: dict[tuple[str, str], int] = defaultdict(int)
        touched = 0
        for arm in arms:
            uses[arm.prepared.pool] += arm.state.repeats + 1
            arm_bytes = arm.state.repeats * arm.prepared.copy_bytes
            if arm.prepared.kernel.weight_bits == 16:
                sixteen[arm.state.name.arm, arm.state.name.implementation] += arm_bytes
            else:
                touched += arm_bytes
        return cls(uses, max(1, touched + min(sixteen.values(), default=0)))


def _in_every_block(arm: _Arm) -> bool:
    """Whether blocks beyond the minimum may time it too."""
    return arm.state.name.arm in ("fused", "bypass", "unfused") or (
        arm.state.name.arm in BASELINES and arm.prepared.kernel.weight_bits == 16
    )


def _unfused(arms: Sequence[_Arm], planned: Mapping[ArmName, int]) -> Kernel | None:
    """Dequantize and the 16-bit kernel that is fastest over the layer, or was in an earlier process."""
    dequantize = [a.prepared.kernel for a in arms if a.state.name.arm == "dequantize"]
    totals: dict[int, float] = defaultdict(float)
    counts: dict[int, int] = defaultdict(int)  # operators it is right on
    kernels: dict[int, Kernel] = {}
    for arm in arms:
        kernel = arm.prepared.kernel
        if kernel.weight_bits == 16 and kernel.arm in BASELINES:
            kernels[id(kernel)] = kernel
            totals[id(kernel)] += arm.state.estimate_s or 0.0
            counts[id(kernel)] += 1
    complete = max(counts.values(), default=0)
    kernels = {key: kernel for key, kernel in kernels.items() if counts[key] == complete}
    if not dequantize or not kernels:
        return None
    candidates = {key: compose(dequantize[0], kernel) for key, kernel in kernels.items()}
    batch = arms[0].state.name.batch
    earlier = {
        (n.implementation, n.variant) for n in planned if n.arm == "unfused" and n.batch == batch
    }
    for candidate in candidates.values():
        if (candidate.implementation, candidate.variant) in earlier:
            return candidate
    return candidates[min(candidates, key=lambda key: totals[key])]


def first_line(error: BaseException) -> str:
    """What somebody's kernel or module raised, in one line that fits into a profile."""
    try:
        lines = str(error).strip().splitlines() or [repr(error)]
    except Exception:  # even to ask may fail
        return type(error).__name__
    return printable(lines[0], LONGEST_LINE)
