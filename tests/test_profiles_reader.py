"""Reading refuses what it should, in one sentence; writing is all or nothing."""

import errno
import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from profiles import reader
from profiles.reader import (
    ProfileError,
    joules,
    load_profile,
    load_samples,
    load_trace,
    phi,
    write_profile,
)
from profiles.schema import (
    SAMPLE_COLUMNS,
    Energy,
    EnergyRow,
    Profile,
    Samples,
    absent,
    samples_schema,
)

MISSING = {c.name: "planted" for c in SAMPLE_COLUMNS if c.nullable}
PLANTED = {"value": 3.0, "low": 2.0, "high": 4.0, "n": 24}
ABSENT = {"value": None, "reason": "not planted"}
QUALITY = {"half_width_over_best16": 0.01, "between_process_spread_s": 0.1, "converged": True}


def comparison(**changes: object) -> dict:
    fields = {
        "operator": "layer",
        "n": None,
        "k": None,
        "batch": 1,
        "format": "int4-g128",
        "activation": "bf16",
        "launch_mode": "eager",
        "cache_state": "cold",
        "kind": "measured",
        **dict.fromkeys(("best16", "fused", "unfused", "library")),
        "phi_exposed_s": PLANTED,
        **dict.fromkeys(("cor_exposed", "cor_unfused", "phi_unfused_s"), ABSENT),
        **dict.fromkeys(("speedup_fused", "speedup_unfused", "speedup_library"), ABSENT),
        "non_stream_time_s": ABSENT,
        "quality_exposed": QUALITY,
        "quality_unfused": QUALITY,
    }
    return fields | changes


@pytest.fixture
def profile() -> Profile:
    facts = {"missing": {}, "extra": {}}
    return Profile.model_validate(
        {
            "created": "2026-01-31T12:00:00Z",
            "kind": "measured",
            "complete": True,
            "device": {"name": "cpu", "kind": "cpu", "uuid_hash": "ab", "cores": 2}
            | {"last_level_cache_bytes": 1, "memory_bytes": 1, "capability": "avx2"}
            | facts,
            "software": dict.fromkeys(("python", "os", "numpy", "torch", "triton", "numba"), "1")
            | dict.fromkeys(("driver", "cuda", "threading_layer"), "1"),
            "git": {"commit": "a" * 40, "dirty": False},
            "argv": ["bench"],
            "workload": {
                "model": "tiny",
                "layers": 2,
                "operators": [{"name": "o_proj", "n": 64, "k": 128}],
                "activation": "bf16",
                "formats": ["int4-g128"],
                "batches": [1],
                "launch_mode": "eager",
                "cache_state": "cold",
                "rotation_bytes": 1,
                "seeds": {},
            },
            "kernels_sha256": "0" * 64,
            "protocol": {
                "pilot_blocks": 10,
                "fresh_blocks_minimum": 20,
                "fresh_blocks_maximum": 90,
                "processes": 3,
                "target_half_width": 0.05,
                "confidence": 0.95,
                "sample_minimum_s": 0.001,
            },
            "rows": [],
            "comparisons": [comparison(), comparison(batch=8)],
        }
    )


