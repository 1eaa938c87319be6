"""Audits of many kernels: from the cache, or compiled in worker processes and kept.

    audits, failures = audited(jobs, open_cache())

Jobs that compile to the same machine code are compiled once. A failure costs its jobs a sentence each, and
the next run a new attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict

from bench.static.audit import Audit, Job
from bench.static.audit_cache import Cache
from bench.static.audit_pool import Answer, Pool

Report = Callable[[str, float | None, float], None]  # what is done, seconds left, share done


def silent(doing: str, left_s: float | None, done: float) -> None:
    """Nobody is told."""


def audited(
    jobs: Sequence[Job], cache: Cache, report: Report = silent
) -> tuple[dict[Job, Audit], dict[Job, str]]:
    """The audit of every job in their order, and a sentence for those that have none."""
    keys = {job: cache.key(job) for job in jobs}
    representative = {key: job for job, key in reversed(keys.items())}  # the first of each
    found: dict[Job, Audit | str] = {}
    for job in representative.values():
        audit = cache.load(job)
        if audit is not None:
            found[job] = audit
    missing = [job for job in representative.values() if job not in found]
    with closing(compiled(missing, report)) as answers:
        for job, answer in answers:
            found[job] = answer
            if isinstance(answer, Audit):
                cache.store(job, answer)  # at once: after Ctrl-C the next run goes on from here
    said = {job: found[representative[keys[job]]] for job in jobs}
    audits = {job: answer for job, answer in said.items() if isinstance(answer, Audit)}
    return audits, {job: answer for job, answer in said.items() if isinstance(answer, str)}


def compiled(
    jobs: Sequence[Job], report: Report = silent
) -> Generator[tuple[Job, Answer], None, None]:
    """Compiles and counts in worker processes; jobs as they are ready."""
    if not jobs:
        return
    start_s = time.monotonic()
    with Pool() as pool:
        report(f"compiling {len(jobs)} kernels", None, 0.0)
        answers = pool.answers([{"job": asdict(job)} for job in jobs])
        for done, (index, answer) in enumerate(answers, 1):
            yield jobs[index], answer
            left_s = (time.monotonic() - start_s) / done * (len(jobs) - done)
            report(f"{done} of {len(jobs)}: {jobs[index].name}", left_s, done / len(jobs))
