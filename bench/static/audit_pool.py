"""Worker processes that compile and count, as many as there are cores.

    with Pool() as pool:
        for index, answer in pool.answers([{"job": ...}, ...]):
            ...                      in the order in which they are ready

A worker that dies costs its request one sentence; the next request gets a new worker. Leaving the block, by
Ctrl-C too, ends them all. Each run compiles into an empty cache of Triton's, which would otherwise answer
for a changed kernel with an old binary.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.static.audit import Audit, from_data

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "bench.static.audit_worker")
Answer = Audit | str  # or a sentence that says why there is none


class Worker:
    """One process that answers requests one after another; started by the first."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> Answer:
        """What the process says, or how it died."""
        process = self.process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until it is waited for,
            self.kill()  # what it started can be found
            code = process.wait()
            self.process = None
            self._close(process)
            end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return f"it does not compile: the compiler itself ended with {end}."
        reply = json.loads(line)
        return reply["error"] if "error" in reply else from_data(reply["audit"])

    def kill(self) -> None:
        """Ends the process and what it started; for any thread. Whoever waits in `ask` gets its answer."""
        process = self.process
        if process is not None and process.returncode is None:  # nobody has waited for it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends the process and closes its pipes, which nobody may be using."""
        self.kill()
        process, self.process = self.process, None
        if process is not None:
            process.wait()
            self._close(process)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            COMMAND,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command, which ends its workers itself
        )

    @staticmethod
    def _close(process: subprocess.Popen[str]) -> None:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that nobody read
                    stream.close()


class Pool:
    """Workers and their folder, until the block is left."""

    def __init__(self, workers: int | None = None) -> None:
        self.size = workers or len(os.sched_getaffinity(0))

    def __enter__(self) -> Pool:
        """Makes an empty folder for Triton's cache."""
        self.folder = tempfile.TemporaryDirectory(prefix="sass-", ignore_cleanup_errors=True)
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = self.folder.name
        self.workers = [Worker(environment) for _ in range(self.size)]
        self.todo: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.threads: list[threading.Thread] = []
        return self

    def answers(self, requests: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Answer]]:
        """The index and the answer of every request, as they are ready."""
        for item in enumerate(requests):
            self.todo.put(item)
        self.threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self.workers[: len(requests)]
        ]
        for thread in self.threads:
            thread.start()
        for _ in requests:
            yield self.done.get()

    def _serve(self, worker: Worker) -> None:
        while not self.stopped.is_set():
            try:
                index, request = self.todo.get_nowait()
            except queue.Empty:
                return
            try:
                answer = worker.ask(request)
            except Exception as error:  # such as a reply that is no JSON: never wait for it
                answer = f"the worker failed: {type(error).__name__}: {error}."
            self.done.put((index, answer))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends every worker and removes the folder."""
        self.stopped.set()
        for worker, thread in zip(self.workers, self.threads, strict=False):
            while thread.is_alive():  # a pipe is closed by the thread that reads it, or after it
                worker.kill()
                thread.join(timeout=0.05)
        for worker in self.workers:
            worker.stop()
        self.folder.cleanup()
