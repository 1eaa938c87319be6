"""Says in sentences when not to trust a profile, and how much each of them weighs.

    python -m bench.check results/PROFILE.json
    python -m bench.check results/PROFILE.json --json

Needs the profile, and the samples and the power trace beside it: no device, no torch. What is looked for,
and how serious it is, stands in a table in `bench/analysis/trust.py`. Exit codes: 0 nothing serious, 1
something is, 2 the file cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.findings import SEVERITIES, Finding
from bench.analysis.trust import Checkout, examine
from bench.measure import environment
from profiles.files import printable
from profiles.reader import ProfileError, load_profile, load_samples, load_trace
from profiles.schema import Profile

if TYPE_CHECKING:
    from bench.analysis.joules import Joules

ROOT = Path(__file__).resolve().parent.parent
STYLES = {"serious": "bold red", "caution": "yellow", "note": "cyan"}


def check(path: Path) -> tuple[Profile, tuple[Finding, ...]]:
    """A profile, and all there is to hold against it, as seen from this checkout.

    Raises:
        ProfileError: the profile cannot be read. Samples and a power trace that cannot are findings.
    """
    profile = load_profile(path, allow=("measured", "modelled", "simulated", "imported"))
    try:
        samples = load_samples(profile, path.parent)
    except ProfileError as error:
        samples = str(error)
    commit = environment.git(ROOT).facts["commit"]
    here = Checkout(
        None if commit is None else str(commit),
        environment.source_hash(ROOT / "kernels"),
        environment.software().facts,
    )
    return profile, examine(profile, samples, here, joules_again(profile, path.parent))


def joules_again(profile: Profile, folder: Path) -> Joules | str:
    """The joules of a profile once more from its power trace, or why that cannot be."""
    if not profile.energy.rows:
        return "it has no joules"
    from bench.analysis.joules import merged
    from bench.measure.replay import replay

    parts = []
    for weight_format, trace in profile.energy.traces.items():
        try:
            content = load_trace(profile, folder, weight_format)
            found = replay(folder / trace.file, content)
        except ProfileError as error:
            return str(error)
        if found.joules is None:
            return f"of its sensor too little is known: {found.characterised.reason}"
        parts.append(found.joules)
    return merged(parts) if parts else "this profile was written without a power trace."


def render(profile: Profile, findings: Sequence[Finding]) -> RenderableType:
    """Every finding in three sentences, the most serious first, and what they come to."""
    header = Text(
        f"{profile.kind} on {profile.device.name}, {profile.created:%Y-%m-%d %H:%M} UTC: "
    )
    header.append(
        f"{profile.workload.model}, {', '.join(profile.workload.formats)}, "
        f"{len(profile.rows)} rows, {len(profile.comparisons)} comparisons."
    )
    table = Table.grid(padding=(0, 1, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for f in findings:
        text = Text.assemble((f.found, "bold"), f" {f.why} ", (f"→ {f.do}", "dim"))
        table.add_row(Text(f.severity, style=STYLES[f.severity]), text)
    return Group(header, Text(), *([table] if findings else []), _verdict(findings))


def to_json(path: Path, profile: Profile, findings: Sequence[Finding]) -> str:
    """The same for programs."""
    counts = Counter(f.severity for f in findings)
    return json.dumps(
        {
            "profile": printable(str(path)),
            "kind": profile.kind,
            "created": profile.created.isoformat(),
            **{severity: counts[severity] for severity in SEVERITIES},
            "findings": [asdict(f) for f in findings],
        },
        indent=1,
        ensure_ascii=False,
    )


def _verdict(findings: Sequence[Finding]) -> Text:
    counts = Counter(f.severity for f in findings)
    words = ", ".join(
        f"{counts[s]} {s if s == 'serious' or counts[s] == 1 else s + 's'}"
        for s in SEVERITIES
        if counts[s]
    )
    if counts["serious"]:
        return Text(f"Do not rely on this profile as it is: {words}.", style="bold red")
    return Text(f"Nothing serious{f': {words}' if words else ' and nothing else'}.", style="bold")


def main(
    path: Annotated[Path, typer.Argument(help="A profile, as written by bench.dequant.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Say when not to trust a profile. Exit code 1 if anything is serious."""
    try:
        profile, findings = check(path)
    except ProfileError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        sys.stdout.write(to_json(path, profile, findings) + "\n")
    else:
        Console().print(render(profile, findings))
    raise typer.Exit(int(any(f.severity == "serious" for f in findings)))


if __name__ == "__main__":
    typer.run(main)
