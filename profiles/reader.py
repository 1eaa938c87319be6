"""Read and write profiles: one JSON file, and one Parquet file of samples beside it.

    from profiles.reader import load_profile, phi
    profile = load_profile("run.json")
    print(phi(profile, "int4-g128", batch=1).value)
    print(joules(profile, "int4-g128", batch=1, arm="fused", per="token").value)

Measured profiles are read by default; modelled, simulated and imported ones only when asked for by
name.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ValidationError

from profiles.files import ProfileError as ProfileError
from profiles.files import parse_json, read_file, unpack_gzip
from profiles.schema import (
    LAYER,
    SAMPLE_COLUMNS,
    SCHEMA_VERSION,
    Arm,
    ArmRow,
    Comparison,
    Kind,
    Profile,
    Quantity,
    Record,
    Samples,
    samples_schema,
    scaled,
)

if TYPE_CHECKING:
    import pyarrow as pa

AnyRecord = TypeVar("AnyRecord", bound=Record)

PACKED = ".gz"  # the suffix of a profile that is packed
MAXIMUM_PROFILE_BYTES = 24 * 1024 * 1024  # two formats at nine batches take 1.3 MB
MAXIMUM_SAMPLES_BYTES = 64 * 1024 * 1024  # 50,000 samples take 1 MB
MAXIMUM_TRACE_BYTES = 128 * 1024 * 1024  # an hour of energy windows takes some 20 MB
MAXIMUM_WORD_BYTES = 256  # of any one string in the samples
MAXIMUM_WORDS_BYTES = 128 * 1024 * 1024  # of all of them, each as often as it occurs


def load_profile(path: str | Path, allow: tuple[Kind, ...] = ("measured",)) -> Profile:
    """Read and check a profile.

    The file may have been made by anyone: reading takes bounded time and memory, types are taken as
    the schema names them (no "1" for 1), and strings come without control characters.

    Args:
        path: the JSON file, or one packed with gzip whose name ends in .json.gz.
        allow: kinds of evidence the caller is ready for.

    Raises:
        ProfileError: the file is missing, not a regular file, too large, not JSON, of another
            version, of a kind that was not asked for, or does not follow the schema.
    """
    path = Path(path)
    content = read_file(path, MAXIMUM_PROFILE_BYTES)
    if path.suffix == PACKED:
        content = unpack_gzip(path, content, MAXIMUM_PROFILE_BYTES)
    data = parse_json(path, content)
    version = data.get("schema_version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise ProfileError(
            f"{path} has schema_version {_brief(version)}, "
            f"but this reader knows {SCHEMA_VERSION} only."
        )
    kind = data.get("kind")
    if kind not in allow:
        raise ProfileError(
            f"{path} is a profile of kind {_brief(kind)}, but only {', '.join(allow)} was asked "
            f"for; pass allow=({_brief(kind)},) if that is what you want."
        )
    return _validated(path, data)


def load_samples(profile: Profile, folder: str | Path) -> pa.Table:
    """Every sample of a profile, as an Arrow table with the columns of `SAMPLE_COLUMNS`.

    As careful as `load_profile`: what the file claims to hold is added up before it is unpacked.

    Args:
        profile: as read from `folder`.
        folder: where the profile lies.

    Raises:
        ProfileError: the profile has no samples, or the file is missing, not the one it was written
            with, not within `folder`, too large, or not a table of samples: other columns or types,
            text that is not UTF-8, numbers that are not finite, times that are not positive.
    """
    if profile.samples is None:
        raise ProfileError("this profile was written without samples.")
    path = Path(folder) / profile.samples.file
    content = _content(path, profile.samples, MAXIMUM_SAMPLES_BYTES)
    table = _unpacked(path, content, profile.samples.rows)
    _check_numbers(path, table)
    return table


def load_trace(profile: Profile, folder: str | Path, format: str) -> bytes:
    """The Parquet file of every power reading of a format's energy windows, as it was written.

    What it claims to hold is added up, so `pyarrow.parquet.read_table(io.BytesIO(...))` takes bounded
    memory; what its readings say is not looked at.

    Args:
        profile: as read from `folder`.
        folder: where the profile lies.
        format: whose windows.

    Raises:
        ProfileError: the profile has no such power trace, or the file is missing, not the one it was written
            with, not within `folder`, too large, or no Parquet file of so many rows.
    """
    from profiles.pages import checked_parquet

    trace = profile.energy.traces.get(format)
    if trace is None:
        raise ProfileError(f"this profile was written without a power trace of {format}.")
    path = Path(folder) / trace.file
    content = _content(path, trace, MAXIMUM_TRACE_BYTES)
    checked_parquet(path, content, trace.rows)
    return content


def phi(
    profile: Profile,
    format: str,
    batch: int,
    operator: str = LAYER,
    path: Literal["exposed", "unfused"] = "exposed",
    unit: Literal["s", "j"] = "s",
) -> Quantity:
    """The cost of dequantization: of the fused kernel (exposed), or of the unfused pair.

    Args:
        profile: to look it up in.
        format: the weight format.
        batch: the batch.
        operator: "layer", or one of its operators; joules are of the layer only.
        path: which cost.
        unit: "s" for seconds of one call, "j" for gross joules of it, paired in energy windows.

    Raises:
        ProfileError: no comparison fits, or several do (launch modes, cache states).
    """
    found = [
        c
        for c in profile.comparisons
        if (c.format, c.batch, c.operator) == (format, batch, operator)
    ]
    if len(found) != 1:
        known = sorted({(c.format, c.batch, c.operator) for c in profile.comparisons})
        raise ProfileError(
            f"{len(found)} comparisons fit format {format}, batch {batch}, operator {operator}; "
            f"this profile has {known}."
        )
    value: Quantity = getattr(found[0], f"phi_{path}_{unit}")
    return value


def joules(
    profile: Profile,
    format: str,
    batch: int,
    arm: Arm,
    per: Literal["layer", "step", "token", "hop"] = "layer",
    steps: int = 1,
    implementation: str | None = None,
) -> Quantity:
    """Gross joules of an arm: all that the sensor's scope drew, idle power included.

    A layer is what was measured. The others are extrapolated from it: a step is all layers of the model
    once, a token a step over the batch, a hop `steps` steps; all without lm_head, attention and the host.

    Args:
        profile: to look it up in.
        format: the weight format of the problem.
        batch: the batch.
        arm: "fused", "vendor", ...
        per: of what.
        steps: decode steps of a hop.
        implementation: who wrote the kernel, where an arm has several.

    Returns:
        The joules with their interval; without a value, but with the reason, where windows were refused.

    Raises:
        ProfileError: there were no energy windows of it, or several arms fit, or a hop has no step.
    """
    energy = profile.energy
    found = [
        row
        for row in energy.rows
        if (row.format, row.batch, row.kernel.arm) == (format, batch, arm)
        and implementation in (None, row.kernel.implementation)
    ]
    if not energy.rows:
        raise ProfileError(f"this profile has no joules: {energy.reason}")
    if len(found) != 1:
        known = sorted(
            {(r.format, r.batch, r.kernel.arm, r.kernel.implementation) for r in energy.rows}
        )
        raise ProfileError(
            f"{len(found)} energy rows fit format {format}, batch {batch}, arm {arm}; this profile has "
            f"{known}."
        )
    if steps < 1:
        raise ProfileError(f"a hop has one step or more, not {steps}.")
    layers = profile.workload.layers
    factor = {"layer": 1.0, "step": layers, "token": layers / batch, "hop": steps * layers}[per]
    return scaled(found[0].energy_j, factor)


def write_profile(profile: Profile, samples: pa.Table | None, path: str | Path) -> Profile:
    """Write samples, then the profile that names them; neither is ever half there.

    Both are first read back from memory as `load_profile` and `load_samples` would, so that what takes
    its place can be read.

    Each file is written under a temporary name in the same folder, flushed to disk and renamed. The
    samples file carries part of its hash in its name, so an older profile of the same name keeps
    its own samples until the new profile has taken its place; they are removed after that.

    Args:
        profile: `profile.samples` is filled in here.
        samples: with the schema of `samples_schema`; None for a profile without samples.
        path: the JSON file to write, packed if its name ends in .gz; an existing one is replaced.

    Returns:
        The profile as written.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
        ProfileError: a reader would refuse it: it is too large, or not what the schema says; nothing is
            written.
        ValueError: the table's columns are not those of `samples_schema`, or one that is null
            throughout has no reason in the schema's metadata.
    """
    path = Path(path)
    _check_name(path)
    samples_path = None
    replaced = _samples_named_by(path)
    record = None
    if samples is not None:
        content = _parquet_bytes(samples)
        digest = hashlib.sha256(content).hexdigest()
        samples_path = path.with_name(f"{path.stem}.{digest[:8]}.parquet")
        _check_length(samples_path, content, MAXIMUM_SAMPLES_BYTES)
        _check_numbers(samples_path, _unpacked(samples_path, content, samples.num_rows))
        record = Samples(file=samples_path.name, sha256=digest, rows=samples.num_rows)
    profile = profile.model_copy(update={"samples": record})
    text = profile.model_dump_json(indent=1).encode() + b"\n"
    _check_length(path, text, MAXIMUM_PROFILE_BYTES)
    _validated(path, parse_json(path, text))
    if path.suffix == PACKED:
        text = gzip.compress(text, 9, mtime=0)
    existed = samples_path is not None and samples_path.exists()
    if samples_path is not None:
        replace_file(samples_path, content)
    try:
        replace_file(path, text)
    except BaseException:
        if samples_path is not None and not existed:
            samples_path.unlink(missing_ok=True)
        raise
    if replaced is not None and replaced != samples_path:
        with contextlib.suppress(OSError):
            replaced.unlink(missing_ok=True)
    return profile


def remove_profile(path: Path) -> None:
    """Removes a profile and the samples that were written with it; what is not there is no fault.

    Raises:
        OSError: one of them may not be removed.
    """
    samples = _samples_named_by(path)
    path.unlink(missing_ok=True)
    if samples is not None:
        samples.unlink(missing_ok=True)


def _check_name(path: Path) -> None:
    """The name fits into the JSON that names the samples after it.

    Raises:
        ProfileError: it is not UTF-8.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise ProfileError(f"{path} cannot be written: its name is not UTF-8.") from None


