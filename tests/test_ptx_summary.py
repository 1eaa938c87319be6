"""What a run says it has executed: counted by hand, and nothing where nothing was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tests import ptx_summary
from tests.ptx_cells import Outcome
from tests.ptx_kernels import RAGGED, product_jobs

RAN = Outcome(0.0, "", "a", 32, 0)
WRONG = replace(RAN, error=None, problem="a race")


def test_cells_are_counted_once_and_by_target() -> None:
    jobs = [job for job in product_jobs() if job.capability == 80 and job.arm == "fused"][:3]
    ragged = replace(jobs[0], n=RAGGED["gemv"][0], k=RAGGED["gemv"][1])
    outside = replace(jobs[0], batch=2)
    other = next(job for job in product_jobs() if job.capability == 90)
    first = ptx_summary.emulated_properties({jobs[0]: RAN, ragged: RAN, outside: RAN})
    second = ptx_summary.emulated_properties({jobs[1]: replace(RAN, program="b"), other: WRONG})
    plain = next(job for job in product_jobs() if job.regime == "gemv")
    cell = ptx_summary.interpreted_cell(plain.arm, plain.regime, plain.format_name, plain.batch)
    recorded = [[*first.items()], [*second.items()], [("other", 1)], [("interpreted", cell)]]
    text = ptx_summary.lines(recorded)
    counts = {line.split()[0]: [*map(int, line.split()[1:])] for line in text[3:8]}
    of_target = Counter(job.capability for job in product_jobs())
    everything = len(product_jobs())
    assert counts["sm_80"] == [of_target[80], 2, of_target[80] - 2]
    assert counts["sm_90"] == [of_target[90], 0, of_target[90]]
    assert counts["all"] == [everything, 2, everything - 2]
    assert text[8].startswith(f"2 of {everything} cells ran (0%); 2 different programs")
    assert text[9].startswith("Triton's interpreter ran 1 of ")


def test_a_run_without_kernels_has_no_table() -> None:
    assert ptx_summary.lines([[], [("other", 1)]]) == []
