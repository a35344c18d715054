"""What a run wrote, read back: ours from its folder, the PyTorch reference's from its log."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgolf import files
from jgolf.errors import JgolfError
from jgolf.run_dir import ARTIFACT_FILE, CONFIG_FILE, LOG_FILE, METRICS_FILE, RESULT_FILE, RESULTS_FILE

TRAIN_COLUMNS = ("step", "train_time_s", "train_loss", "grad_norm", "learning_rate_multiplier")
VALIDATION_COLUMNS = ("step", "train_time_s", "val_loss", "val_bpb")
_NUMBER = r"(-?(?:[\d.]+(?:e[+-]?\d+)?|nan|inf))"
_TRAIN_LINE = re.compile(rf"step:(\d+)/\d+ train_loss:{_NUMBER} train_time:{_NUMBER}ms")
_VALIDATION_LINE = re.compile(rf"step:(\d+)/\d+ val_loss:{_NUMBER} val_bpb:{_NUMBER}(?: train_time:{_NUMBER}ms)?")
_EVENT_LINE = re.compile(r"(swa:start|late_qat:enabled) step:(\d+)")
_FINAL_LINE = re.compile(rf"(final_\w+) val_loss:{_NUMBER} val_bpb:{_NUMBER}")
_SIZE_LINE = re.compile(r"Total submission size[^:]*: (\d+) bytes")
_EVENT_NAMES = {"swa:start": "SWA", "late_qat:enabled": "late QAT"}

Columns = dict[str, np.ndarray]


class FinalScore(NamedTuple):
    """One figure for a whole run."""

    val_loss: float
    """Mean negative log likelihood in nats a token."""
    val_bpb: float


@dataclass(frozen=True)
class History:
    """What is known about a run.

    Attributes:
      name: how to call it: its folder's or its log's name.
      path: where it was read from.
      train: TRAIN_COLUMNS → float64 [logged steps]; NaN where the run did not say.
      validation: VALIDATION_COLUMNS → float64 [validations].
      events: "SWA", "late QAT" → the first step that had it.
      scores: "validation" (the last during training), "standard" and "sliding" (of the artifact) → score.
      config: every setting by name; empty for a log.
      result: the artifact's result.json; empty where there is none.
      artifact: the artifact's file, None where there is none.
      group: of a sweep's run, the settings that the sweep varies, without the seed.
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

    @property
    def legend(self) -> str:
        """What a plot calls the run; runs that differ in their seeds alone are called alike."""
        return self.group or self.name


def read_histories(path: str | Path) -> list[History]:
    """Reads a run as `read_history` does, or every run of a sweep's folder.

    Raises:
      JgolfError: see `read_history`; or the sweep has no result yet.
    """
    folder = Path(path)
    if not (folder / RESULTS_FILE).is_file() or (folder / CONFIG_FILE).exists():
        return [read_history(path)]
    rows = _read_json(folder / RESULTS_FILE).get("runs")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "folder" in row for row in rows):
        raise JgolfError(f"{folder / RESULTS_FILE}: not the results of a sweep")
    return [read_history(folder / row["folder"]) for row in rows]


def read_history(path: str | Path) -> History:
    """Reads a run's folder, its metrics.jsonl, or a log with the challenge's lines (a PyTorch run's, too).

    Raises:
      JgolfError: there is nothing at `path`, or nothing of a run in it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    text = _read_text(path)
    return _history(path.stem, path, *(_parse_metrics(text) if path.suffix == ".jsonl" else _parse_log(text)))


def _read_folder(folder: Path) -> History:
    if not (folder / CONFIG_FILE).is_file():
        raise JgolfError(
            f"{folder}: not a run directory: there is no {CONFIG_FILE} in it; expected a run's folder or a training log"
        )
    if (folder / METRICS_FILE).is_file():
        found = _parse_metrics(_read_text(folder / METRICS_FILE))
    elif (folder / LOG_FILE).is_file():
        found = _parse_log(_read_text(folder / LOG_FILE))
    else:
        raise JgolfError(f"{folder}: there is neither {METRICS_FILE} nor {LOG_FILE} in it: the run has not begun")
    settings = _read_json(folder / CONFIG_FILE)
    row, name, group = _sweep_row(folder), folder.resolve().name, ""
    if row:
        result = _result_of_row(row)
        *varied, seed = (f"{key.rpartition('.')[2].replace('_', ' ')} {row[key]}" for key in [*_varied(row), "seed"])
        group = ", ".join(varied) or folder.resolve().parents[1].name
        name = f"{group}, {seed}"
    else:
        files.settle((folder / RESULT_FILE).parent)
        result = _read_result(folder) if (folder / RESULT_FILE).is_file() else {}
    artifact = folder / ARTIFACT_FILE
    return _history(
        name,
        folder,
        *found,
        config=_flat(settings),
        result=result,
        artifact=artifact if artifact.is_file() else None,
        group=group,
    )


def _sweep_row(folder: Path) -> dict[str, Any]:
    """What a sweep says of the run in this folder; empty where the folder is no sweep's."""
    folder = folder.resolve()
    try:
        rows = json.loads((folder.parents[1] / RESULTS_FILE).read_text())["runs"]
        return next((row for row in rows if row["folder"] == f"{folder.parent.name}/{folder.name}"), {})
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _varied(row: dict[str, Any]) -> list[str]:
    """The settings that the sweep varies; they stand before the seed."""
    names = list(row)
    return names[: names.index("seed")]


