"""A sweep's folder: its results so far, and what of a sweep a folder already holds."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jgolf import config as configs
from jgolf import files
from jgolf.config import Config
from jgolf.errors import JgolfError
from jgolf.run_dir import CONFIG_FILE
from jgolf.sweep.grid import SweepRun
from jgolf.sweep.results import RunResult, summarize

RESULTS_FILE = "results.json"
CSV_FILE = "results.csv"


class Finished(NamedTuple):
    """What an earlier start of a sweep left behind."""

    results: list[RunResult]
    seconds: float
    """That it took."""


def read_finished(folder: Path, runs: Sequence[SweepRun]) -> Finished:
    """The results of `runs` that the folder holds; nothing where no sweep was.

    Raises:
      JgolfError: the results cannot be read, or some are of runs that are not in `runs`.
    """
    path = folder / RESULTS_FILE
    if not path.exists():
        return Finished([], 0.0)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {configs.read_json(folder / row["folder"] / CONFIG_FILE): row for row in content["runs"]}
        found = Finished(
            [RunResult.from_row(run, rows[run.config]) for run in runs if run.config in rows], float(content["seconds"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise JgolfError(
            f"{path}: not the results of a sweep, or damaged: {type(error).__name__}: {error}; choose another --out, "
            "or remove the folder"
        ) from None
    wanted = [run.config for run in runs]
    for config, row in rows.items():
        if config not in wanted:
            raise JgolfError(
                f"{folder / row['folder']}: its result would be lost: these options ask for no such run (it has "
                f"{_nearest_difference(config, wanted)}); give the options that made it, or more, or another --out"
            )
    return found


def _nearest_difference(config: Config, others: Sequence[Config]) -> str:
    """The settings in which a config differs from the one of `others` that is most like it."""
    own = configs.leaves(config).items()
    differences = [[item for item in own if item not in configs.leaves(other).items()] for other in others]
    return ", ".join(f"{name} {value}" for name, value in min(differences, key=len)[:3])


def new_folders(runs: Sequence[SweepRun], finished: Sequence[RunResult]) -> dict[str, SweepRun]:
    """A folder, within the sweep's, for each run without a result."""
    taken = {result.folder for result in finished}
    done = {result.run.config for result in finished}
    free = (name for name in (f"runs/{number:03d}" for number in itertools.count()) if name not in taken)
    return {next(free): run for run in runs if run.config not in done}


def write_results(folder: Path, sweep: dict[str, Any], results: Sequence[RunResult]) -> None:
    """Writes the results as JSON, under `sweep`, which says what was asked for, and as CSV."""
    content = {
        **sweep,
        "runs": [result.row() for result in results],
        "summaries": [dataclasses.asdict(summary) for summary in summarize(results)],
    }
    files.write_text(folder / RESULTS_FILE, json.dumps(_without_nan(content), indent=1) + "\n")
    files.write_text(folder / CSV_FILE, _csv([result.row() for result in results]))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
