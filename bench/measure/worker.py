"""A session in a process of its own, so that a crashing kernel costs a row and not the run.

The parent sends (method, arguments) and waits for the answer. Before each kernel runs for the first time
and before each sample the child writes the arm's name and the time into shared memory, and before it imports
somebody's kernel the name of that; when the child dies, or is busy with one for too long, the parent reads
there which it was. A child never outlives its
parent: the kernel of the operating system ends it, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing as mp
import os
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.analysis.traces import Load
from bench.measure.devices import Burst, Device, DeviceError, Float16, Mode, open_device
from bench.measure.session import ArmName, ArmState, Bar, Layer, Session, Timed, first_line
from kernels.formats import find_format
from kernels.user import LostOnImportError, load_kernels
from profiles.schema import DeviceInfo, Operator

START_DEADLINE_S = 180.0  # importing and opening a device on a slow disk
KERNEL_DEADLINE_S = 600.0  # compiling and verifying one kernel on one operator, or rotating weights
SAMPLE_DEADLINE_S = 180.0  # one sample
END_S = 10.0  # a process that was told to end, or whose pipe is closed
_NAME_BYTES = 1024
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Setup:
    """What a worker needs to open its session; plain data. None: the device's default, and ours."""

    gpu: str
    operators: tuple[Operator, ...]
    activation: Float16 | None
    mode: Mode | None
    skip: Mapping[ArmName, str]
    bars: tuple[Bar, ...] = ()
    kernels: tuple[str, ...] = ()
    deadline_s: float | None = None


@dataclass(frozen=True)
class Opened:
    """What a worker says of itself once its device is open, and other people's kernels are imported.

    `users` has what these call themselves, by the names they were asked for: arm, implementation, variant.
    """

    device: DeviceInfo
    cache_bytes: int
    activation: Float16
    mode: Mode
    software: Mapping[str, str]
    seeds: Mapping[str, int]
    users: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """The arms of a format, and the bytes touched between two uses of any one weight copy.

    `refused` says which of the layers that were asked for cannot be run, and why.
    """

    states: list[ArmState]
    rotation_bytes: int
    refused: Mapping[Layer, str] = field(default_factory=dict)


class WorkerLostError(RuntimeError):
    """The worker is gone; the message says how.

    `suspect` is the arm it was running, None if none; `importing` the kernel whose module it was importing;
    `reason` how it was lost, without that.
    """

    def __init__(self, reason: str, suspect: ArmName | None, importing: str | None = None) -> None:
        super().__init__(reason if importing is None else f"importing {importing}: {reason}")
        self.reason = reason
        self.suspect = suspect
        self.importing = importing


