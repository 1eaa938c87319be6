"""Files made by accident or in malice: each ends in a profile or in one sentence, within bounds."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hostile_files as hostile
import planted_profile as planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import check, report
from profiles import pages, reader
from profiles.files import ProfileError, parse_json, printable, read_file
from profiles.reader import load_profile, load_samples, write_profile
from profiles.schema import samples_schema

ROOT = Path(__file__).resolve().parent.parent
HEADROOM_BYTES = 512 << 20
FAST_FILES, ALL_FILES = 800, 2400


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, str]:
    """A sound profile: its JSON, its Parquet, and the name of the latter."""
    folder = tmp_path_factory.mktemp("small")
    rows = planted.sample_rows()
    written = write_profile(planted.profile_of(rows), planted.table_of(rows), folder / "run.json")
    assert written.samples is not None
    name = written.samples.file
    return (folder / "run.json").read_bytes(), (folder / name).read_bytes(), name


def one_sentence(error: pytest.ExceptionInfo[ProfileError]) -> str:
    message = str(error.value)
    assert message.isprintable()
    assert message.endswith(".")
    assert len(message) <= 400
    return message


# ------------------------------------------------------------------------------------- JSON


def edited(text: bytes, old: str, new: str) -> bytes:
    """The profile with the first `old` replaced."""
    assert old in text.decode()
    return text.decode().replace(old, new, 1).encode(errors="surrogatepass")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty"),
        (b" \n ", "it is empty"),
        (b"\x00\x01\x02\xfe", "byte 0xfe at 3 is not UTF-8"),
        (b"\x00\x01\x02", "Expecting value"),
        (gzip.compress(b"{}", mtime=0), "gzip; unpack it first"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "byte order mark"),
        (b'{"a": "\xe4"}', "byte 0xe4 at 7 is not UTF-8"),
        (b'{"a": NaN}', "it holds NaN"),
        (b'{"a": -Infinity}', "it holds -Infinity"),
        (b'{"a": 1e999}', "the number 1e999 is beyond what a float holds"),
        (b'{"a": ' + b"9" * 5000 + b"}", "999… is beyond 64 bits"),
        (b'{"a": 9223372036854775808}', "9223372036854775808 is beyond 64 bits"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b"[" * 100_000, "nested more than 32 deep"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 deep"),
        (b'{"a\\u0000": 1}', "a key holds a control character"),
        (b"[" + b"0," * 1_000_001 + b"0]", "more than 1000000 values"),
        (b"[" + b"[]," * 200_000 + b"0]", "more than 200000 objects and lists"),
        (b'{"a": [' + b"0," * 10_000 + b"0]}", "has more than 10000 members"),
        (b"[]", "holds a list, but a profile is an object"),
        (b"3", "holds a number, but a profile is an object"),
        (b'{"schema_version": 1.0}', "schema_version 1.0"),
        (b'{"schema_version": true}', "schema_version True"),
        (b'{"schema_version": {"a": 1}}', "schema_version an object"),
        (b'{"schema_version": 1, "kind": "' + b"x" * 10**6 + b'"}', "is a profile of kind 'xxx"),
    ],
)  # fmt: skip
def test_json_that_is_no_profile(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError) as error:
        load_profile(path)
    assert complaint in one_sentence(error)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"complete": true', '"complete": "true"', "complete: Input should be a valid boolean"),
        ('"layers": 2', '"layers": "2"', "workload.layers: Input should be a valid integer"),
        ('"layers": 2', '"layers": 2.0', "workload.layers: Input should be a valid integer"),
        ('"layers": 2', '"layers": true', "workload.layers: Input should be a valid integer"),
        ('"time_s"', '"time_ms"', "rows.0.time_s: Field required"),
        ('"rows": [', '"rows": [17, ', "rows.0: Input should be an object"),
        ('"blocks": 24', '"blocks": -1', "rows.0.blocks: Input should be greater"),
        ('"confidence": 0.95', '"confidence": 1e300', "protocol.confidence"),
        ('"created": "2026', '"created": "99999', "created: Input should be a valid datetime"),
        ('"file": "', '"file": "../', "samples.file: String should match pattern"),
        ('"file": "', '"file": "/', "samples.file: String should match pattern"),
        ('"file": "', '"file": "\\u0000', "samples.file: String should match pattern"),
        ('"argv": [', '"argv": [[[[]]], ', "argv.0: Input should be a valid string"),
    ],
)
def test_a_profile_with_one_fault(
    tmp_path: Path, small: tuple[bytes, bytes, str], old: str, new: str, complaint: str
) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(edited(small[0], old, new))
    with pytest.raises(ProfileError) as error:
        load_profile(path)
    assert complaint in one_sentence(error)


def test_every_prefix_of_a_profile_is_refused(
    tmp_path: Path, small: tuple[bytes, bytes, str]
) -> None:
    path, text = tmp_path / "run.json", small[0].rstrip()
    for length in range(0, len(text), 997):
        path.write_bytes(text[:length])
        with pytest.raises(ProfileError):
            load_profile(path)


def test_strings_come_without_control_characters(
    tmp_path: Path, small: tuple[bytes, bytes, str]
) -> None:
    odd = json.dumps("Evil\x1b[31m\n\u202eCPU\ud800")
    (tmp_path / "run.json").write_bytes(edited(small[0], '"Planted CPU"', odd))
    name = load_profile(tmp_path / "run.json").device.name
    assert name == "Evil\\x1b[31m \\u202eCPU\\ud800"


def test_printable() -> None:
    assert printable("φ ≤ 3 µs") == "φ ≤ 3 µs"
    assert printable("a\tb\u2028c\x7f\U000e0001") == "a b c\\x7f\\U000e0001"
    assert printable("x" * 10, 5) == "xxxx…"
    assert parse_json(Path("x"), b'{"a": ["\\u0007"]}') == {"a": ["\\x07"]}


# ------------------------------------------------------------------------------------- paths


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")  # to open it would wait for ever
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name, complaint in (
        ("pipe.json", "it is a device or a pipe, but a file was expected."),
        ("zero.json", "it is a device or a pipe, but a file was expected."),
        ("", "it is a folder, but a file was expected."),
        ("loop.json", "cannot be read"),
        ("x" * 256, "cannot be read: File name too long."),
        ("nul\0.json", "cannot be read: embedded null byte."),
        ("none.json", "there is no file"),
    ):
        with pytest.raises(ProfileError) as error:
            load_profile(tmp_path / name)
        assert complaint in one_sentence(error)


@pytest.mark.parametrize("target", ["outside.parquet", "/dev/zero", "folder", "loop", "pipe"])
def test_samples_stay_in_the_folder(
    tmp_path: Path, small: tuple[bytes, bytes, str], target: str
) -> None:
    text, parquet, name = small
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "run.json").write_bytes(text)
    (tmp_path / "outside.parquet").write_bytes(parquet)
    profile = load_profile(inside / "run.json")
    match target:
        case "outside.parquet":
            (inside / name).symlink_to(Path("..") / target)
        case "folder":
            (inside / name).mkdir()
        case "loop":
            (inside / name).symlink_to(name)
        case "pipe":
            os.mkfifo(inside / name)
        case _:
            (inside / name).symlink_to(target)
    with pytest.raises(ProfileError) as error:
        load_samples(profile, inside)
    assert any(
        words in one_sentence(error)
        for words in ("leads out of the folder", "but a file was expected", "cannot be read")
    )


def test_a_link_within_the_folder_is_followed(
    tmp_path: Path, small: tuple[bytes, bytes, str]
) -> None:
    text, parquet, name = small
    (tmp_path / "run.json").write_bytes(text)
    (tmp_path / "real").write_bytes(parquet)
    (tmp_path / name).symlink_to("real")
    assert load_samples(load_profile(tmp_path / "run.json"), tmp_path).num_rows == 476
    (tmp_path / "linked").symlink_to(tmp_path)
    assert (
        load_samples(load_profile(tmp_path / "linked/run.json"), tmp_path / "linked").num_rows
        == 476
    )


def test_a_copied_profile_does_not_take_the_samples_of_the_original_along(tmp_path: Path) -> None:
    rows = planted.sample_rows()
    profile, table = planted.profile_of(rows), planted.table_of(rows)
    original = write_profile(profile, table, tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.json").read_bytes())
    write_profile(profile, table.slice(0, 9), tmp_path / "b.json")
    assert load_samples(original, tmp_path).num_rows == 476


def test_a_file_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    small_stat = os.stat_result((0o100644, 0, 0, 1, 0, 0, 3, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda self, **_: small_stat)
    with pytest.raises(ProfileError, match="grew beyond 4 bytes"):
        read_file(path, 4)


# ------------------------------------------------------------------------------------- Parquet


def samples_read(
    folder: Path, small: tuple[bytes, bytes, str], parquet: bytes, rows: int
) -> pa.Table:
    """What the reader makes of a Parquet file that a profile names by its true hash."""
    text, _, name = small
    data = json.loads(hostile.with_samples(text, name, parquet))
    data["samples"]["rows"] = rows
    (folder / "run.json").write_text(json.dumps(data))
    (folder / name).write_bytes(parquet)
    return load_samples(load_profile(folder / "run.json"), folder)


def parquet_of(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "zstd"} | options)
    return bytes(sink.getvalue())


def large(rows: int, **columns: Any) -> pa.Table:
    """So many equal samples, with columns of one repeated value exchanged."""
    first = planted.sample_rows()[0] | columns
    schema = samples_schema(planted.MISSING)
    arrays = [pa.repeat(pa.scalar(first[field.name], field.type), rows) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def billion() -> bytes:
    """900 samples in a file whose every count says that they are a billion."""
    parquet = parquet_of(large(900))
    start = len(parquet) - 8 - int.from_bytes(parquet[-8:-4], "little")
    footer = parquet[start:-8].replace(b"\x16\x88\x0e", b"\x16\x80\xa8\xd6\xb9\x07")
    return parquet[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def set_column(
    name: str, values: Any, field: pa.Field | None = None
) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        return table.set_column(index, field or table.schema.field(name), values(table))

    return change


def not_utf8(table: pa.Table) -> pa.Array:
    lengths = pa.array(range(table.num_rows + 1), pa.int32()).buffers()[1]
    text = pa.py_buffer(b"\xff" * table.num_rows)
    return pa.Array.from_buffers(pa.string(), table.num_rows, [None, lengths, text])


def one_odd(name: str, value: float) -> Callable[[pa.Table], pa.Table]:
    def values(table: pa.Table) -> pa.Array:
        return pa.array(
            [*table.column(name).to_pylist()[:-1], value], table.schema.field(name).type
        )

    return set_column(name, values)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.rename_columns([f"{n[:-2]}_ms" if n == "time_s" else n for n in t.column_names]),
         "does not have the columns of a samples file: time_ms, time_s."),
        (lambda t: t.select(t.column_names[::-1]), "their order"),
        (lambda t: t.drop_columns(["flags"]), "columns of a samples file: flags."),
        (lambda t: t.append_column("extra", t.column("n")), "columns of a samples file: extra."),
        (set_column("time_s", lambda t: t["time_s"].cast("float32"),
                    pa.field("time_s", "float32", False)),
         "has the column time_s: float not null where time_s: double not null was expected."),
        (set_column("arm", lambda t: t["arm"].dictionary_encode(),
                    pa.field("arm", pa.dictionary("int32", "string"), False)), "has the column arm:"),
        (set_column("n", lambda t: t["n"], pa.field("n", "int32", True)),
         "has the column n: int32 where n: int32 not null was expected."),
        (set_column("flags", not_utf8), "is not a sound Parquet file: "),
        (one_odd("time_s", float("nan")), "has a number in time_s that is not finite."),
        (one_odd("probe_us", float("inf")), "has a number in probe_us that is not finite."),
        (one_odd("time_s", 0.0), "has 0.0 in time_s, which must be positive."),
        (one_odd("calls", -3), "has -3 in calls, which must be positive."),
        (one_odd("process", -1), "has -1 in process, which cannot be negative."),
        (lambda t: t.replace_schema_metadata({"schema_version": "2"}), "samples of version 2, but"),
        (lambda t: t.replace_schema_metadata({}), "samples of version none, but"),
        (lambda t: t.replace_schema_metadata({"schema_version": "1", "missing": "{"}), "not valid JSON"),
        (lambda t: t.replace_schema_metadata({"schema_version": "1", "missing": '{"n": 1}'}),
         "a reason for a missing column that is not text"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_of_samples(
    tmp_path: Path,
    small: tuple[bytes, bytes, str],
    change: Callable[[pa.Table], pa.Table],
    complaint: str,
) -> None:
    table = change(planted.table_of(planted.sample_rows()))
    with pytest.raises(ProfileError) as error:
        samples_read(tmp_path, small, parquet_of(table), table.num_rows)
    assert complaint in one_sentence(error)


@pytest.mark.parametrize(
    ("make", "rows", "complaint"),
    [
        (billion, 10**9, "claims 1000000000 rows, but over 1000000 are not read."),
        (billion, 900, "claims 1000000000 rows, but its profile speaks of 900"),
        (lambda: parquet_of(large(900)), 899, "claims 900 rows, but its profile speaks of 899"),
        (lambda: parquet_of(large(50_000, flags="x" * 1000)), 50_000, "a word of more than 256"),
        (lambda: parquet_of(large(1_000_000, flags="x" * 200)), 1_000_000, "its words take 2"),
        (lambda: parquet_of(large(300), row_group_size=1), 300, "it claims 300 row groups"),
        (lambda: parquet_of(large(9), use_dictionary=False,
                            column_encoding={"flags": "DELTA_BYTE_ARRAY"}), 9,
         "an encoding that samples are not written in"),
        (lambda: b"", 1, 'does not begin and end with "PAR1"'),
        (lambda: b"PAR1" + b"\xff" * 4 + b"PAR1", 1, "claims a footer of 4294967295 bytes"),
        (lambda: b"PAR1" + b"\xff" * 40 + b"\x20\0\0\0PAR1", 1, "is not a sound Parquet file"),
        (lambda: gzip.compress(parquet_of(large(9))), 9, "is not a Parquet file"),
    ],
)  # fmt: skip
def test_parquet_that_promises_too_much(
    tmp_path: Path,
    small: tuple[bytes, bytes, str],
    make: Callable[[], bytes],
    rows: int,
    complaint: str,
) -> None:
    parquet = make()
    assert len(parquet) < 10 << 20, "small enough to be sent by mail"
    start = time.monotonic()
    with pytest.raises(ProfileError) as error:
        samples_read(tmp_path, small, parquet, rows)
    assert complaint in one_sentence(error)
    assert time.monotonic() - start < 10


def test_pages_that_unpack_to_too_much(
    tmp_path: Path, small: tuple[bytes, bytes, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAXIMUM_UNPACKED_BYTES", 1 << 20)
    bomb = parquet_of(large(1, flags="x" * 2_000_000))
    assert len(bomb) < 20_000
    with pytest.raises(
        ProfileError, match=r"its pages unpack to 20.*, and at most 1048576 are taken"
    ):
        samples_read(tmp_path, small, bomb, 1)


def page(kind: int, unpacked: int, packed: int, values: int, encoding: int) -> bytes:
    """A page header as Thrift writes it, and a page of zeros."""

    def number(value: int) -> bytes:
        value, out = (value << 1) ^ (value >> 63), bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    head = b"".join(b"\x15" + number(n) for n in (kind, unpacked, packed))
    step = {0: 5, 2: 7, 3: 8}.get(kind, 5) - 3
    inner = b"\x15" + number(values) + b"\x15" + number(encoding)
    return head + bytes([step << 4 | 12]) + inner + b"\0\0" + bytes(min(packed, 1000))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (page(0, 2**31 - 1, 10, 5, 0), None),  # two gigabytes are seen, and added up
        (page(0, 100, 10, 5, 0) + page(2, 50, 20, 5, 2), None),
        (page(0, 100, 2000, 5, 0), "a page claims 2000 bytes that unpack to 100"),
        (page(0, -1, 10, 5, 0), "a page claims 10 bytes that unpack to -1"),
        (page(0, 100, 10, 5, 7), "an encoding that samples are not written in"),
        (page(0, 100, 10, 10**9, 8), "a page claims 1000000000 values"),
        (page(7, 100, 10, 5, 0), "lacks its type or its sizes"),
        (b"\x0c" * 20, "nested too deeply"),
        (b"\x15" + b"\xff" * 20, "a number that does not end"),
        (b"\x19\x15\x00", "a field of type 9"),
        (b"\x00", "lacks its type or its sizes"),
    ],
)
def test_page_headers(content: bytes, complaint: str | None) -> None:
    chunk = SimpleNamespace(
        data_page_offset=4, has_dictionary_page=False, dictionary_page_offset=None,
        total_compressed_size=len(content),
    )  # fmt: skip
    if complaint is None:
        expected = {2**31 - 1: (2**31 - 1, 1)}.get(pages._struct(content, 0)[0][2], (150, 2))
        assert pages._chunk(b"PAR1" + content, chunk, 10) == expected
        with pytest.raises(ValueError, match="more than"):
            pages._chunk(b"PAR1" + content, chunk, 0)
    else:
        with pytest.raises(ValueError, match=complaint):
            pages._chunk(b"PAR1" + content, chunk, 10)


def test_a_page_header_that_is_cut_short() -> None:
    chunk = SimpleNamespace(
        data_page_offset=4, has_dictionary_page=False, dictionary_page_offset=None,
        total_compressed_size=3,
    )  # fmt: skip
    with pytest.raises(IndexError):
        pages._chunk(b"PAR1\x15\x02\x15", chunk, 10)


# ------------------------------------------------------------------------------------- in numbers


def survive(folder: Path, text: bytes, parquet: bytes, name: str) -> str:
    """ "read" or "refused": anything else fails. What is read, both commands can print."""
    path = folder / "run.json"
    path.write_bytes(text)
    (folder / name).write_bytes(parquet)
    try:
        hostile.read_all(path)
    except ProfileError as error:
        message = str(error)
        assert message.isprintable()
        assert message.endswith(".")
        return "refused"
    profile, findings = check.check(path)
    check.to_json(path, profile, findings)
    report.render(profile)
    return "read"


def fuzz(folder: Path, small: tuple[bytes, bytes, str], seeds: range) -> Counter[str]:
    """Changed files, one per seed: half JSON, a quarter Parquet with its true hash, a quarter without."""
    text, parquet, name = small
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        changed_text, changed_parquet = text, parquet
        if seed % 2:
            changed_text = hostile.mutate_json(text, rng)
        else:
            changed_parquet = hostile.mutate_parquet(parquet, rng)
            if seed % 4:
                changed_text = hostile.with_samples(text, name, changed_parquet)
        try:
            outcomes[survive(folder, changed_text, changed_parquet, name)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    return outcomes


def test_mutated_files_never_crash_a_reader(
    tmp_path: Path, small: tuple[bytes, bytes, str]
) -> None:
    outcomes = fuzz(tmp_path, small, range(FAST_FILES))
    assert outcomes.total() == FAST_FILES
    assert outcomes["refused"] > 0.9 * FAST_FILES


@pytest.mark.proof
def test_many_more_mutated_files(
    tmp_path: Path,
    small: tuple[bytes, bytes, str],
    record_property: Callable[[str, object], None],
) -> None:
    outcomes = fuzz(tmp_path, small, range(FAST_FILES, FAST_FILES + ALL_FILES))
    record_property("counted", f"{outcomes.total()} mutated files: {dict(outcomes)}")
    assert outcomes.total() == ALL_FILES
    assert outcomes["refused"] > 0.9 * ALL_FILES


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    part=st.sampled_from(
        ("created", "device", "software", "git", "argv", "workload", "kernels_sha256", "protocol",
         "rows", "comparisons", "samples", "schema_version", "kind", "complete", "more")
    ),
    value=JSON_VALUES,
)  # fmt: skip
def test_any_json_in_any_place(
    tmp_path_factory: pytest.TempPathFactory, small: tuple[bytes, bytes, str], part: str, value: Any
) -> None:
    text, parquet, name = small
    content = json.dumps(json.loads(text) | {part: value}).encode()
    survive(tmp_path_factory.getbasetemp(), content, parquet, name)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(content=st.binary(max_size=400))
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, small: tuple[bytes, bytes, str], content: bytes
) -> None:
    folder, (text, parquet, name) = tmp_path_factory.getbasetemp(), small
    assert survive(folder, content, parquet, name) == "refused"
    framed = b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1"
    assert survive(folder, hostile.with_samples(text, name, framed), framed, name) == "refused"


# ------------------------------------------------------------------------------------- memory

LIMITED = """
import resource, sys, time
from pathlib import Path
import pyarrow.compute, pyarrow.parquet
import hostile_files as hostile
from profiles.reader import ProfileError
hostile.read_all(Path(sys.argv[1]))  # whatever is loaded or started once counts as the baseline
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for path in map(Path, sys.argv[3:]):
    start = time.monotonic()
    try:
        hostile.read_all(path)
        outcome = "read"
    except ProfileError as error:
        outcome = f"refused: {error}"
    print(f"{path.parent.name}|{time.monotonic() - start:.1f}|{outcome}", flush=True)
