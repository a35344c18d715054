"""Tables of the page, and of results.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jgolf import files
from jgolf.history import SCORE_KINDS, History
from jgolf.history.record import number
from jgolf.progress import counted
from jgolf.report.artifacts import Contents
from jgolf.report.curves import step_times_ms
from jgolf.report.groups import BASELINE, UNINTERESTING, Against, Group, score_of, signed
from jgolf.report.leaderboard import leaderboard

NOTHING = "–"
MOST_SIZES = 3
"""Artifacts whose sizes are not folded."""


class Cell(NamedTuple):
    """A cell: what it shows, what it is sorted by, whether it is the best of its column."""

    text: str
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """A table: its caption, the heads of its columns, and rows whose first cell is their head."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    """Behind a line that opens it."""
    name: str = ""
    """By which the page's script finds it."""

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, at the right, or nothing."""
        return all(row[column].value is not None or row[column].text == NOTHING for row in self.rows)


class _Figure(NamedTuple):
    """A column of the results: its head, the figure of a run, how it is shown, and which end is the best."""

    head: str
    of: Callable[[History], float]
    show: Callable[[float], str]
    better: int = 0
    """−1 for lower, 1 for higher, 0 for neither."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def train_seconds(run: History) -> float:
    """Training time; NaN where it is not known."""
    if "train_time_s" in run.result:
        return run.result["train_time_s"]
    times = np.concatenate([run.train["train_time_s"], run.validation["train_time_s"]])
    return float(np.nanmax(times)) if np.isfinite(times).any() else math.nan


def evaluation_seconds(run: History) -> tuple[float, str]:
    """What the richest score took, and where: on the challenge's text and GPUs, or as it was measured."""
    for prefix in ("adapted_", "sliding_", ""):
        for name, where in (("challenge_s", "on the challenge’s text and GPUs"), ("eval_s", "as measured")):
            seconds = _result(run, prefix + name)
            if math.isfinite(seconds):
                return seconds, where
    return math.nan, ""


def total_bytes(run: History) -> float:
    """Of the artifact and the code that scores it, or of the artifact where the code is not counted; NaN for none."""
    return _result(run, "total_bytes" if "total_bytes" in run.result else "artifact_bytes")


def original_bpb(run: History, kind: str) -> float:
    """Bits per byte of the original text, of one of the run's scores; NaN where nobody counted it."""
    if kind == "validation":
        values = run.validation["original_bpb"]
        return float(values[-1]) if len(values) else math.nan
    return _result(run, "original_bpb" if kind == "standard" else f"{kind}_original_bpb")


def quantization_gap(run: History) -> float:
    """Bits per byte after quantization − before; NaN where either is not known."""
    return score_of(run, "standard") - score_of(run, "pre_quantization")


def _result(run: History, name: str) -> float:
    return number(run.result.get(name))


