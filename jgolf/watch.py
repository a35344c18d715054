"""Work in steps that somebody may watch; below everything, so that whoever works need not know how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable, int], Iterable]
"""Passes on an iterable of that many steps, and may show how far it has come, or end it by an exception."""


Tell = Callable[[int, str], None]
"""Is told how much has been done, and in a few words how it goes."""


def unwatched(steps: Iterable, total: int) -> Iterable:
    """The Progress that shows nothing."""
    return steps


def untold(done: int, how: str) -> None:
    """The Tell that keeps it to itself."""


Observer = Callable[[str, int, Any], None]
"""Is given what happens inside: what it is, a number that says when, and the thing itself."""


def unobserved(what: str, number: int, value: Any) -> None:
    """The Observer that does not look."""
