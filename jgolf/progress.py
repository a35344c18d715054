"""Progress of long work: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import track


def progress_bar(description: str) -> Callable[[Iterable, int], Iterator]:
    """A function that passes on an iterable of so many steps and shows how far it has come."""
    console = Console(stderr=True)

    def show(steps: Iterable, total: int) -> Iterator:
        return track(steps, description, total, console=console, transient=True, disable=not console.is_terminal)

    return show