class Worker:
    """A session behind a pipe, with its methods.

    Args:
        setup: what to open.
        opener: how the worker opens its device; a function of some module, for it is sent by name.

    Raises:
        WorkerLostError: from any method, when the process ends or does not answer in time.
        DeviceError, ValueError: from the constructor, as the device raised them in the worker.
    """

    def __init__(self, setup: Setup, opener: Callable[[str], Device] = open_device) -> None:
        context = mp.get_context("spawn")
        self._deadline_s = setup.deadline_s or KERNEL_DEADLINE_S
        self._folder = tempfile.TemporaryDirectory(prefix="dequant-bench-")
        self._connection, child = context.Pipe()
        self._suspect = context.Array("c", _NAME_BYTES, lock=False)
        self._since_s = context.Value("d", 0.0, lock=False)
        self._process = context.Process(
            target=_serve,
            args=(setup, opener, child, self._suspect, self._since_s, os.getpid()),
            daemon=True,
        )
        try:
            with _environment(Path(self._folder.name)), _signals_held():
                self._process.start()
            child.close()
            self._answer(
                START_DEADLINE_S
            )  # the device is open; now other people's kernels are imported
            self.opened: Opened = self._answer(self._deadline_s)
        except BaseException:
            self.close()
            raise

    def begin(
        self,
        weight_format: str,
        batches: Collection[int],
        planned: Mapping[ArmName, int],
        layers: Collection[Layer] | None = None,
    ) -> Begun:
        """Session.begin, with what it found out about rotation."""
        self._send("begin", (weight_format, list(batches), dict(planned), layers))
        answer: Begun = self._answer(self._deadline_s)
        return answer

    def block(
        self,
        batch: int,
        seed: tuple[int, ...],
        only: Collection[ArmName] | None,
        elapsed_s: float,
    ) -> list[Timed]:
        """Session.block."""
        self._send("block", (batch, seed, only, elapsed_s))
        answer: list[Timed] = self._answer(SAMPLE_DEADLINE_S)
        return answer

    def ready(self, layer: Layer) -> None:
        """Session.ready."""
        self._send("ready", (layer,))
        self._answer(self._deadline_s)

    def steady(
        self, bursts: Sequence[Burst], seed: tuple[int, ...], elapsed_s: float
    ) -> tuple[Load, ...]:
        """Session.steady."""
        self._send("steady", (bursts, seed, elapsed_s))
        answer: tuple[Load, ...] = self._answer(
            SAMPLE_DEADLINE_S + sum(busy_s + rest_s for busy_s, rest_s in bursts)
        )
        return answer

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        with contextlib.suppress(OSError, ValueError):
            self._connection.close()
        if self._process.pid is not None:
            self._process.join(timeout=2)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(timeout=END_S)  # a driver may hold it for longer: not waited for
        self._folder.cleanup()

    def _send(self, method: str, arguments: tuple[object, ...]) -> None:
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise self._lost() from None

    def _answer(self, deadline_s: float) -> Any:
        """The child's next answer; its exceptions are raised here.

        Args:
            deadline_s: how long it may be busy with one arm.
        """
        asked_s = time.monotonic()
        try:
            while not self._connection.poll(0):
                left_s = max(asked_s, self._since_s.value) + deadline_s - time.monotonic()
                if left_s <= 0:
                    self._process.kill()
                    raise WorkerLostError(
                        f"it did not finish within {deadline_s:g} s", *self._last()
                    )
                self._connection.poll(left_s)
            good, answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if good:
            return answer
        if isinstance(answer, str):
            raise WorkerLostError(answer, *self._last())
        raise answer

    def _lost(self) -> WorkerLostError:
        """Why the child is gone: its end of the pipe is closed."""
        self._process.join(timeout=END_S)
        return WorkerLostError(_how_it_ended(self._process.exitcode), *self._last())

    def _last(self) -> tuple[ArmName | None, str | None]:
        """The arm that it was running, or the kernel that it was importing."""
        operator, *rest = self._suspect.value.decode(errors="replace").split("\t")
        if not rest:
            return None, operator or None
        batch, *others = rest
        return ArmName(operator, int(batch), *others), None


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Variables that the worker's libraries read when they are loaded.

    PyTorch brings an OpenMP library of its own and Numba takes the system's, if there is one. Two pools of
    threads on the same cores spin against each other for milliseconds after every switch of arm, so Numba
    is shown PyTorch's under the name that it looks for. NumPy's threads, used to verify, are left out.
    """
    spec = importlib.util.find_spec("torch")
    places = spec.submodule_search_locations if spec else None
    bundled = sorted(Path(places[0], "lib").glob("libgomp*.so*")) if places else []
    before = os.environ.copy()
    if bundled:
        (folder / "libgomp.so.1.0.0").symlink_to(bundled[0])
        others = before.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = f"{folder}:{others}" if others else str(folder)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A process started here never sees Ctrl-C and SIGTERM, which are its parent's; here they wait."""
    resource_tracker.ensure_running()  # it would release them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "it was killed with SIGKILL, most likely by the system for want of memory"
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed with {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"


def _die_with(parent: int) -> None:
    """Ends this process when its parent ends, even in the middle of a kernel; Linux does it for us."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before we asked


def _serve(
    setup: Setup,
    opener: Callable[[str], Device],
    connection: Connection,
    suspect: Any,
    since_s: Any,
    parent: int,
) -> None:
    """The child: opens the device, then answers until the pipe closes."""
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent's to handle
        signal.signal(number, signal.SIG_IGN)

    def announce(name: ArmName | str | None) -> None:
        fields = (
            [str(value) for value in astuple(name)] if isinstance(name, ArmName) else [name or ""]
        )
        suspect.value = "\t".join(fields).encode()[: _NAME_BYTES - 1]
        since_s.value = time.monotonic()  # the same clock in both processes

    try:
        device = opener(setup.gpu)
        activation = setup.activation or device.default_activation
        mode = setup.mode or device.default_mode
        about = (device.describe(), device.cache_bytes, activation, mode)
        software, seeds = device.software(), device.seeds()
        connection.send((True, None))
        kernels = load_kernels(setup.kernels, device.kind, announce)
        announce(None)
        called = [(k.arm, k.implementation, k.variant) for k in kernels]
        users = dict(zip(setup.kernels, called, strict=True))
        opened = Opened(*about, software, seeds, users)
        session = Session(
            device, setup.operators, activation, mode, setup.skip, announce, setup.bars, kernels
        )
    except (DeviceError, ValueError) as error:
        connection.send((False, error))
        return
    except LostOnImportError as error:
        cause = error.cause
        connection.send((False, f"it raised {type(cause).__name__}: {first_line(cause)}"))
        return
    except Exception as error:
        connection.send((False, f"the device could not be opened: {first_line(error)}"))
        return
    try:
        connection.send((True, opened))
        while True:
            method, arguments = connection.recv()
            if method == "begin":
                weight_format, *others = arguments
                states = session.begin(find_format(weight_format), *others)
                result: object = Begun(states, session.rotation_bytes, session.refused)
            else:
                result = getattr(session, method)(*arguments)
            suspect.value = b""
            connection.send((True, result))
    except (BrokenPipeError, EOFError):
        return  # the parent is gone or done
    except Exception as error:
        # the arm that was running is to blame, and the rest goes on without it
        with contextlib.suppress(OSError):
            connection.send((False, f"it failed: {first_line(error)}"))