def _training_loss(run: History) -> float:
    losses = run.train["train_loss"]
    late = losses[-max(1, len(losses) // 50) :]
    return float(late.mean()) if len(late) else math.nan


def _steps(run: History) -> float:
    return max(run.result.get("step", 0), *(float(steps[-1]) for steps in _all_steps(run)))


def _all_steps(run: History) -> list[np.ndarray]:
    return [columns["step"] for columns in (run.train, run.validation) if len(columns["step"])]


def _ms_a_step(run: History) -> float:
    _, ms = step_times_ms(run)
    return float(np.median(ms)) if len(ms) else math.nan


def _bpb_figure(kind: str) -> _Figure:
    return _Figure(SCORE_KINDS[kind], lambda run: score_of(run, kind), "{:.4f}".format, -1)


def _original_figure(kind: str) -> _Figure:
    return _Figure("of the original text", lambda run: original_bpb(run, kind), "{:.4f}".format, -1)


def results_table(runs: Sequence[History], kind: str, differences: Sequence[Against]) -> Table:
    """A row for each run; the score that is compared and its difference from the baseline come first.

    Args:
      runs: the runs.
      kind: of SCORE_KINDS, the one that is compared.
      differences: for each run, its group against the baseline.
    """
    kinds = [one for one in reversed(SCORE_KINDS) if one != kind and any(one in run.scores for run in runs)]
    figures = [
        *([_bpb_figure(kind), _original_figure(kind)] if kind else []),
        *map(_bpb_figure, kinds),
        _Figure("quantization gap", quantization_gap, signed, -1),
        _Figure("validation loss, nats", _loss, "{:.4f}".format, -1),
        _Figure("training loss, nats", _training_loss, "{:.4f}".format),
        _Figure("bytes", total_bytes, "{:,.0f}".format, -1),
        _Figure("steps", _steps, "{:,.0f}".format),
        _Figure("training time", train_seconds, duration),
        _Figure("ms a step", _ms_a_step, "{:.1f}".format, -1),
        _Figure("evaluation, s", lambda run: evaluation_seconds(run)[0], "{:.1f}".format),
        _Figure("peak memory, GiB", lambda run: _result(run, "peak_memory_bytes") / 2**30, "{:.1f}".format, -1),
        _Figure("parameters", lambda run: _result(run, "num_params"), "{:,.0f}".format),
    ]
    columns = [(figure.head, _figure_cells(figure, runs)) for figure in figures]
    deltas = [_delta(one) for one in differences]
    if len({run.legend for run in runs}) > 1 and kind:
        columns.insert(1, ("Δ", deltas))
    columns += [
        ("average", [Cell(str(run.result.get("average", NOTHING))) for run in runs]),
        ("hardware", [Cell(hardware(run)) for run in runs]),
    ]
    columns = [(head, cells) for head, cells in columns if any(cell.text != NOTHING for cell in cells)]
    rows = [[Cell(run.name), *(cells[place] for _, cells in columns)] for place, run in enumerate(runs)]
    caption = "Bits per byte, lower is better; the training loss is the mean of the last 2 % of the logged steps"
    return Table(caption, ["run", *(head for head, _ in columns)], rows, name="results")


def _loss(run: History) -> float:
    return run.scores["validation"].val_loss if "validation" in run.scores else math.nan


def _figure_cells(figure: _Figure, runs: Sequence[History]) -> list[Cell]:
    values = [figure.of(run) for run in runs]
    finite = [value for value in values if math.isfinite(value)]
    best = (min(finite) if figure.better < 0 else max(finite)) if figure.better and len(set(finite)) > 1 else None
    return [
        Cell(figure.show(value), value, value == best) if math.isfinite(value) else Cell(NOTHING) for value in values
    ]


def _delta(one: Against) -> Cell:
    shown = one.told if one.told == BASELINE else signed(one.difference)
    return Cell(shown, one.difference if math.isfinite(one.difference) else None)


def hardware(run: History) -> str:
    """What the run was trained on, else what its artifact was scored on."""
    return run.starts[-1]["hardware"] if run.starts else str(run.result.get("device", NOTHING))


def seeds_table(groups: Sequence[Group], differences: Sequence[Against]) -> Table:
    """Means over the seeds of each group."""
    best = min((group.mean for group in groups if math.isfinite(group.mean)), default=math.nan)
    rows = [
        [
            Cell(group.name),
            Cell(str(len(group.bpb)), float(len(group.bpb))),
            _number_cell(group.mean, "{:.4f}", group.mean == best),
            _number_cell(group.half, "± {:.4f}"),
            _delta(one),
            _number_cell(mean([total_bytes(run) for run in group.runs]), "{:,.0f}"),
        ]
        for group, one in zip(groups, differences, strict=True)
    ]
    heads = ["runs alike but for the seed", "seeds", "bits per byte, mean", "95 % interval", "Δ", "bytes, mean"]
    return Table("Means over the seeds, and half the 95 % confidence interval of the mean", heads, rows, name="seeds")


def mean(values: Sequence[float]) -> float:
    """Of those that are a number; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _number_cell(value: float, form: str, is_best: bool = False) -> Cell:
    return Cell(form.format(value), value, is_best) if math.isfinite(value) else Cell(NOTHING)


def sizes_table(contents: Sequence[Contents]) -> Table:
    """What takes the room in the artifacts."""
    rows = [
        [
            Cell(size.kind.replace("_", " ") if len(contents) == 1 else f"{run.name}: {size.kind.replace('_', ' ')}"),
            Cell(" ".join(size.forms)),
            _number_cell(size.values, "{:,}"),
            _number_cell(size.packed_bytes, "{:,}"),
            _number_cell(8 * size.packed_bytes / size.values, "{:.2f}"),
            _number_cell(100 * size.packed_bytes / one.report.total_bytes, "{:.1f}"),
        ]
        for _, run, one in contents
        for size in one.report.kinds
    ]
    heads = ["kind", "stored as", "values", "bytes", "bits a value", "percent of the total"]
    return Table("What takes the room", heads, rows, folded=len(contents) > MOST_SIZES)


def starts_table(runs: Sequence[History]) -> Table | None:
    """Command, commit, hardware and date of each start of each run; None where no run says."""
    rows = [
        [
            Cell(run.name),
            Cell(start["date"].replace("T", " ").replace("+00:00", " UTC")),
            Cell(start["hardware"]),
            Cell(str(start.get("commit") or NOTHING)),
            Cell(start["command"]),
        ]
        for run in runs
        for start in run.starts
    ]
    heads = ["run", "date", "hardware", "commit", "command"]
    return Table("What the runs were started with", heads, rows, name="starts") if rows else None


def settings_tables(runs: Sequence[History]) -> tuple[str, list[Table]]:
    """What is to be said of the settings, the table of those that differ, and all of them, folded."""
    known = [run for run in runs if run.config]
    logs = ", ".join(run.name for run in runs if not run.config)
    text = f"Not known, because a log does not hold them: {logs}. " if logs else ""
    tables = []
    if len(known) > 1:
        names = dict.fromkeys(name for run in known for name in run.config if name not in UNINTERESTING)
        different = [name for name in names if len({_spelled(run.config.get(name)) for run in known}) > 1]
        rows = [[Cell(name), *(Cell(_spelled(run.config.get(name))) for run in known)] for name in different]
        if rows:
            tables.append(Table("Settings in which the runs differ", ["setting", *(run.name for run in known)], rows))
        else:
            text += "The runs have the same settings. "
    for run in known:
        rows = [[Cell(name), Cell(_spelled(value))] for name, value in run.config.items()]
        tables.append(Table(f"All settings of {run.name}", ["setting", "value"], rows, folded=True))
    return text.strip(), tables


def _spelled(value: Any) -> str:
    return NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)


def leaderboard_table() -> Table:
    """The challenge's pull requests."""
    rows = [
        [
            Cell(f"#{record.pull_request}", float(record.pull_request)),
            _number_cell(record.val_bpb, "{:.5f}"),
            Cell(record.seeds or NOTHING),
            Cell(record.listed or NOTHING),
            Cell(record.date or NOTHING),
            Cell(record.title or NOTHING),
        ]
        for record in leaderboard()
    ]
    heads = ["pull request", "bits per byte", "seeds", "on the list", "date", "title"]
    caption = f"{counted(len(rows), 'score')} on FineWeb’s validation split; those of other text do not compare"
    return Table(caption, heads, rows, folded=True)


def csv_text(table: Table) -> str:
    """A table as CSV, numbers as they are and not as they are shown."""
    return files.csv_text(table.heads, ([_plain(cell) for cell in row] for row in table.rows))


def _plain(cell: Cell) -> str | float:
    if cell.value is not None:
        return cell.value
    return "" if cell.text == NOTHING else cell.text
