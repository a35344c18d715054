"""A run's folder, its metrics.jsonl, or a log, read back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jgolf import files
from jgolf.errors import JgolfError
from jgolf.history.log import LARGEST_STEP, lines_of, read_log
from jgolf.history.record import (
    SCORE_KINDS,
    TRAIN_COLUMNS,
    VALIDATION_COLUMNS,
    FinalScore,
    History,
    Rows,
    Told,
    check_bpb,
    number,
)
from jgolf.reading import Unreadable, excerpt, parse_json, read_json
from jgolf.run_dir import (
    ARTIFACT_FILE,
    CONFIG_FILE,
    LOG_FILE,
    METRICS_FILE,
    RESULT_FILE,
    RESULTS_FILE,
    SAMPLES_FILE,
    STARTS_FILE,
)

SCORES = ("val_loss", "val_bpb", "bytes", "tokens")
"""Endings of the names of figures that are numbers, of results."""
LONGEST_UNFINISHED = 1 << 16
"""Bytes of a line that may have been cut off in writing; ours are much shorter."""


def read_histories(path: str | Path) -> list[History]:
    """Reads a run as `read_history` does, or every run of a sweep's folder.

    Raises:
      JgolfError: see `read_history`; or the sweep has no result yet.
    """
    folder = Path(path)
    if not (folder / RESULTS_FILE).is_file() or (folder / CONFIG_FILE).exists():
        return [read_history(path)]
    rows = sweep_rows(_read_object(folder / RESULTS_FILE), folder / RESULTS_FILE)
    if not rows:
        raise JgolfError(f"{folder}: this sweep has no result yet")
    return [read_history(folder / row["folder"]) for row in rows]


def sweep_rows(results: Mapping[str, Any], source: str | Path) -> list[dict[str, Any]]:
    """The rows of a sweep's results, one a run.

    Raises:
      JgolfError: they are not as a sweep writes them; `source` is the file that it names.
    """
    rows = results.get("runs")
    if not isinstance(rows, list):
        raise JgolfError(f"{source}: not the results of a sweep: expected a list of runs, found {excerpt(rows)}")
    for place, row in enumerate(rows, start=1):
        problem = _problem_of_row(row)
        if problem:
            raise JgolfError(f"{source}: not the results of a sweep, or damaged: run {place}: {problem}")
    return rows


def _problem_of_row(row: Any) -> str:
    """What a sweep would not have written like that, "" for nothing."""
    if not isinstance(row, dict) or not re.fullmatch("runs/[0-9]{3,9}", str(row.get("folder"))):
        return f"expected an object with a folder such as runs/000, found {excerpt(row)}"
    if type(row.get("seed")) is not int:
        return f"seed is {excerpt(row.get('seed'))}, expected an integer"
    for name, value in row.items():
        if name.endswith(SCORES) and value is not None and not _is_score(name, value):
            return f"{name} is {excerpt(value)}, expected {_expected(name)}"
    return ""


def read_history(path: str | Path) -> History:
    """Reads a run's folder, its metrics.jsonl, or a log with the challenge's lines (a PyTorch run's, too).

    Raises:
      JgolfError: there is nothing at `path`, or nothing of a run in it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    return _history(path.stem, path, _read_metrics(path) if path.suffix == ".jsonl" else read_log(path))


def _read_folder(folder: Path) -> History:
    if not (folder / CONFIG_FILE).is_file():
        raise JgolfError(
            f"{folder}: not a run directory: there is no {CONFIG_FILE} in it; expected a run's folder or a training log"
        )
    if (folder / METRICS_FILE).is_file():
        told = _read_metrics(folder / METRICS_FILE)
    elif (folder / LOG_FILE).is_file():
        told = read_log(folder / LOG_FILE)
    else:
        raise JgolfError(f"{folder}: there is neither {METRICS_FILE} nor {LOG_FILE} in it: the run has not begun")
    settings = _read_object(folder / CONFIG_FILE)
    row, name, group = _sweep_row(folder), folder.resolve().name, ""
    if row:
        told.result.update(_result_of_row(row))
        *varied, seed = (f"{key.rpartition('.')[2].replace('_', ' ')} {row[key]}" for key in [*_varied(row), "seed"])
        group = ", ".join(varied) or folder.resolve().parents[1].name
        name = f"{group}, {seed}"
    else:
        files.settle((folder / RESULT_FILE).parent)
        if (folder / RESULT_FILE).is_file():
            told.result.update(_read_result(folder))
    artifact = folder / ARTIFACT_FILE
    return _history(
        name,
        folder,
        told,
        config=_flat(settings),
        artifact=artifact if artifact.is_file() else None,
        group=group,
        starts=_read_objects(folder / STARTS_FILE, ("date", "command", "hardware")),
        samples=_read_objects(folder / SAMPLES_FILE, ("prompt", "text")),
    )


def _read_objects(path: Path, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of a file, one a line, in which `texts` name texts; none where there is no such file."""
    found = []
    for line in lines_of(path) if path.is_file() else ():
        try:
            row = parse_json(line.content)
        except Unreadable as error:
            raise JgolfError(f"{path}:{line.number}: {error}; remove that line, or the file") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in texts):
            raise JgolfError(
                f"{path}:{line.number}: expected an object with the texts {', '.join(texts)}, found {excerpt(row)}; "
                "remove that line, or the file"
            )
        found.append(row)
    return found


def _sweep_row(folder: Path) -> dict[str, Any]:
    """What a sweep says of the run in this folder; empty where the folder is no sweep's."""
    folder = folder.resolve()
    if len(folder.parents) < 2:
        return {}
    path = folder.parents[1] / RESULTS_FILE
    try:
        rows = read_json(path)["runs"]
        row = next((row for row in rows if row["folder"] == f"{folder.parent.name}/{folder.name}"), None)
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return sweep_rows({"runs": [row]}, path)[0] if row else {}


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


def _history(name: str, path: Path, told: Told, **rest: Any) -> History:
    train, validation, events, scores, result = told
    name = name.encode(errors="replace").decode()  # of a file whose name is no UTF-8
    if not len(train["step"]) and not len(validation["step"]):
        raise JgolfError(
            f"{path}: holds no line of a training run: expected lines such as "
            "'step:500/20000 train_loss:2.3955 train_time:42105ms step_avg:84.21ms', or a metrics.jsonl"
        )
    for kind in SCORE_KINDS:
        prefix = "" if kind == "standard" else f"{kind}_"
        if f"{prefix}val_bpb" in result:
            scores[kind] = FinalScore(result.get(f"{prefix}val_loss", math.nan), result[f"{prefix}val_bpb"])
    if len(validation["step"]):
        scores["validation"] = FinalScore(float(validation["val_loss"][-1]), float(validation["val_bpb"][-1]))
    return History(name, path, train, validation, events, scores, result=result, **rest)


def _read_metrics(path: Path) -> Told:
    train, validation, events = Rows(TRAIN_COLUMNS), Rows(VALIDATION_COLUMNS), {}
    for line in lines_of(path):
        try:
            row = parse_json(line.content, allow_nan=True)
        except Unreadable as error:
            if not line.is_whole and len(line.content) < LONGEST_UNFINISHED:
                continue  # the line that is being written, or was when the run was killed
            raise JgolfError(f"{path}:{line.number}: {error}; remove that line, or the file") from None
        step = number(row.get("step")) if isinstance(row, dict) else math.nan
        if not 0 <= step <= LARGEST_STEP:
            continue  # not ours
        check_bpb(row, f"{path}:{line.number}")
        (validation if "val_loss" in row else train).add(row)
        for event, name in (("late QAT", "late_qat"), ("SWA", "swa_count"), ("loop", "looped")):
            if row.get(name):
                events.setdefault(event, int(step))
    return Told(train.columns(), validation.columns(), events, {}, {})


def _is_score(name: str, value: Any) -> bool:
    amount = number(value)
    return math.isfinite(amount) and (amount > 0 if name.endswith("val_bpb") else amount >= 0)


def _expected(name: str) -> str:
    return f"a number, {'more than 0' if name.endswith('val_bpb') else '0 or more'}"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names, whatever version of jgolf wrote the settings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _read_result(folder: Path) -> dict[str, Any]:
    result = _read_object(folder / RESULT_FILE, allow_nan=True)
    for name, value in result.items():
        if value is None and name.endswith("original_bytes"):
            continue  # nobody counted them
        if name.endswith(SCORES) and not _is_score(name, value):
            raise JgolfError(
                f"{folder / RESULT_FILE}: {name} is {excerpt(value)}, expected {_expected(name)}; export the run "
                f"again: jgolf export {folder}"
            )
    return result


def _read_object(path: Path, allow_nan: bool = False) -> dict[str, Any]:
    try:
        found = read_json(path, allow_nan)
    except OSError as error:
        raise JgolfError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Unreadable as error:
        raise JgolfError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise JgolfError(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return found
