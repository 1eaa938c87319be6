"""What a Parquet file claims, checked before a library that believes it is let near.

A Parquet file of a few hundred bytes may promise a billion rows, a page that unpacks to two
gigabytes, or a string to be repeated a million times. Arrow would try. Here the footer is read
under limits, and then the header of every page, so that what decoding can take is known beforehand:

    "PAR1" | page header, page | page header, page | ... | footer | its length | "PAR1"

Page headers are Thrift structs in the compact protocol (https://github.com/apache/parquet-format,
Encodings.md and parquet.thrift); the few types that they use are decoded below.

    from profiles.pages import checked_parquet
    file = checked_parquet(path, content, rows=900)
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.files import ProfileError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAGIC = b"PAR1"
MAXIMUM_ROWS = 1_000_000  # a run of 18 formats and batches has 50,000
MAXIMUM_UNPACKED_BYTES = 128 * 1024 * 1024  # all pages together, as their headers claim
MAXIMUM_FOOTER_BYTES = 1024 * 1024
MAXIMUM_ROW_GROUPS = 100
MAXIMUM_PAGES = 20_000
# PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY: what the writer uses. Of the others
# DELTA_BYTE_ARRAY could make a gigabyte of strings from nothing.
ENCODINGS = (0, 2, 3, 8)
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
_HEADER_OF = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}  # page type to field of PageHeader
_ENCODING_OF = {DATA_PAGE: 2, DICTIONARY_PAGE: 2, DATA_PAGE_V2: 4}  # and to the encoding in that
_VALUES = 1  # the number of values, in each of the three


@dataclass(frozen=True)
class WordLimits:
    """How long the texts of a file may be.

    Attributes:
        name: what a message calls them, such as "words".
        longest_bytes: of any one.
        all_bytes: of all together, each as often as it occurs.
        too_long: what is said of one that is longer, a clause.
    """

    name: str
    longest_bytes: int
    all_bytes: int
    too_long: str


def checked_parquet(path: Path, content: bytes, rows: int | None = None) -> pq.ParquetFile:
    """The Parquet file in `content`, opened, when all that it claims is modest and agrees.

    Args:
        path: for the messages.
        content: the file.
        rows: how many rows there must be; None: as many as it claims.

    Raises:
        ProfileError: it is not Parquet, promises other or too many rows, or would unpack to more
            than fits.
    """
    import pyarrow.parquet as pq

    if len(content) < 12 or not content.startswith(MAGIC) or not content.endswith(MAGIC):
        raise ProfileError(f'{path} is not a Parquet file: it does not begin and end with "PAR1".')
    footer = int.from_bytes(content[-8:-4], "little")
    if footer > min(MAXIMUM_FOOTER_BYTES, len(content) - 12):
        raise ProfileError(
            f"{path} is not a sound Parquet file: it claims a footer of {footer} bytes."
        )
    try:
        file = pq.ParquetFile(
            io.BytesIO(content),
            thrift_string_size_limit=MAXIMUM_FOOTER_BYTES,
            thrift_container_size_limit=MAXIMUM_FOOTER_BYTES,
        )
        claims = file.metadata
    except Exception as error:  # Arrow raises a dozen types for a footer that it does not like
        raise ProfileError(f"{path} is not a sound Parquet file: {_first_line(error)}.") from None
    rows = claims.num_rows if rows is None else rows
    if claims.num_rows != rows:
        raise ProfileError(
            f"{path} claims {claims.num_rows} rows, but its profile speaks of {rows}."
        )
    if rows > MAXIMUM_ROWS:
        raise ProfileError(f"{path} claims {rows} rows, but over {MAXIMUM_ROWS} are not read.")
    try:
        _check_claims(content, claims)
    except (IndexError, ValueError) as error:
        what = "a page header is cut short" if isinstance(error, IndexError) else str(error)
        raise ProfileError(f"{path} is not a sound Parquet file: {what}.") from None
    return file


def unpacked(
    file: pq.ParquetFile,
    content: bytes,
    schema: pa.Schema,
    words: Sequence[str],
    limits: WordLimits,
) -> pa.Table:
    """The table of a file that has been checked, cast to its schema.

    Strings are read as numbers of a dictionary, and written out only when it is known how long they
    get: a file may repeat a long one a million times for nothing.

    Args:
        file: as `checked_parquet` gives it.
        content: the whole file.
        schema: to cast to; the file's own metadata are kept.
        words: columns of text.
        limits: how long they may be.

    Raises:
        ValueError: it cannot be decoded, or a text is too long; the message is a clause.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(
            pa.BufferReader(content), metadata=file.metadata, read_dictionary=list(words)
        )
        table = file.read(use_threads=False)
        table.validate(full=True)
        total = 0
        for chunk in (chunk for name in words for chunk in table.column(name).chunks):
            lengths = pc.binary_length(chunk.dictionary)
            if (pc.max(lengths).as_py() or 0) > limits.longest_bytes:
                raise ValueError(limits.too_long)
            total += pc.sum(pc.take(lengths, chunk.indices)).as_py() or 0
        if total > limits.all_bytes:
            raise ValueError(
                f"its {limits.name} take {total} bytes, and at most {limits.all_bytes}"
            )
        table = table.cast(schema.with_metadata(table.schema.metadata))
        table.validate(full=True)
    except Exception as error:  # Arrow raises a dozen types for what it cannot decode
        raise ValueError(_first_line(error)) from None
    return table


