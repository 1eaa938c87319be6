"""What our Triton kernels spend on a weight at batch 1, beside what they should.

    python -m bench.sass --targets

A low-bit kernel at batch 1 is limited by memory only if the instructions of a weight fit into the time in
which its bits arrive. One thread-instruction serves one lane, so kernels with and without tensor cores
compare directly. Half of the targets are the best that was counted in other people's kernels, or a little
less. They are stated for sm_90; other architectures stand beside it. Nothing here is a time.

On every architecture a kernel must not spill, must load its weights 128 bits at a time, and of four-bit
integers must not convert (I2F and its like), since masks make them floats. An audit counts loads by width and
not by what they load. But 128 bits of weights lie within one group: whatever else is loaded in narrower pieces,
beyond a scale and a zero point for each of them, is weights (or x, which is then no better).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static.audit import UNKNOWN_LOOP, Audit, Job, row_of
from kernels.formats import WeightFormat, find_format

CAPABILITIES = (80, 89, 90, 100, 120)
TARGET_CAPABILITY = 90
WIDE_BITS = 128  # of a load instruction, per lane
TUNED = {"fused": "gemv-ptx", "dequantize": "ptx"}  # the variant with hand-chosen instructions
PLAIN = {"fused": "gemv", "dequantize": "default"}  # the one in Triton's own operations

# Most instructions per weight that a tuned kernel should need: (arm, format, activation).
TARGETS = {
    ("fused", "int4-g128", "fp16"): 2.4,
    ("fused", "int4-g128-zp", "fp16"): 2.8,
    ("fused", "int4-g128", "bf16"): 4.0,
    ("fused", "int8-ch", "fp16"): 2.2,
    ("fused", "int8-g128", "fp16"): 2.2,
    ("fused", "nf4-b64", "fp16"): 4.0,
    ("fused", "fp8_e4m3-ch", "fp16"): 2.4,
    ("fused", "fp8_e4m3-b128", "fp16"): 2.4,
    ("dequantize", "nf4-b64", "fp16"): 6.0,
}
NOTE = (
    "COMPILED AND COUNTED, not run: instructions per weight in the hot loop at batch 1 (dequantize: in the "
    "whole kernel), with hand-chosen PTX; own: in Triton's own operations, on sm_90. The target is for sm_90. "
    "cvt: conversions per weight, the most on any; LDG: bits of a load of weights, the least on any."
)


@dataclass(frozen=True)
class Line:
    """One kernel with a target.

    Attributes:
        arm: "fused" or "dequantize".
        format: of the weights.
        activation: of x.
        target: instructions per weight on sm_90, at most.
        found: instructions per weight by compute capability; of those that compiled.
        own: the same on sm_90 of the variant in Triton's own operations; None: it did not compile.
        spills: whether it spills anywhere.
        lower_bound: whether a loop of unknown length counts once in it, anywhere.
        conversions: instructions per weight of class "cvt", the most on any architecture.
        wide_loads: whether weights are loaded 128 bits at a time everywhere.
    """

    arm: str
    format: str
    activation: str
    target: float
    found: Mapping[int, float]
    own: float | None
    spills: bool
    lower_bound: bool
    conversions: float
    wide_loads: bool

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.arm} {self.format}, {self.activation}"

    @property
    def failure(self) -> str | None:
        """What is wrong, in words; None: nothing."""
        if self.spills:
            return "spills"
        if self.lower_bound:
            return UNKNOWN_LOOP
        if not self.wide_loads:
            return f"loads weights in pieces of less than {WIDE_BITS} bits"
        weight_format = find_format(self.format)
        four_bit_integers = (weight_format.encoding, weight_format.bits) == ("int", 4)
        if four_bit_integers and self.conversions:
            return f"converts {self.conversions:.2f} times per weight, which integers of 4 bits need not"
        reached = self.found.get(TARGET_CAPABILITY)
        if reached is None:
            return f"was not counted on sm_{TARGET_CAPABILITY}"
        if reached > self.target:
            return f"needs {reached:.2f} instructions per weight, target {self.target:.2f}"
        return None


def jobs(formats: Collection[str] = ()) -> list[Job]:
    """Everything that has to be compiled, for these formats or for all."""
    keys = [key for key in TARGETS if not formats or key[1] in formats]
    tuned = [Job(key[0], TUNED[key[0]], *key[1:], 1, c) for key in keys for c in CAPABILITIES]
    return tuned + [Job(key[0], PLAIN[key[0]], *key[1:], 1, TARGET_CAPABILITY) for key in keys]


def lines(audits: Mapping[Job, Audit], formats: Collection[str] = ()) -> list[Line]:
    """Every kernel with a target, from the audits of `jobs`."""
    per_weight = {job: row_of(audit).per_weight for job, audit in audits.items()}
    found = []
    for (arm, name, activation), target in TARGETS.items():
        if formats and name not in formats:
            continue
        tuned = {c: Job(arm, TUNED[arm], name, activation, 1, c) for c in CAPABILITIES}
        own = Job(arm, PLAIN[arm], name, activation, 1, TARGET_CAPABILITY)
        known = {c: job for c, job in tuned.items() if job in audits}
        found.append(
            Line(
                *(arm, name, activation, target),
                {c: per_weight[job]["total"] for c, job in known.items()},
                per_weight[own]["total"] if own in audits else None,
                any(audits[job].spills for job in known.values()),
                any(audits[job].unknown_loops for job in known.values()),
                max((per_weight[job]["cvt"] for job in known.values()), default=0.0),
                all(wide(audits[job], find_format(name)) for job in known.values()),
            )
        )
    return found


def wide(audit: Audit, weight_format: WeightFormat) -> bool:
    """Whether weights are loaded 128 bits at a time, as far as widths of loads tell; see the module.

    Scales per row are loaded outside the loop; whole kernels of such formats have no target.
    """
    weight_bits = (audit.weights or 0) * weight_format.bits
    loaded = {bits: bits * n for bits, n in audit.loads.items()}
    narrow = sum(total for bits, total in loaded.items() if bits < WIDE_BITS)
    groups = weight_bits / WIDE_BITS if weight_format.group_size else 0
    return (
        sum(loaded.values()) - narrow >= weight_bits and narrow <= groups * weight_format.group_bits
    )


def render(found: Sequence[Line]) -> RenderableType:
    """The table, in 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in (*(f"sm_{c}" for c in CAPABILITIES), "target", "own", "cvt", "LDG"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in found:
        cells = [f"{line.found[c]:.2f}" if c in line.found else "–" for c in CAPABILITIES]
        own = "–" if line.own is None else f"{line.own:.2f}"
        style = "bold red" if line.failure else None
        machine = f"{line.conversions:.2g}", str(WIDE_BITS) if line.wide_loads else f"<{WIDE_BITS}"
        table.add_row(line.name, *cells, f"{line.target:.2f}", own, *machine, style=style)
    return Group(table, Text(), Text(NOTE, style="dim"))


def to_data(found: Sequence[Line]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            **asdict(line),
            "found": {f"sm_{c}": value for c, value in line.found.items()},
            "failure": line.failure,
            "kind": "modelled",
        }
        for line in found
    ]
