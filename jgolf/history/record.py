"""What is known about a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgolf.errors import JgolfError
from jgolf.reading import is_number

TRAIN_COLUMNS = ("step", "train_time_s", "train_loss", "grad_norm", "learning_rate_multiplier")
VALIDATION_COLUMNS = ("step", "train_time_s", "val_loss", "val_bpb", "original_bpb")
SCORE_KINDS = {
    "validation": "last validation",
    "pre_quantization": "before quantization",
    "pre_quantization_sliding": "before quantization, sliding window",
    "pre_quantization_adapted": "before quantization, test-time training",
    "standard": "quantized, rows",
    "sliding": "quantized, sliding window",
    "adapted": "quantized, test-time training",
}
"""Scores of a run in the order in which they are found, and what they are called."""

Columns = dict[str, np.ndarray]


class FinalScore(NamedTuple):
    """One figure for a whole run."""

    val_loss: float
    """Mean negative log likelihood in nats a token; NaN where the run told bits per byte alone."""
    val_bpb: float


@dataclass(frozen=True)
class History:
    """What is known about a run.

    Attributes:
      name: how to call it: its folder's or its log's name.
      path: where it was read from.
      train: TRAIN_COLUMNS → float64 [logged steps]; NaN where the run did not say.
      validation: VALIDATION_COLUMNS → float64 [validations].
      events: "SWA", "late QAT", "loop" → the first step that had it.
      scores: of SCORE_KINDS, those that it has: "validation" (the last during training), "pre_quantization" (of the
        weights that are exported), "standard", "sliding" and "adapted" (of the artifact) → score.
      config: every setting by name; empty for a log.
      result: the artifact's result.json, or what a log tells under these names; empty where there is none.
      artifact: the artifact's file, None where there is none.
      group: of a sweep's run, the settings that the sweep varies, without the seed.
      starts: for each time that the run was started, "date", "command", "commit" and "hardware", as far as known.
      samples: "prompt" and "text" of what its weights wrote, and the settings of the sampling.
    """

    name: str
    path: Path
    train: Columns
    validation: Columns
    events: dict[str, int]
    scores: dict[str, FinalScore]
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    artifact: Path | None = None
    group: str = ""
    starts: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def legend(self) -> str:
        """What a plot calls the run; runs that differ in their seeds alone are called alike."""
        return self.group or self.name


class Rows:
    """Rows of numbers in the order of their steps; a step that a resumed run repeated counts once, the last time."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names
        self._by_step: dict[float, tuple[float, ...]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """A row with a step; what it does not say, or says in no number, is NaN."""
        self._by_step[row["step"]] = tuple(number(row.get(name)) for name in self._names)

    def columns(self) -> Columns:
        ordered = [self._by_step[step] for step in sorted(self._by_step)]
        return dict(zip(self._names, np.array(ordered, np.float64).reshape(-1, len(self._names)).T, strict=True))


class Told(NamedTuple):
    """What a file tells of a run; see `History`."""

    train: Columns
    validation: Columns
    events: dict[str, int]
    scores: dict[str, FinalScore]
    result: dict[str, Any]


def number(value: Any) -> float:
    """The value, or NaN where it is no number."""
    return float(value) if is_number(value) else math.nan


def check_bpb(row: Mapping[str, Any], where: str) -> None:
    """Raises JgolfError for bits per byte that no text has; a run that diverged has none that are a number."""
    bpb = number(row.get("val_bpb"))
    if bpb <= 0:
        raise JgolfError(f"{where}: val_bpb is {bpb:g}, expected more than 0")