def _check_claims(content: bytes, claims: Any) -> None:
    """Rows agree everywhere, and all pages together unpack to no more than is planned for.

    Raises:
        ValueError: they do not; the message says which claim.
        IndexError: a page header ends beyond the file.
    """
    if claims.num_row_groups > MAXIMUM_ROW_GROUPS:
        raise ValueError(f"it claims {claims.num_row_groups} row groups")
    groups = [claims.row_group(index) for index in range(claims.num_row_groups)]
    counts = [group.num_rows for group in groups]
    if min(counts, default=0) < 0 or sum(counts) != claims.num_rows:
        raise ValueError("the rows of its row groups do not add up")
    unpacked = pages = 0
    for group in groups:
        for index in range(claims.num_columns):
            chunk = group.column(index)
            if chunk.num_values != group.num_rows:
                raise ValueError(
                    f"a column claims {chunk.num_values} values for {group.num_rows} rows"
                )
            chunk_unpacked, chunk_pages = _chunk(content, chunk, MAXIMUM_PAGES - pages)
            unpacked, pages = unpacked + chunk_unpacked, pages + chunk_pages
            if unpacked > MAXIMUM_UNPACKED_BYTES:
                raise ValueError(
                    f"its pages unpack to {unpacked} bytes or more, and at most "
                    f"{MAXIMUM_UNPACKED_BYTES} are taken"
                )


def _chunk(content: bytes, chunk: Any, most_pages: int) -> tuple[int, int]:
    """Bytes that the pages of a column chunk unpack to, as they claim, and how many pages it has."""
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < position:
        position = chunk.dictionary_page_offset
    end = position + chunk.total_compressed_size
    if not 0 < position <= end <= len(content):
        raise ValueError(f"a column claims bytes {position} to {end} of {len(content)}")
    unpacked = pages = 0
    while position < end:
        header, position = _struct(content, position)
        kind, size, packed = header.get(1), header.get(2), header.get(3)
        if kind not in _HEADER_OF or not isinstance(size, int) or not isinstance(packed, int):
            raise ValueError("a page header lacks its type or its sizes")
        if size < 0 or packed < 0 or packed > end - position:
            raise ValueError(f"a page claims {packed} bytes that unpack to {size}")
        details = header.get(_HEADER_OF[kind])
        details = details if isinstance(details, Mapping) else {}
        if details.get(_ENCODING_OF[kind]) not in ENCODINGS:
            raise ValueError("a page has an encoding that samples are not written in")
        values = details.get(_VALUES)
        if not isinstance(values, int) or not 0 <= values <= MAXIMUM_ROWS:
            raise ValueError(f"a page claims {values} values")
        unpacked, pages = unpacked + size, pages + 1
        if pages > most_pages:
            raise ValueError(f"it has more than {MAXIMUM_PAGES} pages")
        position += packed
    return unpacked, pages


def _struct(content: bytes, position: int, depth: int = 4) -> tuple[dict[int, Any], int]:
    """A Thrift compact struct: its fields by number, and the position after it.

    Raises:
        ValueError: a type that page headers do not use, or deeper nesting than theirs.
        IndexError: it ends beyond the content.
    """
    if depth == 0:
        raise ValueError("a page header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while (head := content[position]) != 0:
        position += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            raw, position = _varint(content, position)
            number = _zigzag(raw)
        value: Any
        match kind:
            case 1 | 2:  # true, false
                value = kind == 1
            case 4 | 5 | 6:  # i16, i32, i64
                raw, position = _varint(content, position)
                value = _zigzag(raw)
            case 8:  # a string, of which nothing is needed: minima and maxima
                length, position = _varint(content, position)
                value, position = None, position + length
            case 12:
                value, position = _struct(content, position, depth - 1)
            case _:
                raise ValueError(f"a page header has a field of type {kind}")
        fields[number] = value
    return fields, position + 1


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """An unsigned number of seven bits a byte, the lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a page header has a number that does not end")


def _zigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
