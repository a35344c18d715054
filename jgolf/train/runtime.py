"""JAX's distributed runtime where a connection breaks: it prints a stack trace of its own and aborts the process.

It does so in a thread of its own and cannot be told not to. While the processes of a run are joined, what it
prints is therefore held back, and its abort is put off, so that there is time to say in a sentence what happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

_OF_RUNTIME = re.compile(rb"[IWEF]\d{4} [^]]*(\bcoordination_(service|client)|\] WatchTasksAsync failed)")
_ITS_DETAILS = re.compile(rb"Additional GRPC error information|:[A-Z_]+:|=== Source Location Trace|external/|\s*$")
"""Lines that may follow."""
_FATAL = re.compile(rb"F\d{4} .*JAX distributed service")
_STDERR = 2
_DRAIN_S = 2.0


class RuntimeOutput:
    """Standard error, below Python, without what JAX's distributed runtime says about lost connections."""

    def __init__(self):
        """Passes everything on; see `held_back`."""
        self.on_fatal: Callable[[], None] = lambda: None
        """Called, in a thread of its own, when the runtime is about to abort this process."""
        self._real = _STDERR
        self._has_spoken = threading.Event()

    def tell(self, text: str) -> None:
        """Prints a line, whatever is held back."""
        with contextlib.suppress(OSError):
            os.write(self._real, f"{text}\n".encode(errors="backslashreplace"))

    def wait_for_last_words(self, timeout_s: float) -> None:
        """Until the runtime has begun to say something that is held back, or so many seconds are over."""
        self._has_spoken.wait(timeout_s)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[RuntimeOutput]:
        """Holds it back while the block runs; all else that is printed passes, line by line."""
        sys.stderr.flush()
        self._real = os.dup(_STDERR)
        reader, writer = os.pipe()
        os.dup2(writer, _STDERR)
        os.close(writer)
        thread = threading.Thread(target=self._pass_on, args=(reader,), name="stderr", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            sys.stderr.flush()
            real, self._real = self._real, _STDERR
            os.dup2(real, _STDERR)  # the last writer of the pipe is gone, unless a child process has it
            thread.join(_DRAIN_S)
            os.close(real)

    def _pass_on(self, reader: int) -> None:
        is_fatal = of_runtime = False
        with open(reader, "rb") as lines:
            for line in lines:
                if not is_fatal and _FATAL.match(line):
                    is_fatal = True  # what follows is its stack trace
                    threading.Thread(target=self.on_fatal, daemon=True).start()
                of_runtime = bool(_OF_RUNTIME.match(line) or (of_runtime and _ITS_DETAILS.match(line)))
                if of_runtime:
                    self._has_spoken.set()
                if not is_fatal and not of_runtime:
                    with contextlib.suppress(OSError):
                        os.write(self._real, line)


@contextlib.contextmanager
def delayed_abort() -> Iterator[None]:
    """While the block runs, a thread that aborts this process does so some seconds later.

    The C function `sleep` is the handler of SIGABRT meanwhile: the thread sleeps for as many seconds as the
    signal's number, 6, before it goes on to abort.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    before = libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
