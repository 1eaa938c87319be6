"""Read and write profiles: one JSON file, and one Parquet file of samples beside it.

    from profiles.reader import load_profile, phi
    profile = load_profile("run.json")
    print(phi(profile, "int4-g128", batch=1).value)

Measured profiles are read by default; modelled, simulated and imported ones only when asked for by
name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from profiles.schema import (
    LAYER,
    SAMPLE_COLUMNS,
    SCHEMA_VERSION,
    Kind,
    Profile,
    Quantity,
    Samples,
    samples_schema,
)

if TYPE_CHECKING:
    import pyarrow as pa

MAXIMUM_PROFILE_BYTES = 64 * 1024 * 1024
MAXIMUM_SAMPLES_BYTES = 2 * 1024 * 1024 * 1024


class ProfileError(ValueError):
    """A profile that cannot be used; the message is one sentence for the user."""


def load_profile(path: str | Path, allow: tuple[Kind, ...] = ("measured",)) -> Profile:
    """Read and check a profile.

    Args:
        path: the JSON file.
        allow: kinds of evidence the caller is ready for.

    Raises:
        ProfileError: the file is missing, too large, not JSON, of another version, of a kind that
        was
            not asked for, or does not follow the schema.
    """
    path = Path(path)
    data = _parse(path, _read(path, MAXIMUM_PROFILE_BYTES))
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ProfileError(
            f"{path} has schema_version {version!r}, but this reader knows {SCHEMA_VERSION} only."
        )
    kind = data.get("kind")
    if kind not in allow:
        raise ProfileError(
            f"{path} is a profile of kind {kind!r}, but only {', '.join(allow)} was asked for; "
            f"pass allow=({kind!r},) if that is what you want."
        )
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the profile"
        raise ProfileError(f"{path} does not follow the schema: {where}: {first['msg']}.") from None


def load_samples(profile: Profile, folder: str | Path) -> pa.Table:
    """Every sample of a profile, as an Arrow table with the columns of `SAMPLE_COLUMNS`.

    Args:
        profile: as read from `folder`.
        folder: where the profile lies.

    Raises:
        ProfileError: the profile has no samples, or the file is missing or not the one it was
            written with.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if profile.samples is None:
        raise ProfileError("this profile was written without samples.")
    path = Path(folder) / profile.samples.file
    content = _read(path, MAXIMUM_SAMPLES_BYTES)
    if hashlib.sha256(content).hexdigest() != profile.samples.sha256:
        raise ProfileError(f"{path} is not the file that its profile was written with (SHA-256).")
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowException as error:
        raise ProfileError(f"{path} is not a Parquet file: {error}.") from None
    expected = [column.name for column in SAMPLE_COLUMNS]
    if table.column_names != expected:
        odd = sorted(set(table.column_names) ^ set(expected)) or ["their order"]
        raise ProfileError(f"{path} does not have the columns of a samples file: {', '.join(odd)}.")
    return table


def phi(
    profile: Profile,
    format: str,
    batch: int,
    operator: str = LAYER,
    path: Literal["exposed", "unfused"] = "exposed",
) -> Quantity:
    """The cost of dequantization in seconds: of the fused kernel (exposed), or of the unfused pair.

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
    return found[0].phi_exposed_s if path == "exposed" else found[0].phi_unfused_s


def write_profile(profile: Profile, samples: pa.Table | None, path: str | Path) -> Profile:
    """Write samples, then the profile that names them; neither is ever half there.

    Each file is written under a temporary name in the same folder, flushed to disk and renamed. The
    samples file carries part of its hash in its name, so an older profile of the same name keeps
    its own samples until the new profile has taken its place; they are removed after that.

    Args:
        profile: `profile.samples` is filled in here.
        samples: with the schema of `samples_schema`; None for a profile without samples.
        path: the JSON file to write; an existing one is replaced.

    Returns:
        The profile as written.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
        ValueError: the table's columns are not those of `samples_schema`, or one that is null
            throughout has no reason in the schema's metadata.
    """
    path = Path(path)
    samples_path = None
    replaced = _samples_named_by(path)
    record = None
    if samples is not None:
        content = _parquet_bytes(samples)
        digest = hashlib.sha256(content).hexdigest()
        samples_path = path.with_name(f"{path.stem}.{digest[:8]}.parquet")
        record = Samples(file=samples_path.name, sha256=digest, rows=samples.num_rows)
    profile = profile.model_copy(update={"samples": record})
    text = profile.model_dump_json(indent=1) + "\n"
    existed = samples_path is not None and samples_path.exists()
    if samples_path is not None:
        _replace(samples_path, content)
    try:
        _replace(path, text.encode())
    except BaseException:
        if samples_path is not None and not existed:
            samples_path.unlink(missing_ok=True)
        raise
    if replaced is not None and replaced != samples_path:
        with contextlib.suppress(OSError):
            replaced.unlink(missing_ok=True)
    return profile


def _read(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise ProfileError(f"{path} is {size} bytes long; files over {limit} are not read.")
        return path.read_bytes()
    except FileNotFoundError:
        raise ProfileError(f"there is no file {path}.") from None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise ProfileError(f"{path} holds a {type(data).__name__}, but a profile is an object.")
    return data


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


def _replace(path: Path, content: bytes) -> None:
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
    """The samples file of the profile that already lies at `path`, if there is one."""
    try:
        samples = Profile.model_validate(_parse(path, _read(path, MAXIMUM_PROFILE_BYTES))).samples
    except (ProfileError, ValidationError):
        return None
    return None if samples is None else path.with_name(samples.file)
