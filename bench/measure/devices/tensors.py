"""What the CPU and the CUDA device share: weights, rotated copies of them, and kernels bound to both.

Rotation. A copy of the weights must not be in the last-level cache when its turn comes again. Arms that
read the same words share a pool, and a cursor that every launch advances, so no arm finds what another has
just pulled into the cache.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch

from bench.analysis.traces import Load
from bench.measure.devices import Burst, Kind, Mode, PoolKey, Prepared, Problem
from kernels import find_kernels
from kernels.kernel import PRODUCTS, Kernel, Launch, Tensors, output_shape
from kernels.lowp import activation_error, quantize_activations
from kernels.packing import (
    BypassReading,
    Weights,
    multiplied,
    random_activations,
    random_weights,
    reference,
)

WEIGHT_SEED = 20260213
ACTIVATION_SEED = 13595
CHECKED_ROWS = 32
DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "int32": torch.int32,
}


class Pool:
    """Copies of one operator's weights in one layout; `next` is the copy whose turn it is."""

    def __init__(self, copies: list[Tensors]) -> None:
        self.copies = copies
        self.next = 0

    def take(self, launches: list[Launch], count: int) -> list[Launch]:
        """The next `count` launches, one per copy in turn."""
        size = len(launches)
        taken = [launches[(self.next + i) % size] for i in range(count)]
        self.next = (self.next + count) % size
        return taken


