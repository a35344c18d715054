"""`jgolf bench all`: the table of goals, each with the PyTorch reference's figure and jgolf's, by one command."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.table import Table

from jgolf import files
from jgolf.bench.evaluate import SLIDING, measure_evaluation
from jgolf.bench.input import FROM_DISK, RESIDENT, measure_input
from jgolf.bench.report import Figure, Report, command_line, number
from jgolf.bench.running import RunningStep, bench_config, prepare_reference
from jgolf.bench.start import CACHED, COLD, measure_start
from jgolf.bench.step import GRADIENTS, PEAK_MEMORY, WHOLE_STEP, WHOLE_UPDATE, WITH_QAT, measure_step
from jgolf.progress import plain_console

WINDOWS = 32
STRIDE = 64


@dataclass(frozen=True)
class Goal:
    """A row of the table, of `pr592` with 48 × 2,048 tokens on one H200.

    Attributes:
      name: what is measured.
      figure: name of the figure that measures it.
      unit: of all its numbers.
      reference: the PyTorch script's figure, compiled, on that GPU; None where there is no such thing.
      most: the goal, the largest figure that meets it.
      baseline: name of the figure that the measured one is compared with, as a percentage over it.
    """

    name: str
    figure: str
    unit: str
    reference: float | None
    most: float
    baseline: str | None = None


GOALS = (
    Goal("whole step, steady state", WHOLE_STEP, "ms", 128, 60),
    Goal("forward + backward", GRADIENTS, "ms", 93.4, 55),
    Goal("clipping + optimizers + EMA", WHOLE_UPDATE, "ms", 47, 4),
    Goal("fake quantization, over the step without", WITH_QAT, "%", None, 2, WHOLE_STEP),
    Goal(f"sliding evaluation, {WINDOWS} windows", SLIDING, "ms", 18.7, 8),
    Goal("peak memory", PEAK_MEMORY, "GB", 23.9, 14),
    Goal("start to first step, cold", COLD, "s", 75, 25),
    Goal("start to first step, with the compilation cache", CACHED, "s", None, 8),
    Goal("input from disk, over one resident batch", FROM_DISK, "%", None, 2, RESIDENT),
)


@dataclass(frozen=True)
class Row:
    """A goal and what was measured; None where this device does not tell."""

    goal: Goal
    value: float | None
    low: float | None
    high: float | None
    reference: float | None


def bench_all(
    config: str = "pr592",
    sequences: int = 0,
    data: Path | None = None,
    runs: int = 10,
    reference: Path | None = None,
    markdown: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Measure the whole table of goals: start, step, input and evaluation.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      sequences: Sequences of a step; 0 for what the config gives one device.
      data: Folder of the shards; the config's own by default, or random tokens where there is none.
      runs: How often to measure.
      reference: A PyTorch training script to run beside it; otherwise its figures are those once measured.
      markdown: Print the table as Markdown.
      json: Print every report as JSON.
    """
    prepare_reference(reference)
    options = {"config": config, "sequences": sequences, "data": data, "runs": runs, "reference": reference}
    command = command_line("all", **options, markdown=markdown)
    reports = measure_all(config, sequences, data, runs, command, reference)
    if json:
        print(files.json_text([asdict(report) for report in reports], indent=1))
        return
    rows = goal_rows({figure.name: figure for report in reports for figure in report.figures})
    step = next(report for report in reports if report.verb == "step")
    title = f"{step.setup}, on {step.device}, JAX {step.jax_version}, {step.date}"
    if markdown:
        print(markdown_table(rows, title, command))
    else:
        plain_console().print(_rich_table(rows, title))
        print(command)


def measure_all(
    config: str, sequences: int, data: Path | None, runs: int, command: str, reference: Path | None = None
) -> list[Report]:
    """The reports of all verbs that the table draws on, measured one after the other."""
    resolved = bench_config(config, sequences)
    start = measure_start(config, sequences)  # before this process takes the device's memory
    running = RunningStep.compiled(resolved)
    reports = [measure_step(resolved, running, runs, command, reference=reference)]
    reports[0].figures.extend(start)
    reports.append(measure_input(resolved, running, data, runs, command))
    del running
    gc.collect()
    windows = bench_config(config, WINDOWS)
    return [*reports, measure_evaluation(windows, STRIDE, runs, command, reference=reference)]


def goal_rows(figures: Mapping[str, Figure]) -> list[Row]:
    """A row for every goal, from the figures by name."""
    return [_row(goal, figures) for goal in GOALS]


def _row(goal: Goal, figures: Mapping[str, Figure]) -> Row:
    figure = figures.get(goal.figure)
    if figure is None:
        return Row(goal, None, None, None, goal.reference)
    values = [figure.value, figure.low, figure.high]
    if goal.baseline:
        base = figures[goal.baseline].value
        values = [None if value is None else 100 * (value / base - 1) for value in values]
    reference = goal.reference if figure.reference is None else figure.reference
    return Row(goal, *values, reference)


def _cells(row: Row) -> list[str]:
    unit = f" {row.goal.unit}"
    spread = "" if row.low is None else f" ({number(row.low)}–{number(row.high)})"
    value = "–" if row.value is None else f"{number(row.value)}{spread}{unit}"
    reference = "–" if row.reference is None else number(row.reference) + unit
    return [row.goal.name, reference, f"≤ {number(row.goal.most)}{unit}", value]


CAPTION = "Goals, and the reference's figures unless it ran here: pr592, 48 × 2,048 tokens, bfloat16, one NVIDIA H200."
HEADER = ("", "PyTorch reference", "goal", "jgolf: median (10–90 %)")


def markdown_table(rows: list[Row], title: str, command: str) -> str:
    """The table as Markdown, below what it was measured on and the command that measures it."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{title}:\n\n```sh\n{command}\n```\n\n{table}\n\n{CAPTION}"


def _rich_table(rows: list[Row], title: str) -> Table:
    table = Table(title=title, caption=CAPTION, box=box.SIMPLE)
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*_cells(row))
    return table
