"""Files that may have been made by anyone: opened with care, and JSON that means one thing only.

A profile travels: it is copied, cut short, edited by hand, or made to do harm. Reading one must end
in a profile or in one sentence, within bounded time and memory. So before anything is believed

    the file     is a regular file, within its size, inside its folder
    the bytes    are UTF-8, and hold no more objects, lists and values than memory is planned for
    the JSON     has no NaN, no infinity, no duplicate key, no endless nesting, no endless number
    the strings  hold nothing that a terminal would obey

    from profiles.files import parse_json, read_file
    data = parse_json(path, read_file(path, limit=24 << 20))
"""

from __future__ import annotations

import json
import math
import stat
import zlib
from pathlib import Path
from typing import Any

# A profile of 1.3 MB has 7,400 objects and lists and 47,000 commas. Python makes 60 bytes to 300 of
# each, so these bounds hold what parsing takes to some 400 MB, whatever the bytes say.
MAXIMUM_CONTAINERS = 200_000
MAXIMUM_COMMAS = 1_000_000
MAXIMUM_DEPTH = 32
MAXIMUM_INTEGER = 2**63 - 1
MAXIMUM_ITEMS = 10_000  # of any list or object but the two long ones
LONG_LISTS = ("rows", "comparisons")
GZIP = b"\x1f\x8b"
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
SENTENCE_LIMIT = 399


class ProfileError(ValueError):
    """A profile that cannot be used; the message is one sentence for the user."""

    def __init__(self, sentence: str) -> None:
        text = printable(sentence, SENTENCE_LIMIT)
        super().__init__(text if text.endswith(".") else f"{text}.")


def printable(text: str, limit: int | None = None) -> str:
    """The text on one line, with whatever a terminal might obey spelled out, cut to `limit`."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1].rstrip(" .") + "…"
    if text.isprintable():
        return text
    spelled = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(" " if c.isspace() else s for c, s in zip(text, spelled, strict=True))


def read_file(path: Path, limit: int, folder: Path | None = None) -> bytes:
    """All bytes of a regular file.

    Args:
        path: the file; a link to a file is one.
        limit: bytes; a longer file is refused unread.
        folder: where the file must lie once links are followed; None for anywhere.

    Raises:
        ProfileError: it is missing, unreadable, too large, outside `folder`, or a folder, pipe or
            device.
    """
    try:
        if folder is not None and path.resolve().parent != folder.resolve():
            raise ProfileError(f"{path} leads out of the folder of its profile, so it is not read.")
        found = path.stat()  # before opening: to open a pipe or a device may block, or do things
        if not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
            raise ProfileError(f"{path} cannot be read: it is {what}, but a file was expected.")
        if found.st_size > limit:
            raise ProfileError(f"{path} is {found.st_size} bytes long; over {limit} is not read.")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise ProfileError(f"there is no file {path}.") from None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RuntimeError) as error:  # a null byte in the name; links in a circle
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"{path} cannot be read: {error}.") from None
    if len(content) > limit:
        raise ProfileError(f"{path} grew beyond {limit} bytes while it was read.")
    return content


def unpack_gzip(path: Path, content: bytes, limit: int) -> bytes:
    """What a gzip file holds, one member and nothing after it.

    Args:
        path: whose content it is, for messages.
        content: the packed bytes.
        limit: bytes; more are never unpacked.

    Raises:
        ProfileError: it is no such file, or holds more.
    """
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        text = stream.decompress(content, limit + 1)
    except zlib.error:
        raise ProfileError(f"{path} is not a sound gzip file.") from None
    if len(text) > limit:
        raise ProfileError(f"{path} unpacks to more than {limit} bytes, which are not read.")
    if not stream.eof or stream.unused_data:
        raise ProfileError(f"{path} is not a sound gzip file: it is cut short, or goes on.")
    return text


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in `content`, its strings free of control characters.

    Raises:
        ProfileError: it is no such thing; the sentence names the file and what was found.
    """
    try:
        data = json.loads(
            _text(content),
            object_pairs_hook=_unique_keys,
            parse_float=_finite,
            parse_int=_whole,
            parse_constant=_no_constant,
        )
        if not isinstance(data, dict):
            raise ProfileError(
                f"{path} holds {_KINDS.get(type(data), 'a number')}, but a profile is an object."
            )
        _check_and_clean(data)
    except ProfileError:
        raise
    except RecursionError:
        raise ProfileError(f"{path} is not valid JSON for a profile: {_TOO_DEEP}.") from None
    except ValueError as error:
        raise ProfileError(f"{path} is not valid JSON for a profile: {error}.") from None
    return data


_KINDS = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
_TOO_DEEP = f"it is nested more than {MAXIMUM_DEPTH} deep"


def _text(content: bytes) -> str:
    if not content.strip():
        raise ValueError("it is empty")
    if content.startswith(GZIP):
        raise ValueError("it is compressed with gzip; unpack it first")
    if content.startswith(BYTE_ORDER_MARKS):
        raise ValueError("it begins with a byte order mark; save it as UTF-8 without one")
    for limit, what, marks in (
        (MAXIMUM_CONTAINERS, "objects and lists", b"{["),
        (MAXIMUM_COMMAS, "values", b","),
    ):
        if sum(content.count(mark) for mark in marks) > limit:
            raise ValueError(f"it holds more than {limit} {what}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {content[error.start]:#04x} at {error.start} is not UTF-8"
        ) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {printable(twice, 60)!r} stands twice in one object")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {printable(text, 40)} is beyond what a float holds")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAXIMUM_INTEGER:
        raise ValueError(f"the number {printable(text, 40)} is beyond 64 bits")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which JSON does not have")


def _check_and_clean(data: dict[str, Any]) -> None:
    """Depth and lengths within bounds; strings are replaced by their printable form, in place."""
    level: list[tuple[dict[str, Any] | list[Any], bool]] = [(data, False)]
    for _ in range(MAXIMUM_DEPTH):
        below: list[tuple[dict[str, Any] | list[Any], bool]] = []
        for container, may_be_long in level:
            if len(container) > MAXIMUM_ITEMS and not may_be_long:
                raise ValueError(f"a list or an object has more than {MAXIMUM_ITEMS} members")
            if isinstance(container, dict) and not all(key.isprintable() for key in container):
                raise ValueError("a key holds a control character")
            pairs = container.items() if isinstance(container, dict) else enumerate(container)
            for key, value in pairs:
                if isinstance(value, str):
                    if not value.isprintable():
                        container[key] = printable(value)  # type: ignore[index]
                elif isinstance(value, dict | list):
                    below.append((value, container is data and key in LONG_LISTS))
        level = below
        if not level:
            return
    raise ValueError(_TOO_DEEP)
