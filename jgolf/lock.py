"""A folder in the hands of one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jgolf import files
from jgolf.errors import JgolfError

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


@contextlib.contextmanager
def locked(folder: str | Path, advice: str) -> Iterator[None]:
    """Has `folder`, made where it is missing, to itself while the block runs.

    The system frees a lock with the process that held it, however that ends. At the end of the block the file is
    removed, and the folder, too, if it was made here and nothing else came into it.

    Args:
      folder: what the processes that keep away from one another name.
      advice: what to do where another has it, for the error.

    Raises:
      JgolfError: another process has it, or it cannot be written to.
    """
    folder = Path(folder)
    made = not folder.exists()
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _opened(path)
    except OSError as error:
        raise files.writing_error(path, error) from error
    if file is None:
        raise JgolfError(f"{folder}: in use by {_holder(path)}; {advice}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            if made:
                folder.rmdir()
        os.close(file)


@contextlib.contextmanager
def in_turn(folder: str | Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same folder; does not keep away from `locked`.

    Raises:
      JgolfError: the folder cannot be opened.
    """
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise JgolfError(f"{folder}: cannot be read: {error.strerror or error}") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _opened(path: Path) -> int | None:
    """The file, locked; None where another process has locked it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(path, file):  # removed by the process that had it, since it was opened here
                os.close(file)
                continue
        except BlockingIOError:
            os.close(file)
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(file)
                raise
            print(f"note: {path.parent}: no lock: {error.strerror}; start no second process there", file=sys.stderr)
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}".encode())
        return file


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Who says to have it; it may not have come to saying so."""
    try:
        text = path.read_bytes()[:200].decode()
    except (OSError, UnicodeDecodeError):
        text = ""
    return text if text.startswith("process ") and text.isprintable() else "another process"
