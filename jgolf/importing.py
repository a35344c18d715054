"""Ctrl-C while modules are imported."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """In the block, Ctrl-C ends the process at once, with a line.

    An exception could come up anywhere in the import of any module, be shown with a stack trace, be lost in a callback
    of the import system, or make the start of an extension, such as JAX's, fail or crash. Where Ctrl-C is ignored, or
    somebody else's, and in other threads than the main one, which no signal interrupts, nothing changes.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, _end)
    except ValueError:  # another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)  # EXIT_INTERRUPTED of jgolf.errors, whose own imports take a while
