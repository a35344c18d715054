"""What the page's charts draw: the runs' figures, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jgolf import files
from jgolf.history import History
from jgolf.report.artifacts import Contents
from jgolf.report.curves import step_times_ms
from jgolf.report.leaderboard import leaderboard
from jgolf.report.plots import placed

MOST_POINTS = 4000
"""Of a curve; of longer ones, neighbouring points are averaged."""
DIGITS = 7
CHARTS = (
    ("val_bpb", "Bits per byte", "validation", "validation"),
    ("original_bpb", "Bits per byte of the original text", "validation", "validation"),
    ("train_loss", "Training loss", "nats a token", "train"),
    ("val_loss", "Validation loss", "nats a token", "validation"),
    ("learning_rate_multiplier", "Learning-rate multiplier", "", "train"),
    ("grad_norm", "Gradient norm", "before clipping", "train"),
    ("step_ms", "Step time", "milliseconds a step", "train"),
)
"""Column, title, unit, and whether it is of training steps, which are smoothed, or of validations, which are points."""


def chart_data(runs: Sequence[History], contents: Sequence[Contents]) -> dict[str, Any]:
    """Everything that the page's script needs; numbers have DIGITS digits, NaN is null."""
    shown = [_run(place, run) for place, run in placed(runs)]
    kinds = [
        {"id": name, "title": title, "unit": unit, "of": of}
        for name, title, unit, of in CHARTS
        if any(name in run[of] for run in shown)
    ]
    if all(_is_same(run["validation"]) for run in shown):
        kinds = [kind for kind in kinds if kind["id"] != "original_bpb"]
    return {
        "charts": kinds,
        "runs": shown,
        "levels": _levels(contents),
        "records": [[f"#{record.pull_request}", record.val_bpb] for record in leaderboard()],
    }


def _run(place: int, run: History) -> dict[str, Any]:
    steps, ms = step_times_ms(run)
    by_step = dict(zip(steps, ms, strict=True))
    train = {**run.train, "step_ms": np.array([by_step.get(step, math.nan) for step in run.train["step"]])}
    return {
        "name": run.name,
        "legend": run.legend,
        "place": place,
        "events": run.events,
        "train": _columns(_thinned(train)),
        "validation": _columns(run.validation),
    }


def _thinned(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At most MOST_POINTS rows: means of as many neighbouring ones as that takes, without the NaN among them."""
    count = len(columns["step"])
    width = -(-count // MOST_POINTS)
    if width <= 1:
        return columns
    starts = np.arange(0, count, width)
    found = {}
    for name, values in columns.items():
        finite = np.isfinite(values)
        sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
        counts = np.add.reduceat(finite.astype(np.int64), starts)
        found[name] = np.where(counts, sums / np.maximum(counts, 1), np.nan)
    return found


def _columns(columns: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """The columns that hold a number."""
    return {name: _numbers(values) for name, values in columns.items() if np.isfinite(values).any()}


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]


def _is_same(validation: dict[str, list[float | None]]) -> bool:
    """Whether the bytes of the original are those that the challenge counts, or nobody counted them."""
    return validation.get("original_bpb", validation.get("val_bpb")) == validation.get("val_bpb")


def _levels(contents: Sequence[Contents]) -> list[dict[str, Any]]:
    """For each integer form the share of its levels in percent, for each artifact that has it."""
    forms = sorted({form for _, _, one in contents for form in one.level_counts})
    return [
        {
            "id": f"levels_{form}",
            "title": f"{form.capitalize()} levels",
            "unit": "percent of the levels",
            "series": [
                {
                    **{"name": run.name, "legend": run.legend, "place": place},
                    "share": _numbers(100 * one.level_counts[form] / one.level_counts[form].sum()),
                }
                for place, run, one in contents
                if form in one.level_counts
            ],
        }
        for form in forms
    ]


def json_in_html(value: Any) -> str:
    """JSON that may stand within a script's element, whatever names are in it."""
    return files.json_text(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
