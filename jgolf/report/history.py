"""What a run wrote, read back: ours from its folder, the PyTorch reference's from its log."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgolf import files
from jgolf.errors import JgolfError
from jgolf.reading import (
    Line,
    Unreadable,
    excerpt,
    is_number,
    parse_integer,
    parse_json,
    parse_number,
    read_json,
    read_lines,
)
from jgolf.run_dir import ARTIFACT_FILE, CONFIG_FILE, LOG_FILE, METRICS_FILE, RESULT_FILE, RESULTS_FILE

TRAIN_COLUMNS = ("step", "train_time_s", "train_loss", "grad_norm", "learning_rate_multiplier")
VALIDATION_COLUMNS = ("step", "train_time_s", "val_loss", "val_bpb")
_NUMBER = r"(-?(?:[0-9.]+(?:e[+-]?[0-9]+)?|nan|inf))"
_STEP = r"step:([0-9]+)"
_TRAIN_LINE = re.compile(rf"{_STEP}/[0-9]+ train_loss:{_NUMBER} train_time:{_NUMBER}ms")
_VALIDATION_LINE = re.compile(rf"{_STEP}/[0-9]+ val_loss:{_NUMBER} val_bpb:{_NUMBER}(?: train_time:{_NUMBER}ms)?")
_EVENT_LINE = re.compile(rf"(swa:start|late_qat:enabled|loop:enabled) {_STEP}")
_FINAL_LINE = re.compile(rf"(final_\w+) val_loss:{_NUMBER} val_bpb:{_NUMBER}")
_SIZE_LINE = re.compile(r"Total submission size[^:]*: ([0-9]+) bytes")
_EVENT_NAMES = {"swa:start": "SWA", "late_qat:enabled": "late QAT", "loop:enabled": "loop"}

Columns = dict[str, np.ndarray]
SCORES = ("val_loss", "val_bpb", "bytes", "tokens")
"""Endings of the names of figures that are numbers, of results."""
LONGEST_UNFINISHED = 1 << 16
"""Bytes of a line that may have been cut off in writing; ours are much shorter."""
LARGEST_STEP = 1 << 53
"""Up to which float64 holds every integer."""


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
      scores: "validation" (the last during training), "standard", "sliding" and "adapted" (of the artifact) → score.
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
    for number, row in enumerate(rows, start=1):
        problem = _problem_of_row(row)
        if problem:
            raise JgolfError(f"{source}: not the results of a sweep, or damaged: run {number}: {problem}")
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
    return _history(path.stem, path, _read_metrics(path) if path.suffix == ".jsonl" else _read_log(path))


def _read_folder(folder: Path) -> History:
    if not (folder / CONFIG_FILE).is_file():
        raise JgolfError(
            f"{folder}: not a run directory: there is no {CONFIG_FILE} in it; expected a run's folder or a training log"
        )
    if (folder / METRICS_FILE).is_file():
        told = _read_metrics(folder / METRICS_FILE)
    elif (folder / LOG_FILE).is_file():
        told = _read_log(folder / LOG_FILE)
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
    )


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


class _Told(NamedTuple):
    """What a file tells of a run."""

    train: Columns
    validation: Columns
    events: dict[str, int]
    scores: dict[str, FinalScore]
    result: dict[str, Any]


def _history(name: str, path: Path, told: _Told, **rest: Any) -> History:
    train, validation, events, scores, result = told
    name = name.encode(errors="replace").decode()  # of a file whose name is no UTF-8
    if not len(train["step"]) and not len(validation["step"]):
        raise JgolfError(
            f"{path}: holds no line of a training run: expected lines such as "
            "'step:500/20000 train_loss:2.3955 train_time:42105ms step_avg:84.21ms', or a metrics.jsonl"
        )
    for kind, prefix in (("standard", ""), ("sliding", "sliding_"), ("adapted", "adapted_")):
        if f"{prefix}val_loss" in result and f"{prefix}val_bpb" in result:
            scores[kind] = FinalScore(result[f"{prefix}val_loss"], result[f"{prefix}val_bpb"])
    if len(validation["step"]):
        scores["validation"] = FinalScore(float(validation["val_loss"][-1]), float(validation["val_bpb"][-1]))
    return History(name, path, train, validation, events, scores, result=result, **rest)


class _Rows:
    """Rows of numbers in the order of their steps; a step that a resumed run repeated counts once, the last time."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names
        self._by_step: dict[float, tuple[float, ...]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """A row with a step; what it does not say, or says in no number, is NaN."""
        self._by_step[row["step"]] = tuple(_number(row.get(name)) for name in self._names)

    def columns(self) -> Columns:
        ordered = [self._by_step[step] for step in sorted(self._by_step)]
        return dict(zip(self._names, np.array(ordered, np.float64).reshape(-1, len(self._names)).T, strict=True))


def _read_metrics(path: Path) -> _Told:
    train, validation, events = _Rows(TRAIN_COLUMNS), _Rows(VALIDATION_COLUMNS), {}
    for line in _lines(path):
        try:
            row = parse_json(line.content, allow_nan=True)
        except Unreadable as error:
            if not line.is_whole and len(line.content) < LONGEST_UNFINISHED:
                continue  # the line that is being written, or was when the run was killed
            raise JgolfError(f"{path}:{line.number}: {error}; remove that line, or the file") from None
        step = _number(row.get("step")) if isinstance(row, dict) else math.nan
        if not 0 <= step <= LARGEST_STEP:
            continue  # not ours
        _check_scores(row, f"{path}:{line.number}")
        (validation if "val_loss" in row else train).add(row)
        for event, name in (("late QAT", "late_qat"), ("SWA", "swa_count"), ("loop", "looped")):
            if row.get(name):
                events.setdefault(event, int(step))
    return _Told(train.columns(), validation.columns(), events, {}, {})


def _read_log(path: Path) -> _Told:
    told = _Told({}, {}, {}, {}, {})
    train, validation = _Rows(TRAIN_COLUMNS), _Rows(VALIDATION_COLUMNS)
    for line in _lines(path):
        for text in line.content.decode(errors="replace").splitlines():  # a progress bar ends its lines otherwise
            try:
                _read_log_line(text, train, validation, told, f"{path}:{line.number}")
            except Unreadable as error:
                raise JgolfError(f"{path}:{line.number}: {error}: {text.strip():.80}") from None
    return told._replace(train=train.columns(), validation=validation.columns())


def _read_log_line(text: str, train: _Rows, validation: _Rows, told: _Told, where: str) -> None:
    if match := _TRAIN_LINE.search(text):
        loss, milliseconds = map(parse_number, match.groups()[1:])
        train.add({"step": _step(match[1]), "train_loss": loss, "train_time_s": milliseconds / 1000})
    elif match := _VALIDATION_LINE.search(text):
        loss, bpb, milliseconds = (parse_number(part or "nan") for part in match.groups()[1:])
        row = {"step": _step(match[1]), "val_loss": loss, "val_bpb": bpb, "train_time_s": milliseconds / 1000}
        _check_scores(row, where)
        validation.add(row)
    elif match := _EVENT_LINE.search(text):
        told.events.setdefault(_EVENT_NAMES[match[1]], _step(match[2]))
    elif match := _FINAL_LINE.search(text):  # the line with more digits follows and wins
        score = FinalScore(parse_number(match[2]), parse_number(match[3]))
        _check_scores(score._asdict(), where)
        told.scores["sliding" if "sliding" in match[1] else "standard"] = score
    elif match := _SIZE_LINE.search(text):
        told.result["total_bytes"] = parse_integer(match[1])


def _step(text: str) -> int:
    step = parse_integer(text)
    if step > LARGEST_STEP:
        raise Unreadable(f"step {step} is too large, expected at most {LARGEST_STEP}")
    return step


def _number(value: Any) -> float:
    """The value, or NaN where it is no number."""
    return float(value) if is_number(value) else math.nan


def _check_scores(row: Mapping[str, Any], where: str) -> None:
    """Raises JgolfError for bits per byte that no text has; a run that diverged has none that are a number."""
    bpb = _number(row.get("val_bpb"))
    if bpb <= 0:
        raise JgolfError(f"{where}: val_bpb is {bpb:g}, expected more than 0")


def _is_score(name: str, value: Any) -> bool:
    number = _number(value)
    return math.isfinite(number) and (number > 0 if name.endswith("val_bpb") else number >= 0)


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
                f"again: python export.py {folder}"
            )
    return result


def _lines(path: Path) -> Iterator[Line]:
    try:
        yield from read_lines(path)
    except OSError as error:
        raise JgolfError(
            f"{path}: cannot be read: {error.strerror or error}; expected a run's folder or a training log"
        ) from None
    except Unreadable as error:
        raise JgolfError(f"{path}: {error}; expected a training log or a metrics.jsonl") from None


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
