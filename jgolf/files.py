"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