"""


def heavy_files(folder: Path, small: tuple[bytes, bytes, str]) -> list[Path]:
    """The worst that the limits on size let through, one folder each."""
    text, parquet, name = small
    most = reader.MAXIMUM_PROFILE_BYTES - 100_000
    data = json.loads(text)

    def with_part(part: str, content: str) -> bytes:
        return json.dumps(data | {part: "@"}).replace('"@"', content).encode()

    row = json.dumps(data["rows"][0])
    many = ",".join(
        row.replace('"variant": "default"', f'"variant": "v{i}"')
        for i in range(most * 2 // 3 // (len(row) + 8))
    )
    pairs = ",".join(f'"{i:06d}": "{i:06d}"' for i in range(1_000_000))
    texts = {
        "empty-objects": with_part("rows", "[" + "{}," * 199_000 + "{}]"),
        "empty-lists": with_part("argv", "[" + "[]," * 199_000 + "[]]"),
        "many-keys": ("{" + pairs + "}").encode(),
        "wide-characters": ('{"a": "\U0001f600", ' + pairs + "}").encode(),
        "one-string": with_part("argv", '["' + "\U0001f600" * (most // 4) + '"]'),
        "floats": with_part("argv", "[" + "1.5," * 999_000 + "1]"),
        "many-rows": with_part("rows", f"[{many}]"),
        "too-large": b" " * (reader.MAXIMUM_PROFILE_BYTES + 1),
    }  # fmt: skip
    files = {label: (content, parquet, 476) for label, content in texts.items()}
    tables = {
        "million": (parquet_of(planted.table_of(planted.sample_rows()[:1000]).take(
            pa.array([i % 400 for i in range(1_000_000)]))), 1_000_000),
        "rows": (billion(), 10**9),
        "word": (parquet_of(large(1, flags="x" * 135_000_000)), 1),
        "words": (parquet_of(large(1_000_000, flags="x" * 200)), 1_000_000),
        "long-words": (parquet_of(large(1000, flags="x" * 100_000)), 1000),
        "plain": (parquet_of(large(600_000), use_dictionary=False), 600_000),
    }  # fmt: skip
    for label, (content, rows) in tables.items():
        changed = data | {
            "samples": {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "rows": rows}
        }
        files[label] = (json.dumps(changed).encode(), content, rows)
    paths = []
    for label, (json_bytes, content, _) in files.items():
        (folder / label).mkdir()
        (folder / label / "run.json").write_bytes(json_bytes)
        (folder / label / name).write_bytes(content)
        paths.append(folder / label / "run.json")
    return paths


SOUND = ("one-string", "many-rows", "million", "plain")


@pytest.mark.proof
def test_memory_and_time_are_bounded(
    tmp_path: Path,
    small: tuple[bytes, bytes, str],
    record_property: Callable[[str, object], None],
) -> None:
    """With 512 MiB above what Python and Arrow take for a small profile, each ends as it should."""
    paths = heavy_files(tmp_path, small)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "run.json").write_bytes(small[0])
    (tmp_path / "small" / small[2]).write_bytes(small[1])
    arguments = [str(tmp_path / "small/run.json"), str(HEADROOM_BYTES), *map(str, paths)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = dict(line.split("|", 1) for line in done.stdout.splitlines())
    assert set(outcomes) == {path.parent.name for path in paths}
    for label, outcome in outcomes.items():
        seconds, _, what = outcome.partition("|")
        assert float(seconds) < 20, label
        assert (what == "read") == (label in SOUND), (label, what[:300])
    longest_s = max(float(outcome.partition("|")[0]) for outcome in outcomes.values())
    record_property(
        "counted",
        f"{len(outcomes)} files of the worst kind within {HEADROOM_BYTES >> 20} MiB, {longest_s:.1f} s at most",
    )