class TensorDevice(ABC):
    """Base of devices that run kernels on torch tensors."""

    torch_device: str
    kind: Kind

    def __init__(self) -> None:
        self._pools: dict[PoolKey, Pool] = {}
        self._packed: dict[PoolKey, Tensors] = {}
        self._launches: dict[Prepared, list[Launch]] = {}
        self._problem: Problem | None = None
        self._layers = 0  # that are ready to run
        self._weights: Callable[[Problem], Weights] = cache(_weights)
        self._matrix = cache(self._multiplied)
        self._expected = cache(self._reference)
        self._activation_error = cache(self._error_of_activations)

    @abstractmethod
    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised memory for rotated copies."""

    @abstractmethod
    def _ready(self, launches: list[Launch], mode: Mode) -> None:
        """Makes launches, which are `_layers` layers, ready to run again and again."""

    @abstractmethod
    def _burst(self, seconds: float) -> Load:
        """Runs what is ready again and again for at least so long."""

    @abstractmethod
    def _run(self, launch: Launch) -> object:
        """Runs a launch to its end."""

    def kernels(self, problem: Problem) -> tuple[Kernel, ...]:
        """Every kernel that has a row for the problem."""
        return find_kernels(self.kind, problem.format, problem.activation, problem.batch)

    def prepare(self, problem: Problem, kernel: Kernel) -> Prepared:
        """Lays out the weights if no pool holds them yet; see the protocol."""
        pool = (problem.operator, _layout(kernel))
        if pool not in self._packed:
            self._packed[pool] = kernel.pack(self._weights(_batchless(problem)))
            one = {n: t.to(self.torch_device) for n, t in self._packed[pool].items()}
            self._pools[pool] = Pool([one])
        copy_bytes = sum(t.nbytes for t in self._packed[pool].values())
        configuration = kernel.configuration(
            kernel.reads(problem.format, problem.activation),
            *(problem.activation, problem.n, problem.k, problem.batch),
        )
        prepared = Prepared(problem, kernel, pool, copy_bytes, configuration)
        self._bound(prepared)
        return prepared

    def verify(self, prepared: Prepared) -> float:
        """See the protocol; an output that was never written counts as infinitely wrong.

        Of a large batch, CHECKED_ROWS rows spread over every tile are compared, all columns of each.
        """
        problem, kernel = prepared.problem, prepared.kernel
        rows = _checked_rows(problem.batch)
        expected = self._ours(prepared) if kernel.reference is None else self._stated(prepared)
        out = self._output(prepared)
        if out.is_floating_point():
            out.fill_(float("nan"))
        else:
            out.fill_(torch.iinfo(out.dtype).min)
        result = self._run(self._bound(prepared)[0])
        got = (result if isinstance(result, torch.Tensor) else out).detach()
        if kernel.arm in PRODUCTS:
            got = got[rows]
        if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
            return float("inf")
        return _largest_error(got.to("cpu", torch.float64), expected)

    def activation_error(self, prepared: Prepared) -> float | None:
        """See the protocol; of the rows that `verify` compares."""
        return self._activation_error(prepared.problem)

    def reference_error(self, prepared: Prepared) -> float | None:
        """See the protocol."""
        if prepared.kernel.reference is None:
            return None
        return _largest_error(self._stated(prepared), self._ours(prepared))

    def seeds(self) -> dict[str, int]:
        """See the protocol."""
        return {"weights": WEIGHT_SEED, "activations": ACTIVATION_SEED}

    def warm(self, prepared: Prepared) -> None:
        """See the protocol."""
        self._run(self._bound(prepared)[0])

    def rotate(self, copies: Mapping[PoolKey, int]) -> None:
        """See the protocol; once per format. Kernels are bound to the copies when first sampled."""
        self._launches.clear()
        for key, count in copies.items():
            self._pools[key] = self._copy(self._packed[key], count)

    def start_block(self, seed: tuple[int, ...], elapsed_s: float) -> None:  # noqa: B027
        """See the protocol: hardware has its own moment."""

    def ready(self, layer: Sequence[tuple[Prepared, int]], copies: int, mode: Mode) -> None:
        """See the protocol."""
        launches = [
            self._bound(prepared)[copy * count + again]
            for copy in range(copies)
            for prepared, count in layer
            for again in range(count)
        ]
        self._layers = copies
        self._ready(launches, mode)

    def steady(self, bursts: Sequence[Burst]) -> tuple[Load, ...]:
        """See the protocol."""
        loads = []
        for seconds, rest_s in bursts:
            loads.append(self._burst(seconds))
            time.sleep(rest_s)
        return tuple(loads)

    def release(self) -> None:
        """See the protocol."""
        self._launches.clear()
        self._pools.clear()
        self._packed.clear()
        self._weights = cache(_weights)
        self._matrix = cache(self._multiplied)
        self._expected = cache(self._reference)
        self._activation_error = cache(self._error_of_activations)

    def _ours(self, prepared: Prepared) -> torch.Tensor:
        """What our reference has a kernel write, of the checked rows where it multiplies."""
        kernel = prepared.kernel
        arm = kernel.arm
        if arm == "vendor":
            arm = "native" if kernel.weight_bits else "fused"
        return self._expected(
            prepared.problem, arm if arm != "unfused" else "native", kernel.reading
        )

    def _stated(self, prepared: Prepared) -> torch.Tensor:
        """What a kernel's own reference has it write.

        Raises:
            ValueError: it is of another shape than what the kernel writes, or not finite.
        """
        problem, reference = prepared.problem, prepared.kernel.reference
        assert reference is not None
        x = random_activations(problem.batch, problem.k, problem.activation, ACTIVATION_SEED)
        found = reference(self._weights(_batchless(problem)), x[_checked_rows(problem.batch)])
        stated = torch.as_tensor(found, dtype=torch.float64)
        shape = self._ours(prepared).shape
        if stated.shape != shape or not bool(torch.isfinite(stated).all()):
            raise ValueError(
                f"its reference should be finite numbers of shape {list(shape)}, but has {list(stated.shape)}"
            )
        return stated

    def _reference(self, problem: Problem, arm: str, reading: BypassReading) -> torch.Tensor:
        """The float64 reference on the CPU, of the checked rows where the arm multiplies."""
        x = random_activations(problem.batch, problem.k, problem.activation, ACTIVATION_SEED)
        if arm not in PRODUCTS:
            weights = self._weights(_batchless(problem))
            return torch.from_numpy(reference(arm, weights, x, reading)).to(torch.float64)
        rows = x[_checked_rows(problem.batch)]
        values = quantize_activations(rows, problem.format).values if arm == "lowp" else rows
        matrix = self._matrix(_batchless(problem), arm, reading)
        return torch.from_numpy(values).to(torch.float64) @ matrix.T

    def _error_of_activations(self, problem: Problem) -> float:
        x = random_activations(problem.batch, problem.k, problem.activation, ACTIVATION_SEED)
        weights = self._weights(_batchless(problem))
        return activation_error(x[_checked_rows(problem.batch)], weights)

    def _multiplied(self, problem: Problem, arm: str, reading: BypassReading) -> torch.Tensor:
        return torch.from_numpy(multiplied(arm, self._weights(problem), reading))

    def _copy(self, packed: Tensors, count: int) -> Pool:
        stacked = {}
        for name, tensor in packed.items():
            stacked[name] = self._reserve((count, *tensor.shape), tensor.dtype)
            for copy in stacked[name]:
                copy.copy_(tensor)
        return Pool([{name: t[i] for name, t in stacked.items()} for i in range(count)])

    def _output(self, prepared: Prepared) -> torch.Tensor:
        problem = prepared.problem
        shape, dtype = output_shape(prepared.kernel.arm, problem.n, problem.k, problem.batch)
        name = problem.activation if dtype == "activation" else dtype
        return _empty(shape, DTYPES[name], self.torch_device)

    def _bound(self, prepared: Prepared) -> list[Launch]:
        """One launch per copy. Launches of the problem before are dropped: they would only pile up."""
        if prepared.problem.batch != getattr(self._problem, "batch", None):
            self._launches.clear()
            self._problem = prepared.problem
        if prepared not in self._launches:
            problem = prepared.problem
            x = _activations(problem.batch, problem.k, problem.activation, self.torch_device)
            out = self._output(prepared)
            copies = self._pools[prepared.pool].copies
            config = prepared.configuration.config
            options = {} if config is None else {"config": config}
            bind = prepared.kernel.bind
            self._launches[prepared] = [bind(copy, x, out, **options) for copy in copies]
        return self._launches[prepared]


def _checked_rows(batch: int) -> list[int]:
    """Rows of a batch that are compared with the reference: all, or some of every tile of sixteen."""
    if batch <= CHECKED_ROWS:
        return list(range(batch))
    step = batch / CHECKED_ROWS
    return sorted(
        {min(int(i * step) + i % max(int(step), 1), batch - 1) for i in range(CHECKED_ROWS)}
    )


def _largest_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Over the largest magnitude of what is expected."""
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _layout(kernel: Kernel) -> str:
    """A name for the way a kernel lays out its weights, the same for kernels that share it."""
    pack = kernel.pack
    if isinstance(pack, partial):
        return f"{pack.func.__module__}.{pack.func.__qualname__}({pack.keywords})"
    return f"{pack.__module__}.{pack.__qualname__}"


def _batchless(problem: Problem) -> Problem:
    return Problem(problem.operator, problem.n, problem.k, 0, problem.format, problem.activation)


def _weights(problem: Problem) -> Weights:
    return random_weights(
        problem.n, problem.k, problem.format, problem.activation, seed=WEIGHT_SEED
    )


@cache
def _activations(batch: int, k: int, activation: str, device: str) -> torch.Tensor:
    x = random_activations(batch, k, activation, ACTIVATION_SEED)  # type: ignore[arg-type]
    return torch.from_numpy(x).to(DTYPES[activation]).to(device)


@cache
def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Outputs of one shape share memory: what a kernel writes is read only when it is verified."""
    return torch.empty(shape, dtype=dtype, device=device)
