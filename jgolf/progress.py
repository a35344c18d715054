"""Progress of long work, on stderr, as a bar on a terminal and a line now and then elsewhere; where tables go."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal; shorter work says nothing."""
FILE_COLUMNS = 120
"""Width of tables where there is no terminal."""


def table_console() -> Console:
    """A console for tables on stdout: as wide as the terminal, or as FILE_COLUMNS."""
    return Console(width=None if sys.stdout.isatty() else FILE_COLUMNS)


def counted(count: int, noun: str) -> str:
    """The count and its noun, in the plural where there is not one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def progress_bar(description: str) -> Callable[[Iterable, int], Iterator]:
    """A function that passes on an iterable of so many steps and shows how far it has come."""
    console = Console(stderr=True)

    def show(steps: Iterable, total: int) -> Iterator:
        if console.is_terminal:
            yield from track(steps, description, total, console=console, transient=True)
            return
        lines = _Lines(description, total)
        for done, step in enumerate(steps, start=1):
            yield step
            lines.update(done)

    return show


@contextlib.contextmanager
def byte_progress(description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that moves on by a number of bytes, and shows how far that has come."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines, done = _Lines(description, total_bytes, " bytes"), 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            lines.update(done)

        yield advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield lambda num_bytes: progress.advance(task, num_bytes)


@contextlib.contextmanager
def activity(description: str) -> Iterator[Callable[[str], None]]:
    """Shows that something whose length nobody knows goes on; yields a function that says how far it is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(description, file=sys.stderr, flush=True)
        yield lambda text: print(f"{description}: {text}", file=sys.stderr, flush=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(description), total=None)
        yield lambda text: progress.update(task, description=escape(f"{description}: {text}"))


class _Lines:
    """Says how far something has come, every LINE_EVERY_S."""

    def __init__(self, description: str, total: int, unit: str = ""):
        self._description, self._total, self._unit = description, total, unit
        self._began_s = self._said_s = time.monotonic()

    def update(self, done: int) -> None:
        """To be told of every step, `done` ≥ 1 of them so far."""
        now_s = time.monotonic()
        if now_s - self._said_s < LINE_EVERY_S or not done:
            return
        self._said_s = now_s
        minutes, seconds = divmod(round((now_s - self._began_s) * max(0, self._total - done) / done), 60)
        print(
            f"{self._description}: {done:,} of {self._total:,}{self._unit} "
            f"({100 * done / max(self._total, 1):.0f} %), {minutes}:{seconds:02} left",
            file=sys.stderr,
            flush=True,
        )
