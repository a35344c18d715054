"""A sweep's folder: its results, and what is still to be trained."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jgolf import config as configs
from jgolf import files
from jgolf.config import Config
from jgolf.data.fingerprint import data_fingerprint
from jgolf.errors import JgolfError
from jgolf.history import sweep_rows
from jgolf.reading import read_json
from jgolf.run_dir import CONFIG_FILE, METRICS_FILE, RESULTS_FILE
from jgolf.sweep.ablation import WITHOUT, worths
from jgolf.sweep.grid import SweepRun
from jgolf.sweep.results import RunResult, summarize

CSV_FILE = "results.csv"


class SweepFolder:
    """A sweep's folder: the results that are there, and the runs that have none yet.

    Attributes:
      path: the folder.
      runs: the whole sweep, in order.
      results: those that are there, in the order of `runs`.
      seconds: that earlier starts of the sweep took.
      new: a folder, within this one, for each run that had no result when this was read.
    """

    def __init__(self, path: Path, runs: Sequence[SweepRun]):
        """Reads what is there.

        Raises:
          JgolfError: the results cannot be read, or some are of runs that are not in `runs`.
        """
        self.path = path
        self.runs = runs
        files.settle(path)
        self.results, self.seconds = _read_results(path, runs) if (path / RESULTS_FILE).exists() else ([], 0.0)
        taken = {result.folder for result in self.results}
        done = {result.run.config for result in self.results}
        free = (name for name in (f"runs/{number:03d}" for number in itertools.count()) if name not in taken)
        self.new = {next(free): run for run in runs if run.config not in done}

    def make_ready(self) -> None:
        """Checks that new runs can be compared with the results, and removes what is left of runs without one.

        Raises:
          JgolfError: the results are of other data than the settings name now.
        """
        now = {data: data_fingerprint(data) for data in {result.run.config.data for result in self.results}}
        for result in self.results:
            data = result.run.config.data
            if result.data != now[data]:
                raise JgolfError(
                    f"{self.path / result.folder}: trained on other tokens than {data.dir} holds now, so further runs "
                    "would not compare; bring those back, or choose another --out"
                )
        kept = {self.path / result.folder for result in self.results}
        for path in (self.path / "runs").glob("[0-9]*"):
            ours = path.is_dir() and {file.name for file in path.iterdir()} <= {CONFIG_FILE, METRICS_FILE}
            if ours and path.name.isdigit() and path not in kept:
                shutil.rmtree(path)

    def keep(self, result: RunResult, sweep: Mapping[str, Any]) -> None:
        """Adds a result and writes all, as CSV and, after `sweep`, which says what was asked for, as JSON."""
        results = sorted([*self.results, result], key=lambda one: self.runs.index(one.run))
        content = {
            **sweep,
            "runs": [result.row() for result in results],
            "summaries": [dataclasses.asdict(summary) for summary in summarize(results)],
        }
        if WITHOUT in result.run.setting:
            content["worths"] = [dataclasses.asdict(worth) for worth in worths(results)]
        with files.all_or_nothing(self.path, "results") as new:
            files.write_text(new / CSV_FILE, _csv(content["runs"]))
            files.write_text(new / RESULTS_FILE, files.json_text(content, indent=1) + "\n")
        self.results = results


def _read_results(folder: Path, runs: Sequence[SweepRun]) -> tuple[list[RunResult], float]:
    """The results of `runs` that the folder holds, and the seconds that they took."""
    path = folder / RESULTS_FILE
    try:
        content = read_json(path)
        rows = {configs.read_json(folder / row["folder"] / CONFIG_FILE): row for row in sweep_rows(content, path)}
        results = [RunResult.from_row(run, rows[run.config]) for run in runs if run.config in rows]
        seconds = float(content["seconds"])
    except KeyError as error:
        raise _unusable(path, f"{error!s:.200} is missing") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise _unusable(path, f"{error!s:.200}") from None
    wanted = [run.config for run in runs]
    for config, row in rows.items():
        if config not in wanted:
            raise JgolfError(
                f"{folder / row['folder']}: its result would be lost: these options ask for no such run (it has "
                f"{_nearest_difference(config, wanted)}); give the options that made it, or more, or another --out"
            )
    return results, seconds


def _unusable(path: Path, reason: str) -> JgolfError:
    return JgolfError(
        f"{path}: not the results of a sweep, or damaged: {reason}; choose another --out, or remove the folder"
    )


def _nearest_difference(config: Config, others: Sequence[Config]) -> str:
    """The settings in which a config differs from the one of `others` that is most like it."""
    own = configs.leaves(config).items()
    differences = [[item for item in own if item not in configs.leaves(other).items()] for other in others]
    return ", ".join(f"{name} {value}" for name, value in min(differences, key=len)[:3])


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return files.csv_text(names, ([row.get(name) for name in names] for row in rows))
