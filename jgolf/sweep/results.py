"""What a sweep found: a row for each run, and means over the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from jgolf.history import FinalScore
from jgolf.progress import plain_console
from jgolf.sweep.grid import SweepRun

CONFIDENCE = 0.95
QUANTIZED = "quantized"
"""Which weights: the average that the run exports, in its storage forms."""


@dataclass(frozen=True)
class RunResult:
    """A run of a sweep after training.

    Attributes:
      run: its settings.
      train_loss: of the last step, in nats.
      scores: which weights ("raw", the average that the run exports, and QUANTIZED) → standard validation.
      artifact_bytes: of the quantized weights, packed with zstd; None where they could not be made.
      folder: where its settings and metrics are, within the sweep's folder.
      data: fingerprint of what it was trained and scored on.
    """

    run: SweepRun
    train_loss: float
    scores: dict[str, FinalScore]
    artifact_bytes: int | None
    folder: str
    data: str

    def row(self) -> dict[str, Any]:
        """One flat row for a table or a file."""
        scores = {
            f"{weights}_{name}": value
            for weights, score in self.scores.items()
            for name, value in score._asdict().items()
        }
        return {
            **self.run.setting,
            "seed": self.run.seed,
            "train_loss": self.train_loss,
            **scores,
            "artifact_bytes": self.artifact_bytes,
            "folder": self.folder,
            "data": self.data,
        }

    @classmethod
    def from_row(cls, run: SweepRun, row: Mapping[str, Any]) -> RunResult:
        """The inverse of `row` for a run whose settings are known; None stands for NaN."""

        def number(name: str) -> float:
            return math.nan if row[name] is None else float(row[name])

        scored = [name.removesuffix("_val_loss") for name in row if name.endswith("_val_loss")]
        scores = {name: FinalScore(number(f"{name}_val_loss"), number(f"{name}_val_bpb")) for name in scored}
        return cls(run, number("train_loss"), scores, row["artifact_bytes"], row["folder"], row["data"])


@dataclass(frozen=True)
class Summary:
    """The seeds of one setting, scored on one kind of weights.

    Attributes:
      setting: the varied settings' values.
      weights: "raw", the average's name, or QUANTIZED.
      runs: seeds that were trained.
      finite_runs: seeds whose loss is a number; the figures below are theirs. A run that diverged has none.
      val_loss, val_bpb: means; NaN without any.
      deviation: of val_loss over the seeds, with n − 1; NaN for fewer than two.
      interval: the 95 % confidence interval of the mean val_loss by Student's t; NaN for fewer than two.
      artifact_bytes: mean size of these weights' artifact; None for weights that are not packed.
    """

    setting: dict[str, Any]
    weights: str
    runs: int
    finite_runs: int
    val_loss: float
    val_bpb: float
    deviation: float
    interval: tuple[float, float]
    artifact_bytes: float | None


def summarize(results: Sequence[RunResult]) -> list[Summary]:
    """One summary for each setting and kind of weights, in the order of the runs."""
    settings: dict[tuple, list[RunResult]] = {}
    for result in results:
        settings.setdefault(tuple(result.run.setting.items()), []).append(result)
    return [
        _summary(weights, of)
        for of in settings.values()
        for weights in dict.fromkeys(weights for result in of for weights in result.scores)
    ]


def _summary(weights: str, results: Sequence[RunResult]) -> Summary:
    setting = results[0].run.setting
    scores = [result.scores[weights] for result in results if weights in result.scores]
    sizes = [result.artifact_bytes for result in results if result.artifact_bytes is not None]
    artifact_bytes = float(np.mean(sizes)) if weights == QUANTIZED and sizes else None
    finite = [score for score in scores if math.isfinite(score.val_loss)]
    losses = np.array([score.val_loss for score in finite])
    mean = float(losses.mean()) if finite else math.nan
    bpb = float(np.mean([score.val_bpb for score in finite])) if finite else math.nan
    deviation = float(losses.std(ddof=1)) if len(finite) > 1 else math.nan
    half = half_interval(losses)
    interval = (mean - half, mean + half)
    return Summary(setting, weights, len(results), len(finite), mean, bpb, deviation, interval, artifact_bytes)


def half_interval(values: np.ndarray) -> float:
    """Half the width of Student's confidence interval of the mean; NaN for fewer than two values."""
    from scipy import stats  # takes a second to import, which --help need not wait for

    if len(values) < 2:
        return math.nan
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * float(values.std(ddof=1)) / math.sqrt(len(values))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


INTERVAL = f"{CONFIDENCE:.0%} interval"
NUMBERS: dict[str, Callable[[Summary], str]] = {
    "runs": lambda one: str(one.runs) if one.runs == one.finite_runs else f"{one.finite_runs} of {one.runs}",
    "loss": lambda one: _number(one.val_loss),
    "deviation": lambda one: _number(one.deviation),
    INTERVAL: lambda one: "–" if math.isnan(one.interval[0]) else " – ".join(map(_number, one.interval)),
    "bits per byte": lambda one: _number(one.val_bpb),
    "bytes": lambda one: "" if one.artifact_bytes is None else f"{one.artifact_bytes:,.0f}",
}
"""Columns of the table of results, after those that say of what."""
MAY_BE_MISSING = ("deviation", INTERVAL, "loss")
"""Of these, what a narrow table leaves out, in this order."""


def results_table(summaries: Sequence[Summary], width: int) -> Table:
    """The summaries for a terminal of so many columns; a narrow one lacks some of MAY_BE_MISSING."""
    measure = plain_console(width=10_000).measure
    for count in range(len(MAY_BE_MISSING) + 1):
        table = _results_table(summaries, MAY_BE_MISSING[:count])
        if measure(table).maximum <= width:
            break
    return table


def _results_table(summaries: Sequence[Summary], left_out: Sequence[str]) -> Table:
    table = Table(title="Validation loss in nats a token, over the seeds", box=box.SIMPLE)
    names = list(summaries[0].setting) if summaries else []
    for name in names:
        table.add_column(_short(name, names).replace("_", "\n"), no_wrap=True)
    table.add_column("weights", no_wrap=True)
    numbers = {column: number for column, number in NUMBERS.items() if column not in left_out}
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for index, one in enumerate(summaries):
        last = index + 1 == len(summaries) or summaries[index + 1].setting != one.setting
        values = (number(one) for number in numbers.values())
        table.add_row(*map(str, one.setting.values()), one.weights, *values, end_section=last)
    return table


def _short(name: str, names: Sequence[str]) -> str:
    """The last part of a setting's name, where that says which it is."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) == 1 else name
