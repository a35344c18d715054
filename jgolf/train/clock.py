"""The clock of training time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Counts training time: not compilation, not validation. Goes on from where a resumed run was."""

    def __init__(self, elapsed_s: float = 0.0):
        self._elapsed_s = elapsed_s
        self._running_since: float | None = None

    def start(self) -> None:
        """Starts, or goes on, counting."""
        self._running_since = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Training time so far."""
        running_s = 0.0 if self._running_since is None else time.perf_counter() - self._running_since
        return self._elapsed_s + running_s

    def stop(self) -> None:
        """Stops counting."""
        self._elapsed_s, self._running_since = self.elapsed_s, None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time spent in the block."""
        was_running = self._running_since is not None
        self.stop()
        yield
        if was_running:
            self.start()
