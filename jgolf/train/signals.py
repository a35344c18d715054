"""Being asked to stop: SIGTERM from a scheduler, SIGHUP when a terminal is gone, Ctrl-C from a person."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from jgolf.errors import EXIT_INTERRUPTED, EXIT_OK
from jgolf.run_dir import CONFIG_FILE

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
SHOW_CURSOR = "\x1b[?25h"


def how_to_resume(run_dir: Path) -> str:
    """The command with which a run goes on."""
    return f"jgolf train --resume --run-dir {shlex.quote(str(run_dir))}"


def _say(text: str) -> None:
    """Prints a line, unless no one reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def _end(text: str, exit_code: int) -> NoReturn:
    """Ends the process at once with some last words; the cursor, which a display leaves hidden, comes back."""
    with contextlib.suppress(OSError, ValueError):
        out = sys.__stdout__.fileno()
        os.set_blocking(out, False)  # a reader that hangs must not keep us
        os.write(out, f"{SHOW_CURSOR if os.isatty(out) else ''}{text}\n".encode())
    os._exit(exit_code)


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt while the block runs, as Ctrl-C does.

    SIGHUP is left alone where it is ignored, which is what `nohup` asks for.
    """
    stops = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        stops.append(signal.SIGHUP)
    previous = {number: signal.signal(number, signal.default_int_handler) for number in stops}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopSignals:
    """Notes SIGTERM, SIGHUP and SIGINT while the block runs, so that training can end in order.

    SIGHUP is left alone where it is ignored, which is what `nohup` asks for. A thread reads the signals, so
    that they are noticed while the main thread is inside a long call. Before training has begun there is
    nothing to save, and the process ends at once, be it in a compilation. A second Ctrl-C always ends it at
    once.
    """

    def __init__(self, run_dir: Path):
        self.received: signal.Signals | None = None
        self.training_began = False
        self._run_dir = run_dir
        self._on_stop: Callable[[], None] | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)

    def on_stop(self, act: Callable[[], None]) -> None:
        """Has `act` called, in a thread of its own, when the first signal comes."""
        self._on_stop = act
        if self.received is not None:
            act()

    def _listen(self) -> None:
        while number := self._reader.recv(1):
            if number[0] not in SIGNALS:
                continue
            if self.received is not None and number[0] == signal.SIGINT:
                how = how_to_resume(self._run_dir)
                _end(f"ended at once; the newest checkpoint is where it goes on: {how}", EXIT_INTERRUPTED)
            is_first, self.received = self.received is None, signal.Signals(number[0])
            if not self.training_began:
                self._leave()
            if self._on_stop is not None:
                self._on_stop()
            if is_first:
                _say("asked to stop: what is trained is saved; Ctrl-C ends at once")

    def _leave(self) -> None:
        started = (self._run_dir / CONFIG_FILE).exists()
        how = how_to_resume(self._run_dir) if started else "start it again with the same command"
        code = EXIT_INTERRUPTED if self.received == signal.SIGINT else EXIT_OK
        _end(f"asked to stop before a step was trained: there is nothing new to save; to go on: {how}", code)

    def __enter__(self) -> StopSignals:
        self._thread.start()
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, lambda number, frame: None)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._writer.close()
        self._thread.join()
        self._reader.close()
