"""What the annotation of a setting says of it beside its type: which values make sense, and what else to know.

learning_rate: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.04
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, get_type_hints


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a setting may be by itself; `expected` is how a message calls what is allowed."""

    allowed: Callable[[Any], bool]
    expected: str


POSITIVE = Bound(lambda value: value >= 1, "at least 1")
NOT_NEGATIVE = Bound(lambda value: 0 <= value < math.inf, "0 or more")
OFF_OR_MORE = Bound(lambda value: 0 <= value < math.inf, "0 (off) or more")
DECAY = Bound(lambda value: 0 <= value < 1, "at least 0 and below 1")
DECAY_OR_OFF = Bound(DECAY.allowed, "0 (off), or below 1")
MULTIPLIER = Bound(lambda value: 0 <= value <= 1, "a learning-rate multiplier from 0 (off) to 1")
QUANTILE = Bound(lambda value: 0 < value <= 1, "a quantile above 0, up to 1")
QUANTILES = Bound(
    lambda values: len(values) > 0 and all(map(QUANTILE.allowed, values)), "one or more quantiles above 0, up to 1"
)


class Mark(Enum):
    """What else there is to know of a setting."""

    TRACED = "the training step takes it as a value: runs that differ in it alone are one program"
    TRACED_ABOVE_0 = "the same, but 0 leaves a part of the state out, so 0 and another value are two programs"
    AFTER_TRAINING = "training never looks at it"
    LAYERS = "the number of a layer, or several, from 0; −1 is the last layer, −2 the one before it"


def bounds(kind: type) -> dict[str, Bound]:
    """Dotted name → bound of every setting in a dataclass of settings that has one."""
    return {name: note for name, notes in _notes(kind).items() for note in notes if isinstance(note, Bound)}


def marked(kind: type, *marks: Mark) -> tuple[str, ...]:
    """Dotted names of the settings in a dataclass of settings that have one of the marks, in order."""
    return tuple(name for name, notes in _notes(kind).items() if any(mark in notes for mark in marks))


@cache
def _notes(kind: type, prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """Dotted name → what its annotation says beside the type."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found |= _notes(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = getattr(hint, "__metadata__", ())
    return found