def _check_length(path: Path, content: bytes, limit: int) -> None:
    """What is about to be written is not longer than what is read.

    Raises:
        ProfileError: it is.
    """
    if len(content) > limit:
        raise ProfileError(
            f"{path} would be {len(content)} bytes long, and over {limit} is not read; measure fewer formats "
            f"or batches at a time."
        )


def _validated(path: Path, data: dict[str, Any]) -> Profile:
    """The profile in parsed JSON, checked part by part.

    The first fault ends it: a list of all of them could be far larger than the file.

    Raises:
        ProfileError: it does not follow the schema; the sentence says where.
    """
    parts = (("rows", ArmRow), ("comparisons", Comparison))
    head = _record(path, Profile, data | {name: _some(data.get(name)) for name, _ in parts}, "")
    long = {
        name: [_record(path, model, item, f"{name}.{i}") for i, item in enumerate(data[name])]
        for name, model in parts
    }
    try:
        return Profile.model_validate(dict(head) | long)
    except ValidationError as error:
        raise _violation(path, error, "") from None


def _some(items: object) -> object:
    """Nothing of a list; what is not a list stays, for the schema to complain about."""
    return [] if isinstance(items, list) else items


def _record(path: Path, model: type[AnyRecord], data: object, where: str) -> AnyRecord:
    """One part of a profile, with the types of JSON taken at their word."""
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise _violation(path, error, where) from None


