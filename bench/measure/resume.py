"""What must be the same when an interrupted run goes on, and what may differ but is written down.

Samples of two devices, or of two versions of the kernels, never meet in one profile. Everything else that
may have changed meanwhile (a package, the checkout, a driver) is said on the spot and in the profile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import kernels
from bench.measure import environment
from bench.measure.records import Sources
from profiles.schema import Git, Software

if TYPE_CHECKING:
    from bench.measure.ledger import Ledger
    from bench.measure.worker import Opened

ONLY_LOADED = ("driver", "cuda", "threading_layer")  # known once the device is open
SAME_DEVICE = ("kind", "name", "uuid_hash", "cores")
VOLATILE = ("load_average_1min",)
COMPILED_BY = ("torch", "triton", "numba", "driver", "cuda", *environment.CUDA_PACKAGES)


class ResumeError(ValueError):
    """A run cannot go on here and now; the message is one sentence for the user."""


def sources() -> Sources:
    """What would measure now: the kernels, the checkout and the packages."""
    folder = Path(kernels.__file__).parent
    found = environment.software()
    for name in ONLY_LOADED:
        found.add(name, None, "the device is not open yet")
    git = environment.git(folder)
    return Sources(
        kernels_sha256=environment.source_hash(folder),
        git=Git.model_validate({**git.facts, "missing": git.missing}),
        software=Software.model_validate(
            {**found.facts, "missing": found.missing, "extra": environment.cuda_compilers()}
        ),
    )


def differences(ledger: Ledger, opened: Opened, path: Path) -> tuple[str, ...]:
    """Sentences on what is not as it was when the run began.

    Args:
        ledger: of the run; it has a header, and a device unless the run ended before it found one.
        opened: the device that is open now.
        path: the journal's file, for messages.

    Raises:
        ResumeError: the device or the kernels are others.
    """
    assert ledger.header is not None
    before, now = ledger.opened or opened, opened
    for name in SAME_DEVICE:
        was, is_ = getattr(before.device, name), getattr(now.device, name)
        if was != is_:
            raise ResumeError(
                f"{path} was measured on {before.device.name} ({name} {was}), but this is "
                f"{now.device.name} ({name} {is_}); resume it there, or start a new run."
            )
    if (before.activation, before.mode) != (now.activation, now.mode):
        raise ResumeError(
            f"{path} was measured with {before.activation} activations and {before.mode} launches, "
            f"but this would be {now.activation} and {now.mode}; start a new run."
        )
    was_from, is_from = ledger.header.sources, sources()
    if was_from.kernels_sha256 != is_from.kernels_sha256:
        raise ResumeError(
            f"the kernels have changed since {path} was begun "
            f"(SHA-256 {was_from.kernels_sha256[:12]}, now {is_from.kernels_sha256[:12]}); "
            f"go back to their state of then, or start a new run."
        )
    for name in COMPILED_BY:
        was = version(was_from.software, name) or before.software.get(name)
        is_ = version(is_from.software, name) or now.software.get(name)
        if was != is_:
            raise ResumeError(
                f"{path} was measured with {name} {was}, but here it is {is_}, and it decides what "
                f"code runs; go back to the version of then, or start a new run."
            )
    return (
        *_changed("", was_from.software.model_dump(), is_from.software.model_dump()),
        *_changed("", before.software, now.software),
        *_changed("git ", was_from.git.model_dump(), is_from.git.model_dump()),
        *_changed("device ", before.device.model_dump(), now.device.model_dump()),
        *_changed("device ", before.device.extra, now.device.extra),
        *_changed("seed of ", before.seeds, now.seeds),
    )


def version(software: Software, name: str) -> object:
    """Of a package, which may have a field of its own or none."""
    return getattr(software, name, None) or software.extra.get(name)


def _changed(what: str, before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if was != is_ and name not in ("missing", "extra", *VOLATILE):
            yield f"{what}{name} was {was} when the run began and is {is_} now."
