"""A seeded mutator of a profile's files, for readers to survive.

Half of the changed Parquet files come with a profile that names them by their true hash: otherwise the hash
would keep everything out.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from profiles.reader import load_profile, load_samples


def read_all(path: Path) -> None:
    """Both readers, as a consumer uses them.

    Raises:
        ProfileError: what every bad file must end in.
    """
    profile = load_profile(path, allow=("measured", "modelled", "simulated", "imported"))
    load_samples(profile, path.parent)


ODD_VALUES = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e308", "1" * 5000, "9" * 25, "-1", "0", "1e-400",
    "null", "true", '"1"', "[]", "{}", "[[[[[]]]]]", '"\\u0000"', '"\\ud800"', '"\\u001b[2J"',
    '"' + "x" * 100_000 + '"', "[" * 500 + "]" * 500, "1.5", '"measured"', '"../../etc/passwd"',
)  # fmt: skip
TOKENS = (b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\x00", b"\xff", b"NaN", b"1e999", b"-")


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """One to three changes, of the text or of its meaning."""
    if rng.random() < 0.5:
        return _mutate_tree(content, rng)
    return _mutate_bytes(content, rng, TOKENS)


def mutate_parquet(content: bytes, rng: random.Random) -> bytes:
    """One to three changes: anywhere, or in the footer, where the claims are."""
    if rng.random() < 0.4:
        length = int.from_bytes(content[-8:-4], "little")
        start = len(content) - 8 - length
        footer = _mutate_bytes(content[start:-8], rng, (b"\x00", b"\xff", b"\x7f", b"\x15"))
        size = len(footer) if rng.random() < 0.8 else rng.getrandbits(32)
        return content[:start] + footer + size.to_bytes(4, "little") + content[-4:]
    return _mutate_bytes(content, rng, (b"\x00", b"\xff", b"PAR1", b"\x80\x80\x80\x80\x08"))


def with_samples(text: bytes, name: str, parquet: bytes) -> bytes:
    """The profile, speaking of these samples: name and hash."""
    data = json.loads(text)
    data["samples"] |= {"file": name, "sha256": hashlib.sha256(parquet).hexdigest()}
    return json.dumps(data).encode()


def _mutate_bytes(content: bytes, rng: random.Random, tokens: tuple[bytes, ...]) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 8, 100, 5000))
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at:] = b""
            case 2:
                data[at : at + length] = b""
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = rng.choice(tokens)
            case 5:
                data[at : at + length] = rng.randbytes(min(length, 100))
            case _:
                other = rng.randrange(len(data) + 1)
                data[at : at + length] = data[other : other + length]
    return bytes(data)


def _mutate_tree(content: bytes, rng: random.Random) -> bytes:
    """A place in the tree gets an odd value, another name, a twin, or goes."""
    data = json.loads(content)
    node: Any = data
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not (isinstance(node[key], dict | list) and node[key]) or rng.random() < 0.1:
            break
        node = node[key]
    mark = "@odd@"
    match rng.randrange(5):
        case 0 if isinstance(node, dict):
            del node[key]
        case 1 if isinstance(node, dict):
            node[key.replace("_s", "_ms") + ("" if "_s" in key else "_us")] = node.pop(key)
        case 2 if isinstance(node, dict):
            return json.dumps(data).replace("{", '{"operator": 1, "operator": 2, ', 1).encode()
        case _:
            node[key] = mark
    return json.dumps(data).replace(f'"{mark}"', rng.choice(ODD_VALUES)).encode()


def mutate_part(content: bytes, part: str, rng: random.Random) -> bytes:
    """One to three places within a part of a profile get odd values, other names, twins, or go."""
    data = json.loads(content)
    inner = json.dumps(data[part]).encode()
    for _ in range(rng.randint(1, 3)):
        try:
            inner = _mutate_tree(inner, rng)
        except (ValueError, LookupError, RecursionError):  # what it has become is odd enough
            break
    return json.dumps(data | {part: "@part@"}).replace('"@part@"', inner.decode()).encode()


ODD_NUMBERS = (0.0, -1.0, 1e-300, 1e300, 1e17, math.nan, 5e-324, -1e9, 1.5, 1e9, 2.0**63)


def mutate_trace(content: bytes, rng: random.Random) -> bytes:
    """A power trace with odd readings, odd labels, or odd bytes; mostly still a table of its columns."""
    kind = rng.random()
    if kind < 0.2:
        return mutate_parquet(content, rng)
    table = pq.read_table(pa.BufferReader(content))
    if kind < 0.5:
        about = _mutate_tree(table.schema.metadata[b"power_trace"], rng)
        return _parquet(table.replace_schema_metadata({"power_trace": about}))
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([name for name in table.column_names if name != "error"])
        index = table.schema.get_field_index(name)
        values = table.column(name).to_pylist()
        begin = rng.randrange(len(values))
        end = min(len(values), begin + rng.choice((1, 3, 100, 5000, 100_000)))
        odd, change = rng.choice(ODD_NUMBERS), rng.randrange(5)
        field = table.schema.field(index)
        none = None if field.nullable else values[-1]
        for i in range(begin, end):
            if values[i] is not None:
                values[i] = (odd, values[i] * odd, values[i] + odd, values[begin], none)[change]
        try:
            column = pa.array(values, field.type)
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            continue
        table = table.set_column(index, field, column)
    return _parquet(table)


def with_trace(text: bytes, name: str, trace: bytes, rows: int | None = None) -> bytes:
    """The profile, speaking of this power trace: name, hash and rows."""
    data = json.loads(text)
    data["energy"]["traces"]["int4-g128"] |= {
        "file": name,
        "sha256": hashlib.sha256(trace).hexdigest(),
    }
    if rows is not None:
        data["energy"]["traces"]["int4-g128"]["rows"] = rows
    return json.dumps(data).encode()


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
