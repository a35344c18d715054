"""What a bench found: figures with their spread, where they were measured, and the command that measures them again."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import jax
from rich import box
from rich.table import Table

from jgolf import files
from jgolf.bench.timing import Timing
from jgolf.bench.trace import Profile
from jgolf.progress import table_console

TOP_KERNELS = 25


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
      name: what was measured.
      value: the median, where it was measured often.
      unit: "ms", "GB", …; "" for a plain number.
      low: value that a tenth of the runs were below.
      high: value that a tenth of the runs were above.
      runs: how often it was measured.
      tflops: rate at which the work was done, in TFLOP/s.
      reference: the same of the PyTorch script.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    runs: int = 1
    tflops: float | None = None
    reference: float | None = None

    @property
    def ratio(self) -> float | None:
        """The reference's number over ours."""
        return None if self.reference is None or not self.value else self.reference / self.value


@dataclass(frozen=True)
class Report:
    """All that a verb found."""

    verb: str
    setup: str
    """What was run: config and sizes."""
    command: str
    """What measures it again."""
    figures: list[Figure]
    profile: Profile | None = None
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
    device: str = field(default_factory=lambda: jax.devices()[0].device_kind)
    jax_version: str = jax.__version__
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def find(self, name: str) -> Figure | None:
        """The figure of that name."""
        return next((figure for figure in self.figures if figure.name == name), None)


def timed(name: str, timing: Timing, flops: float = 0.0) -> Figure:
    """The figure of a timing, and the rate of the `flops` that it did."""
    return Figure(
        name=name,
        value=timing.median_ms,
        unit="ms",
        low=timing.low_ms,
        high=timing.high_ms,
        runs=timing.runs,
        tflops=flops / timing.median_ms / 1e9 if flops else None,
    )


def beside(figures: list[Figure], reference: Mapping[str, float]) -> list[Figure]:
    """The figures with the PyTorch script's, by their names."""
    return [replace(figure, reference=reference.get(figure.name)) for figure in figures]


def command_line(verb: str, **options: object) -> str:
    """The command with these options; those that are None, False or 0 are left out."""
    words = ["jgolf", "bench", verb]
    for name, value in options.items():
        if value:
            values = [] if value is True else value if isinstance(value, tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def publish(report: Report, json: bool) -> None:
    """Prints a report as JSON, or as tables."""
    if json:
        print(files.json_text(asdict(report), indent=1))
        return
    console = table_console()
    console.print(_figures_table(report))
    if report.profile is not None:
        for table in _kernel_tables(report.profile):
            console.print(table)
    for note in report.notes:
        console.print(note)
    console.print(f"{report.device}, JAX {report.jax_version}, {report.date}: {report.command}", soft_wrap=True)


def number(value: float | None) -> str:
    """Four digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _figures_table(report: Report) -> Table:
    table = Table(title=report.setup, box=box.SIMPLE)
    columns: dict[str, Callable[[Figure], str]] = {
        "median": lambda figure: f"{number(figure.value)} {figure.unit}",
        "10–90 %": lambda figure: "" if figure.low is None else f"{number(figure.low)}–{number(figure.high)}",
        "runs": lambda figure: str(figure.runs),
        "TFLOP/s": lambda figure: number(figure.tflops),
        "PyTorch": lambda figure: number(figure.reference),
        "PyTorch / jgolf": lambda figure: "" if figure.ratio is None else f"{figure.ratio:.2f}",
    }
    filled = [name for name, text in columns.items() if any(map(text, report.figures))]
    table.add_column("")
    for name in filled:
        table.add_column(name, justify="right", no_wrap=True)
    for figure in report.figures:
        table.add_row(figure.name, *(columns[name](figure) for name in filled))
    return table


def _kernel_tables(profile: Profile) -> list[Table]:
    tables = []
    total_ms = profile.device_ms or 1.0
    for title, kernels in (
        (f"Device time by kind of kernel: {number(profile.device_ms)} ms a call", profile.by_kind()),
        (f"The {TOP_KERNELS} longest kernels", profile.kernels[:TOP_KERNELS]),
    ):
        table = Table(title=title, box=box.SIMPLE)
        table.add_column("", overflow="fold")
        for column in ("ms", "share", "count"):
            table.add_column(column, justify="right", no_wrap=True)
        for kernel in kernels:
            share = f"{100 * kernel.ms / total_ms:.1f} %"
            table.add_row(kernel.name, f"{kernel.ms:.3f}", share, f"{kernel.count:.4g}")
        tables.append(table)
    return tables
