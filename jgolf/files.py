"""Writing files so that a reader never sees half of one, nor half of several; JSON and CSV that every reader takes."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import numbers
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jgolf.errors import JgolfError
from jgolf.reading import read_json

_STAGING = ".replacing-"
_JOURNAL = "complete.json"
"""In a folder of files that replace others: names what goes. Once it is there, the replacement will be finished."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Yields a binary file that becomes `path` when the block ends without an error.

    The bytes go to a temporary name in the same folder, reach the disk, and are then renamed;
    whatever was at `path` before stays there until that moment, and for good after an error.

    Raises:
      JgolfError: the disk is full, the folder cannot be written to, or `path` is a device, say, and no file.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise JgolfError(f"{path}: not a file, so none can be put in its place: choose another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(temporary, "wb")  # noqa: SIM115 – closed below, on both ways out
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):  # that what is left cannot be written either is no news
                file.close()
            raise
        file.close()
        os.replace(temporary, path)
    except OSError as error:
        raise writing_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # renamed away, or never made
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, all or nothing."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path`, all or nothing."""
    write_bytes(path, text.encode())


def add_line(path: str | Path, value: Any, anew: bool = False) -> None:
    """Adds `value` as a line of JSON, in UTF-8, to what the file holds, or begins it `anew`, all or nothing."""
    path = Path(path)
    before = path.read_bytes() if path.is_file() and not anew else b""
    write_bytes(path, before + json_text(value, ascii_only=False).encode() + b"\n")


def json_text(value: Any, indent: int | None = None, ascii_only: bool = True) -> str:
    """`value` as JSON; null stands for NaN and infinity, which JSON does not have."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False, ensure_ascii=ascii_only)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of values below their heads as CSV, lines ended by \\n.

    Numbers are as they are, −0.5 too. Other text that a spreadsheet would run as a formula, which can send what the
    table holds elsewhere, has an apostrophe before it. What is no UTF-8, as names of files may be, has question marks.
    """
    text = "".join(",".join(map(_cell, row)) + "\n" for row in (heads, *rows))
    return text.encode(errors="replace").decode()


def _cell(value: Any) -> str:
    """Quoted where it has to be; `csv` leaves a carriage return as it is, which ends a row for many readers."""
    text = "" if value is None else str(value)
    is_number = isinstance(value, numbers.Number) or _NUMBER.fullmatch(text)
    text = f"'{text}" if text.startswith(_FORMULA_STARTS) and not is_number else text
    return '"{}"'.format(text.replace('"', '""')) if re.search(r'[",\r\n]', text) else text


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new folder that becomes `path` when the block ends without an error.

    Until then it has a temporary name beside `path`, which may be an empty folder, but hold nothing.

    Raises:
      JgolfError: the disk is full, `path` holds something, or the folder around it cannot be written to.
    """
    path = Path(path)
    target = path.resolve()  # an empty folder may be linked to
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise writing_error(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, target)
    except OSError as error:
        raise writing_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- several files ---------------------------------------------------------------------------


@contextlib.contextmanager
def all_or_nothing(folder: str | Path, what: str, gone: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a folder to make and fill with files that then replace those in `folder`, all of them or none.

    When the block ends without an error, a journal that lists the files is written; from then on they count.
    They are renamed one after another, and where the process is killed meanwhile, `settle` does the rest.

    Args:
      folder: where the files go; it is made where it is missing.
      what: names the set: two processes that replace different sets in one folder do not meet.
      gone: names in `folder` that are removed, unless they are replaced.

    Raises:
      JgolfError: the folder cannot be written to; unless the journal is there, nothing was changed in it.
    """
    folder = Path(folder)
    settle(folder)
    staging = folder / f"{_STAGING}{what}"
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed before all was there
    try:
        yield staging
        try:
            names = sorted(path.name for path in staging.iterdir())
            journal = {"files": names, "gone": sorted(set(gone) - set(names))}
            write_text(staging / _JOURNAL, json.dumps(journal))
            _finish(folder, staging, journal)
        except OSError as error:
            raise writing_error(folder, error) from error
    finally:
        if not (staging / _JOURNAL).exists():
            shutil.rmtree(staging, ignore_errors=True)


def settle(folder: str | Path) -> bool:
    """Does the rest of what `all_or_nothing` had begun in `folder` when it was killed; whether there was any.

    Raises:
      JgolfError: it cannot be done.
    """
    pending = sorted(Path(folder).glob(f"{_STAGING}*/{_JOURNAL}"))
    for path in pending:
        try:
            _finish(Path(folder), path.parent, _read_journal(path))
        except FileNotFoundError:
            continue  # another process was quicker
        except OSError as error:
            raise JgolfError(
                f"{folder}: some of its files were being replaced when that was interrupted, and the rest, in "
                f"{path.parent.name}, cannot be moved into place: {error.strerror or error}; make the folder writable, "
                "then run the command again"
            ) from error
    return bool(pending)


def _read_journal(path: Path) -> dict[str, list[str]]:
    try:
        journal = read_json(path)
        if all(_is_plain_name(name) for names in (journal["files"], journal["gone"]) for name in names):
            return journal
    except (ValueError, KeyError, TypeError):
        pass
    raise JgolfError(
        f"{path}: not a list of files to be moved into {path.parents[1]}, or damaged: remove {path.parent}, and make "
        "these files again"
    )


def _is_plain_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and "\0" not in name


def _finish(folder: Path, staging: Path, journal: dict[str, list[str]]) -> None:
    """Renames what a journal lists. Each part may have been done before, or be done by another process now."""
    for name in journal["gone"]:
        (folder / name).unlink(missing_ok=True)
    for name in journal["files"]:
        with contextlib.suppress(FileNotFoundError):
            os.replace(staging / name, folder / name)
    (staging / _JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)


# --- errors ----------------------------------------------------------------------------------


def writing_error(path: str | Path, error: OSError) -> JgolfError:
    """The error to raise when `path` could not be written, with the room that is left."""
    path = Path(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((parent for parent in path.parents if parent.exists()), Path("."))
        free_mb = shutil.disk_usage(folder).free / 1e6
        return JgolfError(
            f"{path}: the disk is full ({free_mb:.1f} MB left); nothing was changed there: "
            "make room or choose another folder, then run the command again"
        )
    file = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        return JgolfError(f"{path}: cannot be written: {file} is a file, expected a folder")
    return JgolfError(f"{path}: cannot be written: {error.strerror or error}")