def _violation(path: Path, error: ValidationError, where: str) -> ProfileError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join([*([where] if where else []), *(str(part) for part in first["loc"])])
    return ProfileError(
        f"{path} does not follow the schema: {place or 'the profile'}: {first['msg']}."
    )


def _brief(value: object) -> str:
    """A value for a message; of an object or a list only what it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _content(path: Path, written: Samples, limit: int) -> bytes:
    """The bytes of a file beside a profile.

    Raises:
        ProfileError: it cannot be read, or is not the one that the profile was written with.
    """
    content = read_file(path, limit, path.parent)
    if hashlib.sha256(content).hexdigest() != written.sha256:
        raise ProfileError(f"{path} is not the file that its profile was written with (SHA-256).")
    return content


def _unpacked(path: Path, content: bytes, rows: int) -> pa.Table:
    """The table in a Parquet file, when it is one of samples."""
    from profiles.pages import WordLimits, checked_parquet, unpacked

    file = checked_parquet(path, content, rows)
    _check_schema(path, file.schema_arrow)
    words = [column.name for column in SAMPLE_COLUMNS if column.type == "string"]
    too_long = f"it has a word of more than {MAXIMUM_WORD_BYTES} bytes"
    limits = WordLimits("words", MAXIMUM_WORD_BYTES, MAXIMUM_WORDS_BYTES, too_long)
    try:
        return unpacked(file, content, samples_schema(), words, limits)
    except ValueError as error:
        raise ProfileError(f"{path} is not a sound Parquet file: {error}.") from None


def _check_schema(path: Path, found: pa.Schema) -> None:
    """Columns, types, nulls and metadata are those of a samples file."""
    expected = samples_schema()
    names = [column.name for column in SAMPLE_COLUMNS]
    if found.names != names:
        odd = sorted(set(found.names) ^ set(names)) or ["their order, or a name twice"]
        raise ProfileError(f"{path} does not have the columns of a samples file: {', '.join(odd)}.")
    for want, have in zip(expected, found, strict=True):
        if not have.equals(want):
            raise ProfileError(
                f"{path} has the column {str(have)[14:-1]} where {str(want)[14:-1]} was expected."
            )
    metadata = found.metadata or {}
    version = metadata.get(b"schema_version", b"none").decode("utf-8", "replace")
    if version != str(SCHEMA_VERSION):
        raise ProfileError(
            f"{path} has samples of version {version[:20]}, "
            f"but this reader knows {SCHEMA_VERSION} only."
        )
    reasons = parse_json(path, metadata.get(b"missing", b"{}"))
    if not all(isinstance(reason, str) for reason in reasons.values()):
        raise ProfileError(f"{path} has a reason for a missing column that is not text.")


def _check_numbers(path: Path, table: pa.Table) -> None:
    """Numbers are finite, times positive and counts not negative."""
    import pyarrow.compute as pc

    for column in SAMPLE_COLUMNS:
        if column.type == "string" or table.num_rows == 0:
            continue
        values = table.column(column.name)
        if column.type == "float64" and not pc.all(pc.is_finite(values), min_count=0).as_py():
            raise ProfileError(f"{path} has a number in {column.name} that is not finite.")
        least = pc.min(values).as_py()
        if column.name in ("time_s", "calls") and least <= 0:
            raise ProfileError(f"{path} has {least} in {column.name}, which must be positive.")
        if column.name not in ("started_s", "temperature_c") and least is not None and least < 0:
            raise ProfileError(f"{path} has {least} in {column.name}, which cannot be negative.")


def _parquet_bytes(samples: pa.Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    missing = json.loads((samples.schema.metadata or {}).get(b"missing", b"{}"))
    if not samples.schema.equals(samples_schema()):
        raise ValueError(
            "the samples table does not have the columns and types of samples_schema()."
        )
    for column in SAMPLE_COLUMNS:
        nulls = samples.column(column.name).null_count
        if nulls and not column.nullable:
            raise ValueError(f"column {column.name} of the samples may not be null.")
        if nulls and nulls == samples.num_rows and column.name not in missing:
            raise ValueError(
                f"column {column.name} is null throughout; samples_schema() takes why."
            )
    sink = pa.BufferOutputStream()
    pq.write_table(samples, sink, compression="zstd")
    return bytes(sink.getvalue())


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: readers see the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _samples_named_by(path: Path) -> Path | None:
    """The samples file that was written with the profile at `path`, if there is one.

    A profile that was copied there, or made by hand, may name the samples of another.
    """
    try:
        data = parse_json(path, read_file(path, MAXIMUM_PROFILE_BYTES))
        samples = _validated(path, data).samples
    except ProfileError:
        return None
    if samples is None or samples.file != f"{path.stem}.{samples.sha256[:8]}.parquet":
        return None
    return path.with_name(samples.file)
