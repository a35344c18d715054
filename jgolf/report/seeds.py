"""Plot of the scores of groups of runs: means, seeds, and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jgolf.history import SCORE_KINDS
from jgolf.report.groups import Group
from jgolf.report.plots import Plot, Theme, line, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_INCHES = 0.3


def groups_plots(groups: Sequence[Group]) -> list[Plot]:
    """The plot of several groups' scores; none for one group, or where no group has a score."""
    scored = [(place, group) for place, group in enumerate(groups) if math.isfinite(group.mean)]
    if len(scored) < 2:
        return []

    def draw(figure: Figure, theme: Theme) -> None:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, max(height, ROW_INCHES * (len(scored) + 3)))
        axes = figure.subplots()
        for row, (place, group) in enumerate(scored):
            color, _ = line(theme, place)
            axes.plot(group.bpb, [row] * len(group.bpb), "o", markersize=4, markerfacecolor="none", color=color)
            half = group.half if math.isfinite(group.half) else None
            axes.errorbar(group.mean, row, xerr=half, fmt="o", color=color, markersize=6, capsize=3)
        axes.set_yticks(range(len(scored)), [shortened(group.name) for _, group in scored])
        axes.invert_yaxis()
        axes.set_xlabel(f"bits per byte, {SCORE_KINDS[scored[0][1].kind]}")

    told = "; ".join(f"{group.name}: {group.mean:.4f}" for _, group in scored)
    title = "Scores"
    return [Plot("scores", title, f"{title}: means, seeds and 95 % intervals of the means. {told}.", draw)]
