"""The cross-check's tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jgolf.torch_bridge.both_sides import Result
from jgolf.torch_bridge.comparison import Check
from jgolf.torch_bridge.crosscheck_train import StepComparison
from jgolf.torch_bridge.names import listed
from jgolf.torch_bridge.own_optimizers import OwnOptimizers


def print_result(console: Console, result: Result, title: str) -> None:
    """Prints every check, and the layers where one of them departs."""
    worst = max(result.layers, key=lambda check: check.difference)
    shown = _table(title, ("figure", "PyTorch", "jgolf", "difference", "tolerance", ""))
    for check in [*result.checks, _named(worst, f"every layer (most: {worst.name})")]:
        shown.add_row(check.name, *_cells(check))
    console.print(shown)
    if result.first_departure:
        console.print(f"{result.first_departure} is the first to depart", style="bold red")
        layers = _table("largest difference by layer", ("layer", "difference", "tolerance", ""))
        for check in result.layers:
            layers.add_row(check.name, *_cells(check)[2:])
        console.print(layers)


def print_optimizers(console: Console, own: OwnOptimizers) -> bool:
    """Says what the script's optimizers are; returns whether jgolf's can update every parameter in the same way."""
    for notice in own.notices:
        console.print(notice, soft_wrap=True)
    if own.problems:
        console.print("parameters that jgolf updates otherwise, whatever its settings", style="bold red")
        console.print(listed(own.problems), soft_wrap=True)
    return not own.problems


def print_steps(console: Console, steps: Iterable[StepComparison]) -> bool:
    """Prints a row for each optimizer step once all are taken; returns whether all are within tolerance."""
    steps = list(steps)
    phases = {step.looped for step in steps}
    figures = ("PyTorch loss", "jgolf loss", "difference", "tolerance", "", "distance", "tolerance", "")
    shown = _table(
        "training; the parameters' distance is relative to the distance covered",
        ("step", *(["loop"] if len(phases) > 1 else []), *figures),
    )
    passed, step = True, None
    for step in steps:
        phase = ["on" if step.looped else "off"] if len(phases) > 1 else []
        shown.add_row(str(step.step + 1), *phase, *_cells(step.loss), *_cells(step.distance)[2:])
        passed &= step.loss.passed and step.distance.passed
    console.print(shown)
    if step is not None:
        console.print(f"farthest apart after the last step: {step.worst_parameter}")
    return passed


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and column else "left")
    return table


def _cells(check: Check) -> list[str | Text]:
    both = ["" if value is None else f"{value:.7f}" for value in (check.reference, check.jgolf)]
    verdict = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
    return [*both, f"{check.difference:.1e}", f"{check.tolerance:.0e}", verdict]


def _named(check: Check, name: str) -> Check:
    return Check(name, check.difference, check.tolerance)
