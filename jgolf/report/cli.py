"""`jgolf report RUN…`: plots and tables of runs, on one page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jgolf import files
from jgolf.errors import JgolfError
from jgolf.history import History, read_histories
from jgolf.progress import counted, progress_bar
from jgolf.report.artifacts import Contents, artifact_plots
from jgolf.report.curves import history_plots, step_times_ms
from jgolf.report.page import Picture, Section, Table, page
from jgolf.report.plots import DARK, LIGHT, Plot, placed, require_matplotlib
from jgolf.report.sizes import read_contents

PAGE_FILE = "index.html"
NOTHING = "–"
CURVES = (
    "Strong lines are means over 2 % of the logged steps, faint ones every step; dots are validations, "
    "without the untrained model's where there are later ones."
)
UNINTERESTING = ("version", "name", "data.dir", "data.tokenizer", "data.build_demo")
"""Settings that say nothing about how a run was trained."""


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")],
    out: Path | None = None,
) -> None:
    """Draw runs on one page: curves, sizes, scores, and the settings in which they differ.

    Example: jgolf report runs/new runs/old reference_train.log --out report

    Writes DIR/index.html, which needs no other file, and each plot as a PNG.

    Args:
      runs: Run directories, sweeps' folders, metrics.jsonl files, or logs of the PyTorch reference, in any mixture.
      out: Folder DIR to write to; RUN/report for one run directory, else ./report.
    """
    if not runs:
        raise JgolfError("no run was named; expected run directories or training logs, such as: jgolf report runs/demo")
    require_matplotlib()
    histories = _with_distinct_names([run for path in runs for run in read_histories(path)])
    out = out or (runs[0] / "report" if len(runs) == 1 and runs[0].is_dir() else Path("report"))
    contents = [Contents(index, run, found) for index, run in placed(histories) if (found := read_contents(run))]
    pictures = _draw(history_plots(histories), out), _draw(artifact_plots(contents), out)
    title = "Run " + histories[0].name if len(histories) == 1 else f"{len(histories)} runs"
    sections = [
        Section("Results", _results_text(histories), tables=[_results_table(histories)]),
        Section("Training", CURVES, pictures=pictures[0]),
    ]
    if contents:
        text = "Bytes that each kind of tensor takes in the artifact, and how often each quantized level occurs."
        sections.append(Section("Artifact", text, [_size_table(contents)], pictures[1]))
    sections.append(_settings_section(histories))
    listed = ", ".join(run.name for run in histories)
    files.write_text(out / PAGE_FILE, page(f"jgolf report: {title}", f"Runs: {listed}", sections))
    print(f"{out / PAGE_FILE}: {len(pictures[0]) + len(pictures[1])} plots of {counted(len(histories), 'run')}")


def _draw(plots: Sequence[Plot], out: Path) -> list[Picture]:
    pictures = []
    for plot in progress_bar("drawing")(plots, len(plots)):
        light, dark = plot.png(LIGHT), plot.png(DARK)
        files.write_bytes(out / f"{plot.name}.png", light)
        pictures.append(Picture(plot.title, plot.alt, light, dark))
    return pictures


def _with_distinct_names(histories: Sequence[History]) -> list[History]:
    """Runs of the same name are told apart by the folder they lie in."""
    names = [run.name for run in histories]
    longer = [
        run.name if names.count(run.name) == 1 else f"{run.path.resolve().parent.name}/{run.name}" for run in histories
    ]
    named = [name if longer.count(name) == 1 else str(run.path) for name, run in zip(longer, histories, strict=True)]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise JgolfError(f"{twice}: named twice; expected each run once")
    return [replace(run, name=name) for run, name in zip(histories, named, strict=True)]


# --- tables ------------------------------------------------------------------------------------------------


def _results_table(histories: Sequence[History]) -> Table:
    rows = [_result_row(run) for run in histories]
    heads = [head for head in rows[0] if any(row[head] != NOTHING for row in rows)]
    caption = "Training loss is the mean of the last 2 % of the logged steps; BPB is bits per byte"
    return Table(caption, heads, [[row[head] for head in heads] for row in rows])


def _result_row(run: History) -> dict[str, str]:
    steps = max([*run.train["step"], *run.validation["step"]])
    times = [*run.train["train_time_s"], *run.validation["train_time_s"]]
    elapsed_s = np.nanmax(times) if np.isfinite(times).any() else math.nan
    _, ms = step_times_ms(run)
    losses = run.train["train_loss"]
    validation, standard, sliding = (run.scores.get(name) for name in ("validation", "standard", "sliding"))
    before = run.result.get("pre_quantization_val_bpb")
    total_bytes = run.result.get("total_bytes")
    return {
        "run": run.name,
        "sliding BPB": f"{sliding.val_bpb:.4f}" if sliding else NOTHING,
        "artifact BPB": f"{standard.val_bpb:.4f}" if standard else NOTHING,
        "total bytes": f"{total_bytes:,}" if total_bytes else NOTHING,
        "average": str(run.result.get("average", NOTHING)),
        "average BPB": f"{before:.4f}" if before is not None else NOTHING,
        "validation BPB": f"{validation.val_bpb:.4f}" if validation else NOTHING,
        "validation loss": f"{validation.val_loss:.4f}" if validation else NOTHING,
        "training loss": f"{np.mean(losses[-max(1, len(losses) // 50) :]):.4f}" if len(losses) else NOTHING,
        "steps": f"{steps:,.0f}",
        "time": _duration(elapsed_s),
        "ms a step": f"{np.median(ms):.1f}" if len(ms) else NOTHING,
        "device": str(run.result.get("device", NOTHING)),
    }


def _results_text(histories: Sequence[History]) -> str:
    for kind, what in (
        ("sliding", "sliding window, from the artifact"),
        ("standard", "rows, quantized"),
        ("validation", "last validation"),
    ):
        scored = [(run.scores[kind].val_bpb, run.name) for run in histories if kind in run.scores]
        finite = [(bpb, name) for bpb, name in scored if math.isfinite(bpb)]
        if finite:
            bpb, name = min(finite)
            whose = "" if len(histories) == 1 else f", {name}"
            return f"Best score: {bpb:.4f} bits per byte ({what}{whose})."
    return "No validation with a finite loss has been logged."


def _size_table(contents: Sequence[Contents]) -> Table:
    rows = [
        [
            size.kind.replace("_", " ") if len(contents) == 1 else f"{run.name}: {size.kind.replace('_', ' ')}",
            " ".join(size.forms),
            f"{size.values:,}",
            f"{size.packed_bytes:,}",
            f"{8 * size.packed_bytes / size.values:.2f}",
            f"{100 * size.packed_bytes / one.report.total_bytes:.1f}",
        ]
        for _, run, one in contents
        for size in one.report.kinds
    ]
    heads = ["kind", "stored as", "values", "bytes", "bits a value", "percent of the total"]
    return Table("What takes the room", heads, rows)


def _settings_section(histories: Sequence[History]) -> Section:
    known = [run for run in histories if run.config]
    logs = ", ".join(run.name for run in histories if not run.config)
    text = f"Not known, because a log does not hold them: {logs}. " if logs else ""
    tables = []
    if len(known) > 1:
        names = dict.fromkeys(name for run in known for name in run.config if name not in UNINTERESTING)
        different = [name for name in names if len({_spelled(run.config.get(name)) for run in known}) > 1]
        rows = [[name, *(_spelled(run.config.get(name)) for run in known)] for name in different]
        if rows:
            tables.append(Table("Settings in which the runs differ", ["setting", *(run.name for run in known)], rows))
        else:
            text += "The runs have the same settings. "
    for run in known:
        rows = [[name, _spelled(value)] for name, value in run.config.items()]
        tables.append(Table(f"All settings of {run.name}", ["setting", "value"], rows, folded=True))
    return Section("Settings", text.strip(), tables)


def _spelled(value: Any) -> str:
    return NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
