"""Progress of long work, on stderr, as a bar on a terminal and a line now and then elsewhere; where tables go."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jgolf.watch import Tell

LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal; shorter work says nothing."""
FILE_COLUMNS = 120
"""Width of tables where there is no terminal."""


def plain_console(stderr: bool = False, width: int | None = None) -> Console:
    """A console that shows text as it is: names of files, runs and settings may look like rich's markup or emoji.

    What is to stand out is a `rich.text.Text`, or has its style as an argument.
    """
    return Console(stderr=stderr, width=width, markup=False, emoji=False)


def table_console() -> Console:
    """A console for tables on stdout: as wide as the terminal, or as FILE_COLUMNS."""
    return plain_console(width=None if sys.stdout.isatty() else FILE_COLUMNS)


def text_column(text: str) -> TextColumn:
    """A column of a bar with this text, which is shown as it is; it may name the task's fields in braces."""
    return TextColumn(text, markup=False)


def progress_of(console: Console, *columns: ProgressColumn, disable: bool = False) -> Progress:
    """A bar with a task's description and these columns, which leaves nothing behind."""
    return Progress(text_column("{task.description}"), *columns, console=console, transient=True, disable=disable)


def counted(count: int, noun: str) -> str:
    """The count and its noun, in the plural where there is not one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def progress_bar(description: str) -> Callable[[Iterable, int], Iterator]:
    """A function that passes on an iterable of so many steps and shows how far it has come."""
    console = plain_console(stderr=True)

    def show(steps: Iterable, total: int) -> Iterator:
        if console.is_terminal:
            with progress_of(console, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as progress:
                yield from progress.track(steps, total, description=description)
            return
        lines = _Lines(description, total)
        for done, step in enumerate(steps, start=1):
            yield step
            lines.update(done)

    return show


@contextlib.contextmanager
def byte_progress(description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that moves on by a number of bytes, and shows how far that has come."""
    console = plain_console(stderr=True)
    if not console.is_terminal:
        lines, done = _Lines(description, total_bytes, " bytes"), 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            lines.update(done)

        yield advance
        return
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with progress_of(console, *columns) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield lambda num_bytes: progress.advance(task, num_bytes)


@contextlib.contextmanager
def counting(description: str, total: int, unit: str) -> Iterator[Tell]:
    """Yields a function that is told how much of a total has been done, and how it goes, and shows both."""
    console = plain_console(stderr=True)
    if not console.is_terminal:
        yield _Lines(description, total, f" {unit}").update
        return
    with progress_of(console, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done, how: progress.update(task, completed=done, description=f"{description}: {how}")


@contextlib.contextmanager
def activity(description: str) -> Iterator[Callable[[str], None]]:
    """Shows that something whose length nobody knows goes on; yields a function that says how far it is."""
    console = plain_console(stderr=True)
    if not console.is_terminal:
        print(description, file=sys.stderr, flush=True)
        yield lambda text: print(f"{description}: {text}", file=sys.stderr, flush=True)
        return
    with progress_of(console, SpinnerColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task(description, total=None)
        yield lambda text: progress.update(task, description=f"{description}: {text}")


class _Lines:
    """Says how far something has come, every LINE_EVERY_S."""

    def __init__(self, description: str, total: int, unit: str = ""):
        self._description, self._total, self._unit = description, total, unit
        self._began_s = self._said_s = time.monotonic()

    def update(self, done: int, how: str = "") -> None:
        """To be told of every step, `done` ≥ 1 of them so far, and how it goes."""
        now_s = time.monotonic()
        if now_s - self._said_s < LINE_EVERY_S or not done:
            return
        self._said_s = now_s
        minutes, seconds = divmod(round((now_s - self._began_s) * max(0, self._total - done) / done), 60)
        print(
            f"{self._description}: {done:,} of {self._total:,}{self._unit} "
            f"({100 * done / max(self._total, 1):.0f} %), {minutes}:{seconds:02} left{how and f', {how}'}",
            file=sys.stderr,
            flush=True,
        )
