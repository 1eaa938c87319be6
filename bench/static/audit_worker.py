"""Compiles and counts one kernel per line of input, and answers with one line of JSON each.

A process of its own, because some kernels make LLVM abort, and because kernels that were imported under
TRITON_INTERPRET=1 cannot be compiled. `audit_pool` starts it:

    {"job": {...}}                                      one of our kernels
    {"file": "gemv.py", "kernel": "gemv", "capability": 90, "weights": 8}    somebody else's
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from bench.static.audit import Audit, audit_job, audit_kernel, job_from, to_data


def answer(request: dict[str, Any]) -> Audit:
    """The audit that a request asks for.

    Raises:
        SourceError: a file cannot be used.
    """
    if "job" in request:
        return audit_job(job_from(request["job"]))
    return audit_source(
        Path(request["file"]), request["kernel"], request["capability"], request["weights"]
    )


def audit_source(path: Path, name: str, capability: int, weights: int | None) -> Audit:
    """Compile a kernel of a file for its problem(), as `bench.emulate` does, and count.

    A kernel without a loop is counted whole, so a lane's share of the problem's weights is known.

    Raises:
        SourceError: the file cannot be used.
    """
    from bench.static.build import triton_arguments
    from bench.static.compile import WARP_LANES, build_kernel, read_kernel
    from bench.static.ptx.problem import KINDS, Draw
    from bench.static.source import open_kernel
    from bench.static.trial import whole

    kernel = open_kernel(path, name)
    problem = kernel.problem(Draw(next(iter(KINDS))))
    signature, constexprs, aligned, options = triton_arguments(kernel.fn, problem)
    binary = build_kernel(kernel.fn, signature, constexprs, capability, aligned, **options)
    audit = audit_kernel(f"{path.name}:{name}", read_kernel(binary, capability), weights)
    if weights is None and not audit.looped and problem.weights:
        programs = prod(whole(problem.grid))
        share, rest = divmod(problem.weights, programs * WARP_LANES * problem.num_warps)
        return audit if rest else replace(audit, weights=share)
    return audit


def serve() -> None:
    """Answers until the input ends. Whatever a compiler prints goes to stderr."""
    from bench.static.build import SourceError, complaint

    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                reply: dict[str, Any] = {"audit": to_data(answer(json.loads(line)))}
            except SourceError as error:
                reply = {"error": str(error)}
            except Exception as error:
                reply = {"error": f"it does not compile: {complaint(error)}."}
            out.write(json.dumps(reply) + "\n")
            out.flush()


if __name__ == "__main__":
    serve()
