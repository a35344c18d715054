"""Which settings may change when a run goes on, and which would make it another run."""

from __future__ import annotations

from typing import Any, NamedTuple

from jgolf.config.settings import Config
from jgolf.config.store import leaves
from jgolf.reading import excerpt

MAY_CHANGE: tuple[str, ...] = (
    "name",
    "model.kernels",  # other forms of the same operations, where the run goes on on other devices
    "model.repeatable",
    "train.steps",
    "train.time_cap_s",
    "train.warmdown_steps",
    "train.warmdown_fraction",
    "train.learning_rate_floor",
    "train.validate_every",
    "train.log_every",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_s",
    "train.keep_checkpoints",
    "average.export",
    "quantize.",  # of the export, and of the end of training
    "data.",  # a folder may be moved; that it holds the same data is checked by what is in it
    "evaluate.",
)
"""Settings, or with a last dot all of a group, that may change: of where a run ends, and of what is done beside it.

Any other has shaped every step that is behind the run, so its checkpoints are of the old value only.
"""


class Change(NamedTuple):
    """A setting that is not what it was."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: was {_shown(self.was)}, now {_shown(self.now)}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return excerpt(value)


def changes(was: Config, now: Config) -> tuple[list[Change], list[Change]]:
    """The settings that differ: those that make another run, and those that may change."""
    before, after = leaves(was), leaves(now)
    differing = [Change(name, before[name], after[name]) for name in after if before[name] != after[name]]
    allowed = [change for change in differing if _may_change(change.name)]
    return [change for change in differing if change not in allowed], allowed


def _may_change(name: str) -> bool:
    return any(name.startswith(allowed) if allowed.endswith(".") else name == allowed for allowed in MAY_CHANGE)
