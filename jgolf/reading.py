"""Reading what others wrote: lines, JSON and numbers, within bounds.

A reader believes nothing: what takes more memory than any file of ours, what a number cannot hold and what would
overflow a stack are refused with an `Unreadable`, whose words the caller puts behind the file and the line.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_LINES_BYTES = 1 << 27  # of a file of lines: 128 MiB are the metrics of half a million steps
MAX_LINE_BYTES = 1 << 24  # of one line, JSON or text
MAX_JSON_BYTES = 1 << 24  # of one JSON value; in memory it takes up to thirty times that
MAX_DEPTH = 64  # of lists and objects within one another
MAX_NUMBER_CHARS = 64
EXCERPT_CHARS = 80
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_READ_BYTES = 1 << 16


class Unreadable(ValueError):
    """Text that is not what it should be; says why, without naming the file."""


class Line(NamedTuple):
    """A line of a file."""

    number: int
    """From 1."""
    content: bytes
    """Without its line feed."""
    is_whole: bool
    """It ends in a line feed; otherwise it is the last, and may still be in writing."""


def excerpt(value: Any, length: int = EXCERPT_CHARS) -> str:
    """A value as Python writes it, for an error: never longer than `length` characters."""
    text = repr(value[:length]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def parse_json(content: str | bytes, allow_nan: bool = False) -> Any:
    """The value that JSON text of at most MAX_JSON_BYTES stands for; numbers in it are finite.

    Args:
      content: the text; a byte-order mark before it is passed over.
      allow_nan: also take NaN and Infinity, which are no JSON but what Python writes for losses that are no numbers.

    Raises:
      Unreadable: it is none, nested deeper than MAX_DEPTH, or holds a number that we cannot.
    """
    if len(content) > MAX_JSON_BYTES:
        raise Unreadable(f"{len(content):,} bytes are too many for one JSON value, expected at most {MAX_JSON_BYTES:,}")
    text = text_of(content) if isinstance(content, bytes) else content
    try:
        value = (_WITH_NAN if allow_nan else _STRICT).decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text.rstrip("\n") else f"column {error.colno}"
        raise Unreadable(f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}: {where}") from None
    except RecursionError:
        value = None
    else:
        if text.count("[") + text.count("{") <= MAX_DEPTH or not _is_deep(value):
            return value
    raise Unreadable(f"not JSON that we take: nested more than {MAX_DEPTH} deep")


def parse_number(text: str) -> float:
    """The number that `text` stands for, nan and inf among them.

    Raises:
      Unreadable: it is none, too long, or beyond what a float can be.
    """
    _check_length(text)
    try:
        value = float(text)
    except ValueError:
        raise Unreadable(f"{excerpt(text)} is no number") from None
    if math.isinf(value) and "inf" not in text.lower():
        raise Unreadable(f"the number {text} is too large")
    return value


def parse_integer(text: str) -> int:
    """The integer that decimal digits stand for; raises Unreadable where they are none, or too many."""
    _check_length(text)
    try:
        return int(text)
    except ValueError:
        raise Unreadable(f"{excerpt(text)} is no integer") from None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number, NaN among them; for Python, truths are numbers, too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def text_of(content: bytes) -> str:
    """UTF-8 text without a byte-order mark; raises Unreadable for anything else."""
    try:
        return content.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        wide = content[:2] in WIDE_MARKS
        hint = "; it begins as UTF-16 does: convert it to UTF-8" if wide else ""
        raise Unreadable(f"not UTF-8 text: byte 0x{content[error.start]:02x} at position {error.start}{hint}") from None


def read_json(path: str | Path, allow_nan: bool = False) -> Any:
    """The JSON value in a file; see `parse_json`.

    Raises:
      OSError: the file cannot be read.
      Unreadable: it holds no such value.
    """
    with open(path, "rb") as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1), allow_nan)


def read_lines(path: str | Path) -> Iterator[Line]:
    """The lines of a file.

    Raises:
      OSError: the file cannot be read.
      Unreadable: it has more than MAX_LINES_BYTES, or a line of more than MAX_LINE_BYTES, which is named.
    """
    with open(path, "rb") as file:
        yield from split_lines(_bounded(iter(lambda: file.read(_READ_BYTES), b"")))


def split_lines(chunks: Iterable[bytes]) -> Iterator[Line]:
    """The lines of a file that comes in chunks; at no time is more kept than a line and a chunk.

    Raises:
      Unreadable: a line has more than MAX_LINE_BYTES.
    """
    number, parts, size = 1, [], 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield Line(number, b"".join([*parts, _fitting(end, size, number)]), True)
            number, parts, size = number + 1, [], 0
        if rest:
            parts.append(_fitting(rest, size, number))
            size += len(rest)
    if parts:
        yield Line(number, b"".join(parts), False)


def _fitting(part: bytes, size: int, number: int) -> bytes:
    """`part` of a line of which `size` bytes are there."""
    if size + len(part) > MAX_LINE_BYTES:
        raise Unreadable(f"line {number} has more than {MAX_LINE_BYTES:,} bytes, the most that a line may have")
    return part


def _bounded(chunks: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_LINES_BYTES:
            raise Unreadable(f"more than {MAX_LINES_BYTES:,} bytes, the most that are read of such a file")
        yield chunk


def _check_length(text: str) -> None:
    if len(text) > MAX_NUMBER_CHARS:
        raise Unreadable(f"a number of {len(text):,} characters, {excerpt(text, 24)}, is too long")


def _is_deep(value: Any) -> bool:
    """Whether lists and objects in it are nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def _no_constant(name: str) -> float:
    raise Unreadable(f"not JSON: {name} is not a JSON number")


_STRICT = json.JSONDecoder(parse_float=parse_number, parse_int=parse_integer, parse_constant=_no_constant)
_WITH_NAN = json.JSONDecoder(parse_float=parse_number, parse_int=parse_integer)
