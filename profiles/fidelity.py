"""How far numbers drift when low-bit layers are chained: a file beside a profile, and its reader.

    run.json            the profile
    run.fidelity.json   Fidelity: per format and kind of weights, the error after so many layers and hops

    from profiles.fidelity import fidelity_of, load_fidelity
    found = load_fidelity(fidelity_of(Path("run.json")))

An error is ||y - y16|| / ||y16||: of the chain with quantized weights against the same chain in 16 bits, at
the same depth. It is a proxy for accuracy, and no more than that: random weights, no sampling of tokens.
Written by `python -m bench.fidelity`. Numbers are kept one per seed; medians are taken on reading.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from profiles.files import ProfileError, parse_json, read_file
from profiles.record import Kind, Record

MAXIMUM_FIDELITY_BYTES = 8 * 1024 * 1024  # thirty formats take 200 kB
Distribution = Literal["gaussian", "heavy-tailed"]


class ChainShape(Record):
    """The chained layers: a decoder layer at a context of one token, so that attention returns v."""

    hidden: Annotated[int, Field(gt=0)]
    intermediate: Annotated[int, Field(gt=0)]
    heads: Annotated[int, Field(gt=0)]
    kv_heads: Annotated[int, Field(gt=0)]
    layers: Annotated[int, Field(gt=0)] = Field(description="of one pass; a hop is a pass")
    hops: Annotated[int, Field(gt=0)]
    batch: Annotated[int, Field(gt=0)]
    activation: Literal["fp16", "bf16"]


class FidelityRow(Record):
    """Errors of one format and kind of weights, at one depth; one number per seed.

    `layers` counts from the begin of the first hop: at the end of hop h it is h times those of a pass.
    """

    format: str
    distribution: Distribution
    implementation: str = Field(
        description="who computed the products: numba, or numpy's reference"
    )
    layers: Annotated[int, Field(gt=0)]
    hops: Annotated[int, Field(ge=0)] = Field(description="that are complete at this depth")
    errors: tuple[Annotated[float, Field(ge=0)], ...]


class Fidelity(Record):
    """What bench.fidelity writes."""

    fidelity_version: Literal[1] = 1
    created: datetime = Field(description="UTC, ISO 8601")
    kind: Kind
    shape: ChainShape
    seeds: tuple[int, ...]
    kernels_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    rows: tuple[FidelityRow, ...]


def fidelity_of(profile: Path) -> Path:
    """Where the fidelity of a profile lies, packed (run.json.gz) or not."""
    return profile.with_name(
        f"{profile.name.removesuffix('.gz').removesuffix('.json')}.fidelity.json"
    )


def load_fidelity(path: Path) -> Fidelity:
    """Reads and checks a fidelity file, as carefully as a profile.

    Raises:
        ProfileError: it is missing, too large, not JSON, of another version, or does not follow the schema.
    """
    data = parse_json(path, read_file(path, MAXIMUM_FIDELITY_BYTES))
    try:
        return Fidelity.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ProfileError(
            f"{path} is no fidelity file: {place or 'the file'}: {first['msg']}."
        ) from None