def table(rows: int = 3, missing: dict | None = None) -> pa.Table:
    schema = samples_schema(MISSING if missing is None else missing)
    columns = []
    for field, column in zip(schema, SAMPLE_COLUMNS, strict=True):
        value = None if column.nullable else "x" if column.type == "string" else 1
        columns.append(pa.array([value] * rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def test_what_is_written_is_read(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "run.json"
    written = write_profile(profile, table(), path)
    assert load_profile(path) == written
    assert written.samples is not None
    assert written.samples.rows == 3
    samples = load_samples(written, tmp_path)
    assert samples.equals(table())
    assert json.loads(samples.schema.metadata[b"missing"]) == MISSING
    assert sorted(p.name for p in tmp_path.iterdir()) == [written.samples.file, "run.json"]


def test_a_profile_without_samples(tmp_path: Path, profile: Profile) -> None:
    write_profile(profile, None, tmp_path / "run.json")
    with pytest.raises(ProfileError, match="without samples"):
        load_samples(load_profile(tmp_path / "run.json"), tmp_path)


def test_replacing_a_profile_replaces_its_samples(tmp_path: Path, profile: Profile) -> None:
    write_profile(profile, table(3), tmp_path / "run.json")
    second = write_profile(profile, table(4), tmp_path / "run.json")
    assert second.samples is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == [second.samples.file, "run.json"]
    assert load_samples(second, tmp_path).num_rows == 4


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_failed_write_leaves_the_old_profile_whole(
    tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """Disk full while writing the samples (1) or the JSON (2)."""
    path = tmp_path / "run.json"
    first = write_profile(profile, table(3), path)
    before = sorted(p.name for p in tmp_path.iterdir())
    calls = []

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_profile(profile, table(4), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert load_profile(path) == first
    assert load_samples(first, tmp_path).num_rows == 3


def test_a_json_never_names_samples_that_are_not_there(
    tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    replace = os.replace

    def record(source: str, target: Path) -> None:
        order.append(Path(target).suffix)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    write_profile(profile, table(), tmp_path / "run.json")
    assert order == [".parquet", ".json"]


def test_writing_into_a_missing_folder_is_an_os_error(tmp_path: Path, profile: Profile) -> None:
    with pytest.raises(FileNotFoundError):
        write_profile(profile, table(), tmp_path / "nowhere/run.json")


def test_samples_without_a_reason_for_their_nulls(tmp_path: Path, profile: Profile) -> None:
    with pytest.raises(ValueError, match="null throughout"):
        write_profile(profile, table(missing={}), tmp_path / "run.json")
    with pytest.raises(ValueError, match="columns and types"):
        write_profile(profile, table().drop_columns(["flags"]), tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ("MAXIMUM_PROFILE_BYTES", "bytes long, and over 100 is not read"),
        ("MAXIMUM_SAMPLES_BYTES", "bytes long, and over 100 is not read"),
        ("MAXIMUM_WORD_BYTES", "a word of more than 0 bytes"),
    ],
)
def test_what_no_reader_would_take_is_not_written(
    tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch, limit: str, sentence: str
) -> None:
    """And the profile that was there before stays."""
    first = write_profile(profile, table(3), tmp_path / "run.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(reader, limit, 0 if "WORD" in limit else 100)
        with pytest.raises(ProfileError, match=sentence):
            write_profile(profile, table(4), tmp_path / "run.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_profile(tmp_path / "run.json") == first


def test_lists_that_are_too_long_and_names_that_are_not_utf8_are_not_written(
    tmp_path: Path, profile: Profile
) -> None:
    long = profile.model_copy(update={"argv": ("x",) * 10_001})
    with pytest.raises(ProfileError, match="more than 10000 members"):
        write_profile(long, table(), tmp_path / "run.json")
    with pytest.raises(ProfileError, match="its name is not UTF-8"):
        write_profile(profile, table(), tmp_path / os.fsdecode(b"r\xff.json"))
    assert list(tmp_path.iterdir()) == []


def test_a_profile_is_removed_with_its_samples(tmp_path: Path, profile: Profile) -> None:
    write_profile(profile, table(), tmp_path / "other.json")
    kept = sorted(tmp_path.iterdir())
    write_profile(profile, table(), tmp_path / "run.json")
    reader.remove_profile(tmp_path / "run.json")
    assert sorted(tmp_path.iterdir()) == kept
    reader.remove_profile(tmp_path / "run.json")


def test_changed_samples_are_refused(tmp_path: Path, profile: Profile) -> None:
    written = write_profile(profile, table(), tmp_path / "run.json")
    assert written.samples is not None
    file = tmp_path / written.samples.file
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    with pytest.raises(ProfileError, match="SHA-256"):
        load_samples(written, tmp_path)
    file.unlink()
    with pytest.raises(ProfileError, match="no file"):
        load_samples(written, tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\ud800", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"schema_version": 2, "kind": "measured"}', "schema_version 2"),
        ('{"kind": "measured"}', "schema_version None"),
        ('{"schema_version": 1, "kind": "modelled"}', "kind 'modelled'.*allow="),
        ('{"schema_version": 1, "kind": "measured"}', "does not follow the schema: created"),
    ],
)
def test_one_sentence_about_a_bad_file(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ProfileError, match=complaint) as caught:
        load_profile(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")


def test_missing_large_and_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProfileError, match="no file"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path)
    monkeypatch.setattr(reader, "MAXIMUM_PROFILE_BYTES", 10)
    (tmp_path / "large.json").write_text("x" * 11)
    with pytest.raises(ProfileError, match="11 bytes"):
        load_profile(tmp_path / "large.json")


def test_other_kinds_are_read_when_named(tmp_path: Path, profile: Profile) -> None:
    modelled = profile.model_copy(update={"kind": "modelled", "comparisons": ()})
    write_profile(modelled, None, tmp_path / "m.json")
    with pytest.raises(ProfileError, match="only measured was asked for"):
        load_profile(tmp_path / "m.json")
    assert load_profile(tmp_path / "m.json", allow=("measured", "modelled")).kind == "modelled"


def test_phi_finds_one_comparison(profile: Profile) -> None:
    assert phi(profile, "int4-g128", 8).value == 3.0
    assert phi(profile, "int4-g128", 1, path="unfused").reason == "not planted"
    with pytest.raises(ProfileError, match=r"0 comparisons.*batch 2.*int4-g128', 1, 'layer'"):
        phi(profile, "int4-g128", 2)


def test_phi_in_joules(profile: Profile) -> None:
    assert phi(profile, "int4-g128", 1, unit="j").reason == "energy was not measured"
    in_joules = comparison(phi_exposed_j=PLANTED | {"value": 2.5})
    measured = Profile.model_validate(profile.model_dump() | {"comparisons": [in_joules]})
    assert phi(measured, "int4-g128", 1, unit="j").value == 2.5
    assert phi(measured, "int4-g128", 1).value == 3.0
    assert phi(measured, "int4-g128", 1, path="unfused", unit="j").value is None


def energy_row(arm: str, batch: int, joules: object, implementation: str = "a") -> EnergyRow:
    kernel = {"arm": arm, "implementation": implementation, "variant": "b", "weight_format": "int4"}
    return EnergyRow.model_validate(
        {
            "batch": batch, "format": "int4-g128", "kernel": kernel, "energy_j": joules,
            **dict.fromkeys(("net_j", "token_j", "power_w", "idle_w", "layer_s"), ABSENT),
            **dict.fromkeys(
                ("source", "disagreement", "sm_clock_mhz", "memory_clock_mhz",
                 "temperature_begin_c", "temperature_end_c", "throttle_share")
            ),
            "windows": 4, "sources": {},
        }
    )  # fmt: skip


@pytest.fixture
def with_joules(profile: Profile) -> Profile:
    """Two layers; 3 J of one, from 2 to 4."""
    rows = (
        energy_row("fused", 8, PLANTED),
        energy_row("unfused", 8, absent("it was frozen")),
        *(energy_row("vendor", 8, PLANTED, who) for who in "ab"),
    )
    return profile.model_copy(update={"energy": Energy(rows=rows)})


@pytest.mark.parametrize(
    ("per", "steps", "expected"),
    [("layer", 1, (3, 2, 4)), ("step", 1, (6, 4, 8)), ("token", 1, (0.75, 0.5, 1)),
     ("hop", 10, (60, 40, 80))],
)  # fmt: skip
def test_joules_of_a_layer_step_token_and_hop(
    with_joules: Profile, per: str, steps: int, expected: tuple[float, ...]
) -> None:
    found = joules(with_joules, "int4-g128", 8, "fused", per, steps)  # type: ignore[arg-type]
    assert (found.value, found.low, found.high) == expected
    assert (found.n, found.kind) == (24, "measured")


def test_joules_that_are_not_there(profile: Profile, with_joules: Profile) -> None:
    refused = joules(with_joules, "int4-g128", 8, "unfused", per="token")
    assert (refused.value, refused.reason) == (None, "it was frozen")
    assert joules(with_joules, "int4-g128", 8, "vendor", implementation="b").value == 3.0
    for arguments, complaint in (
        (
            (8, "vendor"),
            r"2 energy rows fit .* batch 8, arm vendor; .*'vendor', 'a'.*'vendor', 'b'",
        ),
        ((1, "fused"), r"0 energy rows fit format int4-g128, batch 1, arm fused; this profile has"),
        ((8, "fused", "hop", 0), r"a hop has one step or more, not 0\."),
    ):
        with pytest.raises(ProfileError, match=complaint):
            joules(with_joules, "int4-g128", *arguments)  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match=r"has no joules: energy was not measured\."):
        joules(profile, "int4-g128", 8, "fused")


def test_a_power_trace_is_the_one_it_was_written_with(tmp_path: Path, profile: Profile) -> None:
    with pytest.raises(ProfileError, match="without a power trace"):
        load_trace(profile, tmp_path, "int4-g128")
    path = tmp_path / "run.power.parquet"
    parquet.write_table(pa.table({"a": [1, 2, 3]}), path)
    content = path.read_bytes()

    def named(rows: int = 3) -> Profile:
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
        trace = Samples(file=path.name, sha256=digest, rows=rows)
        traces = {"int4-g128": trace}
        return profile.model_copy(
            update={"energy": profile.energy.model_copy(update={"traces": traces})}
        )

    sound = named()
    assert load_trace(sound, tmp_path, "int4-g128") == content
    with pytest.raises(ProfileError, match="claims 3 rows, but its profile speaks of 4"):
        load_trace(named(4), tmp_path, "int4-g128")
    path.write_bytes(content[:-1])
    with pytest.raises(ProfileError, match="SHA-256"):
        load_trace(sound, tmp_path, "int4-g128")
    with pytest.raises(ProfileError, match="is not a Parquet file"):
        load_trace(named(), tmp_path, "int4-g128")
    path.unlink()
    with pytest.raises(ProfileError, match="there is no file"):
        load_trace(sound, tmp_path, "int4-g128")


def test_a_packed_profile_reads_like_a_plain_one(profile: Profile, tmp_path: Path) -> None:
    write_profile(profile, None, tmp_path / "a.json")
    write_profile(profile, None, tmp_path / "a.json.gz")
    plain = (tmp_path / "a.json").read_bytes()
    packed = (tmp_path / "a.json.gz").read_bytes()
    assert gzip.decompress(packed) == plain
    assert load_profile(tmp_path / "a.json.gz") == load_profile(tmp_path / "a.json")
    write_profile(profile, None, tmp_path / "b.json.gz")
    assert (tmp_path / "b.json.gz").read_bytes() == packed  # no date, no name in it


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda packed: packed[:-9], "cut short, or goes on"),
        (lambda packed: packed + b"x", "cut short, or goes on"),
        (lambda packed: packed + packed, "cut short, or goes on"),
        (lambda packed: b"{}", "not a sound gzip file"),
        (lambda packed: packed[:-8] + bytes(8), "not a sound gzip file"),
        (lambda packed: gzip.compress(bytes(reader.MAXIMUM_PROFILE_BYTES + 1)), "unpacks to more"),
        (lambda packed: gzip.compress(b"{"), "not valid JSON"),
        (lambda packed: gzip.compress(packed), "compressed with gzip; unpack it first"),
    ],
)
def test_a_packed_profile_that_cannot_be_used(
    profile: Profile, tmp_path: Path, change, complaint: str
) -> None:
    path = tmp_path / "a.json.gz"
    write_profile(profile, None, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ProfileError, match=complaint):
        load_profile(path)
