"""Standard output and error whose reader may go away."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

READER_GONE = (errno.EPIPE, errno.EIO)
"""Of a pipe such as `| head`, and of a terminal whose connection dropped."""


class _Unheard:
    """A text stream that falls silent when no one reads it any more, so that the work behind it goes on."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._falling_silent():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._falling_silent():
            self._stream.flush()

    @contextlib.contextmanager
    def _falling_silent(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
            _silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _silence(stream: IO[str]) -> None:
    """Sends a stream nowhere, below Python: its buffer may hold something still, and libraries print by themselves."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def outlives_its_readers() -> Iterator[None]:
    """In the block, what is printed is lost once no one reads it; the work goes on, and ends with its own exit code.

    Without this, `… | head -1` would end a training after a line. A stream that was closed from the start
    (`>&-`) is silent, too. Other errors, a full disk say, are raised where they happen.
    """
    before = sys.stdout, sys.stderr
    within = [_Unheard(stream or open(os.devnull, "w")) for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = within
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in within:
            try:
                stream.flush()
            except OSError:  # has been told, and must not be told again when Python ends
                _silence(stream)
