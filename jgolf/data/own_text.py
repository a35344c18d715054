"""Documents from text as people have it: text files, JSON lines and Parquet, or folders of such."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from jgolf.data.documents import decompressed, format_suffix, parse_document, read_documents, read_lines
from jgolf.errors import DataError, MissingExtraError
from jgolf.reading import BYTE_ORDER_MARK, WIDE_MARKS

PARQUET = ".parquet"
TEXT_COLUMN = "text"
_JSON_LINES = (".jsonl", ".ndjson")
_COMPRESSED_TEXTS = (*_JSON_LINES, ".json", ".txt", ".md")  # that are read, compressed, from a folder
_LOOKED_AT_BYTES = 1 << 16  # of a file in a folder, to see whether it is text
_ROWS_AT_ONCE = 1024


def find_texts(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files that `paths` name, those of folders sorted by name, and what of these was left out as no text.

    What begins with a dot in a folder is passed over.

    Raises:
      DataError: there is no such file, or none at all.
    """
    found: list[Path] = []
    left_out: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path))
            for file in inside:
                (found if _looks_like_text(file) else left_out).append(file)
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    if not found:
        named = f"{', '.join(map(str, paths))}: no text there" if paths else "no text given"
        raise DataError(
            f"{named}: name text files, .jsonl or .parquet files, or folders of such (.zst and .gz are read too)"
        )
    return list(dict.fromkeys(found)), left_out


def check_outside(paths: Sequence[Path], out_dir: Path) -> None:
    """Raises DataError where `out_dir` lies in a folder of texts: what is written there would be read as text later."""
    for path in paths:
        if path.is_dir() and out_dir.resolve().is_relative_to(path.resolve()):
            raise DataError(f"--out {out_dir}: lies in {path}, of which all texts are read: choose a folder outside it")


def documents_of(path: Path, advance: Callable[[int], None] = lambda num_bytes: None) -> Iterator[Iterable[str]]:
    """The documents of a file, each as pieces that follow one another; `advance` is told of bytes read from disk.

    A text file is one document, an object of JSON lines and a row of Parquet one each.

    Raises:
      DataError: the file cannot be used.
      MissingExtraError: Parquet, and pyarrow is not installed.
    """
    if path.suffix == PARQUET:
        yield from ([text] for text in _parquet_rows(path, advance))
    elif _is_json_lines(path):
        yield from ([text] for text in read_documents([path], advance))
    else:
        yield _decoded(path, advance)


def cut(pieces: Iterable[str], most: int) -> Iterator[str]:
    """A text in parts of at most `most` characters, which together are the text.

    Each part but the last ends after the last blank line in its second half; where there is none after the last line
    break, else the last space, else at `most`.
    """
    rest = ""
    for piece in pieces:
        start, rest = 0, rest + piece
        while len(rest) - start > most:
            end = _end_of_part(rest, start, most)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _end_of_part(text: str, start: int, most: int) -> int:
    half, end = start + most // 2, start + most
    for mark in ("\n\n", "\n\r\n", "\n", " "):
        at = text.rfind(mark, half, end)
        if at >= 0:
            return at + len(mark)
    return end


# --- files -------------------------------------------------------------------------------------


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _looks_like_text(path: Path) -> bool:
    """Whether a file in a folder is to be read: text is UTF-8 without NUL."""
    if path.suffix in (PARQUET, ".zst", ".gz"):
        return path.suffix == PARQUET or format_suffix(path) in _COMPRESSED_TEXTS
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT_BYTES)
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except (OSError, UnicodeDecodeError):
        return False
    return b"\0" not in start


def _is_json_lines(path: Path) -> bool:
    """Whether a file holds an object a line: by its name, and a .json by its first line."""
    suffix = format_suffix(path)
    if suffix != ".json":
        return suffix in _JSON_LINES
    first = next(read_lines(path, lambda num_bytes: None), b"")
    try:
        return parse_document(first, path, 1) is not None
    except DataError:
        return False


def _decoded(path: Path, advance: Callable[[int], None]) -> Iterator[str]:
    """The text of a file in pieces, without a byte-order mark."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in decompressed(path, advance):
        content = chunk.removeprefix(BYTE_ORDER_MARK) if not before else chunk
        try:
            text = decoder.decode(content)
        except UnicodeDecodeError as error:
            raise _not_text(
                path, error, before + len(chunk) - len(error.object), chunk if not before else b""
            ) from None
        if "\0" in text:
            raise DataError(f"{path}: holds NUL characters, as no text does: turn it into plain text first")
        before += len(chunk)
        yield text
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_text(path, error, before - len(error.object), b"") from None


def _not_text(path: Path, error: UnicodeDecodeError, before: int, first: bytes) -> DataError:
    """The error for bytes that are no UTF-8; `before` ones are before those that could not be decoded."""
    wide = "; it begins as UTF-16 does" if first[:2] in WIDE_MARKS else ""
    return DataError(
        f"{path}: not UTF-8 text: byte 0x{error.object[error.start]:02x} at position {before + error.start}{wide}: "
        f"convert it, for instance with `iconv -f {'UTF-16' if wide else 'ISO-8859-1'} -t UTF-8`, or turn it into "
        "plain text if it is none"
    )


def _parquet_rows(path: Path, advance: Callable[[int], None]) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"{path}: reading Parquet") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema, num_rows = file.schema_arrow, max(file.metadata.num_rows, 1)
            kind = schema.field(TEXT_COLUMN).type if TEXT_COLUMN in schema.names else None
            if kind is None or not (types.is_string(kind) or types.is_large_string(kind)):
                found = ", ".join(f"{name} ({schema.field(name).type})" for name in schema.names[:20])
                raise DataError(f"{path}: expected a column {TEXT_COLUMN} of strings, found {found or 'no column'}")
            size = path.stat().st_size
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[TEXT_COLUMN]):
                yield from (text for text in batch.column(0).to_pylist() if text)
                advance(size * batch.num_rows // num_rows)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file, or damaged: {str(error).splitlines()[0]}") from None
