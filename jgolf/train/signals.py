"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignals:
    """Notes SIGTERM and SIGINT while the block runs, so that the loop can end in order.

    A second Ctrl-C interrupts at once, as ever.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