def _result_of_row(row: dict[str, Any]) -> dict[str, Any]:
    """The scores of a sweep's run under the names that an export gives them."""
    averages = [name.removesuffix("_val_bpb") for name in row if name.endswith("_val_bpb")]
    average = next((name for name in averages if name not in ("raw", "quantized")), "raw")
    found = {
        "average": average,
        "pre_quantization_val_bpb": row.get(f"{average}_val_bpb"),
        "val_loss": row.get("quantized_val_loss"),
        "val_bpb": row.get("quantized_val_bpb"),
        "artifact_bytes": row.get("artifact_bytes"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _history(
    name: str,
    path: Path,
    train: Columns,
    validation: Columns,
    events: dict[str, int],
    scores: dict[str, FinalScore] | None = None,
    result: dict[str, Any] | None = None,
    **rest: Any,
) -> History:
    if not len(train["step"]) and not len(validation["step"]):
        raise JgolfError(
            f"{path}: holds no line of a training run: expected lines such as "
            "'step:500/20000 train_loss:2.3955 train_time:42105ms step_avg:84.21ms', or a metrics.jsonl"
        )
    result, scores = result or {}, dict(scores or {})
    for kind, prefix in (("standard", ""), ("sliding", "sliding_")):
        if f"{prefix}val_loss" in result and f"{prefix}val_bpb" in result:
            scores[kind] = FinalScore(result[f"{prefix}val_loss"], result[f"{prefix}val_bpb"])
    if len(validation["step"]):
        scores["validation"] = FinalScore(float(validation["val_loss"][-1]), float(validation["val_bpb"][-1]))
    return History(name, path, train, validation, events, scores, result=result, **rest)


def _parse_metrics(text: str) -> tuple[Columns, Columns, dict[str, int]]:
    train, validation, events = [], [], {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that is being written, or was when the run was killed
        if not isinstance(row, dict) or not math.isfinite(_number(row.get("step"))):
            continue  # not ours
        (validation if "val_loss" in row else train).append(row)
        if row.get("late_qat"):
            events.setdefault("late QAT", row["step"])
        if row.get("swa_count"):
            events.setdefault("SWA", row["step"])
    return _columns(train, TRAIN_COLUMNS), _columns(validation, VALIDATION_COLUMNS), events


def _parse_log(text: str) -> tuple[Columns, Columns, dict[str, int], dict[str, FinalScore], dict[str, Any]]:
    train, validation, events, scores, result = [], [], {}, {}, {}
    for line in text.splitlines():
        if match := _TRAIN_LINE.search(line):
            step, loss, milliseconds = map(float, match.groups())
            train.append({"step": step, "train_loss": loss, "train_time_s": milliseconds / 1000})
        elif match := _VALIDATION_LINE.search(line):
            step, loss, bpb, milliseconds = (float(part or "nan") for part in match.groups())
            row = {"step": step, "val_loss": loss, "val_bpb": bpb, "train_time_s": milliseconds / 1000}
            validation.append(row)
        elif match := _EVENT_LINE.search(line):
            events.setdefault(_EVENT_NAMES[match[1]], int(match[2]))
        elif match := _FINAL_LINE.search(line):  # the line with more digits follows and wins
            kind = "sliding" if "sliding" in match[1] else "standard"
            scores[kind] = FinalScore(float(match[2]), float(match[3]))
        elif match := _SIZE_LINE.search(line):
            result["total_bytes"] = int(match[1])
    return _columns(train, TRAIN_COLUMNS), _columns(validation, VALIDATION_COLUMNS), events, scores, result


def _columns(rows: Iterable[dict[str, Any]], names: tuple[str, ...]) -> Columns:
    """Rows in the order of their steps; a step that a resumed run repeated counts once, the last time."""
    by_step = {row["step"]: row for row in rows}
    ordered = [by_step[step] for step in sorted(by_step)]
    return {name: np.array([_number(row.get(name)) for row in ordered], np.float64) for name in names}


def _number(value: Any) -> float:
    """The value, or NaN where it is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names, whatever version of jgolf wrote the settings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _read_result(folder: Path) -> dict[str, Any]:
    result = _read_json(folder / RESULT_FILE)
    for name, value in result.items():
        if name.endswith(("val_loss", "val_bpb", "bytes", "tokens")) and not math.isfinite(_number(value)):
            raise JgolfError(
                f"{folder / RESULT_FILE}: {name} is {value!r}, expected a number; export the run again: "
                f"python export.py {folder}"
            )
    return result


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise JgolfError(
            f"{path}: cannot be read: {error.strerror or error}; expected a run's folder or a training log"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(path))
    except ValueError as error:
        raise JgolfError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise JgolfError(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return found
