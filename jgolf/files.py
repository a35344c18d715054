"""Writing files so that a reader never sees half of one, and JSON that every reader takes."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jgolf.errors import JgolfError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Yields a binary file that becomes `path` when the block ends without an error.

    The bytes go to a temporary name in the same folder, reach the disk, and are then renamed;
    whatever was at `path` before stays there until that moment, and for good after an error.

    Raises:
      JgolfError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON; null stands for NaN and infinity, which JSON does not have."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
