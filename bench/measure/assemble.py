"""The profile of a run, from its journal alone: times from samples, joules from energy windows.

ledger -> decompose, joules -> profile; its samples and its power trace go into files beside it
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench.analysis.decompose import decompose
from bench.analysis.joules import Joules, Trial, joules, with_joules
from bench.measure.ledger import Ledger, samples_table
from bench.measure.power.files import trace_content
from bench.measure.replay import recorded
from profiles.reader import replace_file, write_profile
from profiles.schema import (
    Energy,
    EnergyProtocol,
    Kind,
    LostKernel,
    Profile,
    Resumption,
    Samples,
    SamplingCost,
    SensorChannel,
)

if TYPE_CHECKING:
    import pyarrow as pa

TRACE_SUFFIX = ".power.parquet"


def write(ledger: Ledger, output: Path) -> Profile:
    """Writes the profile of a run, its samples and its power trace; each wholly or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
        ProfileError: no reader would take what would be written.
    """
    samples = samples_table(ledger.rows)
    profile = assemble(ledger, samples)
    traces: dict[str, Samples] = {}
    try:
        for weight_format in profile.workload.formats:
            _write_trace(ledger, weight_format, output, traces)
        energy = profile.energy.model_copy(update={"traces": traces})
        profile = profile.model_copy(update={"energy": energy})
        written = write_profile(profile, samples, output)
    except BaseException:
        for trace in traces.values():
            output.with_name(trace.file).unlink(missing_ok=True)
        raise
    _remove_other_traces({trace.file for trace in traces.values()}, output)
    return written


def assemble(ledger: Ledger, samples: pa.Table | None = None) -> Profile:
    """The profile of a run, complete or not, from its journal alone.

    Args:
        ledger: what the journal says.
        samples: its samples_table, where that is made already.
    """
    assert ledger.header is not None
    assert ledger.opened is not None
    header, opened = ledger.header, ledger.opened
    kind = ledger.kind
    if samples is None:
        samples = samples_table(ledger.rows)
    quantities, comparisons = decompose(
        samples, ledger.workload, header.plan.protocol, ledger.facts, kind
    )
    energy, found = _energy(ledger, kind)
    if found is not None:
        quantities, comparisons = with_joules(quantities, comparisons, found)
    software = header.sources.software.model_dump()
    loaded = {**opened.software, **_driver(ledger)}
    for name in ("driver", "cuda", "threading_layer"):
        software[name] = loaded.get(name)
        software["missing"][name] = _why_unknown(name, opened.device.kind)
        if software[name] is not None:
            del software["missing"][name]
    return Profile(
        created=header.created,
        kind=kind,
        complete=ledger.finished,
        device=opened.device,
        software=software,
        git=header.sources.git,
        argv=header.argv,
        workload=ledger.workload,
        kernels_sha256=header.sources.kernels_sha256,
        protocol=header.plan.protocol,
        rows=quantities,
        comparisons=comparisons,
        energy=energy,
        lost_kernels=tuple(
            LostKernel(name=name, reason=reason) for name, reason in ledger.unimportable.items()
        ),
        resumed=tuple(Resumption(at=r.created, differences=r.differences) for r in ledger.resumed),
    )


def _energy(ledger: Ledger, kind: Kind) -> tuple[Energy, Joules | None]:
    """The energy part of a profile, and what its joules say of each arm; None without any."""
    sensor, plan = ledger.sensor, ledger.plan.energy
    if sensor is None or plan is None or sensor.info is None:
        reason = "the run ended before it looked for a sensor" if sensor is None else sensor.reason
        return Energy(reason=reason), None
    windows = list(ledger.windows.values())
    found, reason = None, "; ".join(ledger.no_energy.values())
    if windows and ledger.traits is not None:
        trials = [Trial(w.format, w.batch, w.kernel, w.trial, w.window) for w in windows]
        layers, failed = ledger.plan.layers, ledger.failed_windows
        found = joules(trials, ledger.traits, plan.rules, layers, kind, failed)
    elif not reason:
        reason = "; ".join(dict.fromkeys(ledger.failed_windows.values()))
    read = [w.sampling for w in windows]
    busy_s = [s.cpu_s for s in read if s.cpu_s is not None]
    load = ledger.square
    square = ledger.characterised if load else None
    energy = Energy(
        reason=reason or ("" if found else "the run ended before the first energy window"),
        sensor=sensor.info.name,
        scope=sensor.info.scope,
        channels=sensor.info.channels,
        missing=sensor.info.missing,
        facts=sensor.info.facts,
        published=sensor.published,
        characterised=ledger.found_traits,
        characterised_reason=square.reason if square else "the run ended before that",
        characterised_channels=tuple(
            SensorChannel(
                channel=c.channel,
                update_s=c.update_s,
                averaging_s=c.averaging_s,
                lag_s=c.lag_s,
                residual_w=c.residual_w,
            )
            for c in (square.channels if square else ())
        ),
        characterised_load=load and f"{load.format} {load.kernel.arm} at batch {load.batch}",
        protocol=EnergyProtocol(
            arms=plan.arms,
            batches=plan.batches,
            window_s=plan.rules.window_s,
            trials=plan.rules.trials,
            idle_s=plan.rules.idle_s,
            updates_minimum=plan.rules.updates,
            rotation_bytes=min((w.rotation_bytes for w in windows), default=None),
        ),
        rows=found.rows if found else (),
        curves=found.curves if found else (),
        sampling=SamplingCost(
            readings=sum(s.readings for s in read),
            failed=sum(s.failed for s in read),
            late=sum(s.late for s in read),
            longest_read_s=max((s.longest_read_s for s in read), default=0.0),
            cpu_share=sum(busy_s) / sum(s.wall_s for s in read) if busy_s else None,
        ),
    )
    return energy, found


def _write_trace(
    ledger: Ledger, weight_format: str, output: Path, traces: dict[str, Samples]
) -> None:
    """Writes every reading of a format's energy windows beside a profile, and notes the file.

    It carries part of its hash in its name, like the samples; those of a profile that is about to be
    replaced stay until that has happened. A file per format stays within what readers take.

    Raises:
        OSError: it cannot be written.
        ProfileError: no reader would take it.
    """
    windows = recorded(ledger, weight_format)
    if not windows or ledger.sensor is None or ledger.sensor.info is None:
        return
    content, rows = trace_content(output, ledger.sensor.info, windows)
    digest = hashlib.sha256(content).hexdigest()
    path = output.with_name(f"{output.stem}.{digest[:8]}{TRACE_SUFFIX}")
    replace_file(path, content)
    traces[weight_format] = Samples(file=path.name, sha256=digest, rows=rows)


def _remove_other_traces(kept: set[str], output: Path) -> None:
    """Removes the power traces of a profile that has been replaced."""
    for path in output.parent.glob(f"{glob.escape(output.stem)}.????????{TRACE_SUFFIX}"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _driver(ledger: Ledger) -> dict[str, str]:
    """The driver's version, where NVML has said it."""
    info = ledger.sensor.info if ledger.sensor else None
    driver = info.facts.get("driver") if info else None
    return {"driver": str(driver)} if driver else {}


def _why_unknown(name: str, kind: str) -> str:
    if kind == "cpu":
        return "not used on a CPU"
    if kind == "simulated":
        return "a simulated device has none"
    return "NVML, which says it, could not be read" if name == "driver" else "not used"
