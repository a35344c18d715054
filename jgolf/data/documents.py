"""Reading documents from text files, plain or compressed, a line at a time.

`NAME.jsonl`, `NAME.ndjson` and `NAME.json` hold a JSON object with a "text" a line; any other name holds
plain text with one document a line. Either may be compressed: `.zst` or `.gz` after that name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import zstandard

from jgolf.errors import DataError
from jgolf.reading import BYTE_ORDER_MARK, Unreadable, excerpt, parse_json, split_lines, text_of

_READ_BYTES = 1 << 16
_FED_BYTES = 1 << 12  # to a decompressor at once: zstd makes at most 2^15 times as much of them
_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_EXCERPT_CHARS = 60


def check_files(paths: Sequence[str | Path]) -> None:
    """Raises DataError for the first of `paths` that is not a file, or if there is none."""
    if not paths:
        raise DataError("no text files given: name at least one .jsonl or .txt file (.zst and .gz are read too)")
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")


def read_documents(
    paths: Iterable[str | Path], advance: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[str]:
    """The documents of several files in order; `advance` is told how many bytes were read from disk.

    Raises:
      DataError: a file or a line of one cannot be used.
    """
    for path in paths:
        for number, line in enumerate(read_lines(path, advance), start=1):
            document = parse_document(line, path, number)
            if document is not None:
                yield document


def read_lines(path: str | Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The lines of a file, decompressed, without their line feeds.

    Raises:
      DataError: the file cannot be read or decompressed, or a line is longer than any document should be.
    """
    try:
        for line in split_lines(decompressed(Path(path), advance)):
            yield line.content
    except Unreadable as error:
        raise DataError(f"{path}: {error}: split it into documents, one a line") from None


def parse_document(line: bytes, path: str | Path, number: int) -> str | None:
    """The text of line `number` of the file `path`; None for an empty line.

    Raises:
      DataError: the line is not UTF-8, or not a JSON object with a "text".
    """
    path = Path(path)
    line = line.removesuffix(b"\r")
    if number == 1:
        line = line.removeprefix(BYTE_ORDER_MARK)  # some editors begin every file with one
    if not line.strip():
        return None
    suffix = format_suffix(path)
    try:
        text = text_of(line)
        if suffix not in _JSON_SUFFIXES:
            return text
        document = parse_json(text)
    except Unreadable as error:
        hint = f'; a line of a {suffix} file is {{"text": …}}' if suffix in _JSON_SUFFIXES else ""
        plain = ", and plain text with one document a line goes into a .txt file" if hint else ""
        raise DataError(f"{path}:{number}: {error}{hint}{plain}") from None
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f'{path}:{number}: expected a JSON object with a string "text", found {excerpt(document, _EXCERPT_CHARS)}'
        )
    try:
        text.encode()  # JSON can spell half a surrogate pair, which is no text
    except UnicodeEncodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 text: {excerpt(text[error.start], 8)}") from None
    return text


def format_suffix(path: Path) -> str:
    """The ending that tells a file's format, before that of its compression."""
    return (path.with_suffix("") if path.suffix in (".zst", ".gz") else path).suffix


def decompressed(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The bytes of a file in chunks, decompressed where its name says that it is compressed.

    Raises:
      DataError: it cannot be read, or is damaged.
    """
    chunks = _chunks(path, advance)
    if path.suffix == ".zst":
        return _frames(path, chunks, lambda: zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj())
    if path.suffix == ".gz":
        return _frames(path, chunks, lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16))
    return chunks


def _chunks(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk
                advance(len(chunk))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _frames(path: Path, chunks: Iterable[bytes], make_decompressor: Callable) -> Iterator[bytes]:
    """Decompresses frames that follow one another; streaming readers pass a cut-off file over in silence."""
    decompressor = None
    try:
        for chunk in chunks:
            for first in range(0, len(chunk), _FED_BYTES):
                fed = chunk[first : first + _FED_BYTES]
                while fed:
                    decompressor = decompressor or make_decompressor()
                    yield from _pieces(decompressor.decompress(fed))
                    fed = b""
                    if decompressor.eof:
                        fed = decompressor.unused_data
                        decompressor = None
    except (zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: not a {path.suffix} file, or damaged: {error}") from None
    if decompressor is not None:
        raise DataError(f"{path}: the file is cut off in the middle of its compressed data; copy it again")


def _pieces(content: bytes) -> Iterator[bytes]:
    """`content` in pieces as small as those of a plain file, so that cutting it into lines takes no more memory."""
    return (content[first : first + _READ_BYTES] for first in range(0, len(content), _READ_BYTES))
