"""Plots of artifacts: the room that each kind of tensor takes, and how often each level occurs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jgolf.history import History
from jgolf.report.plots import Plot, Theme, label_of, line
from jgolf.report.sizes import ArtifactContents

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Contents(NamedTuple):
    """A run's artifact, and the run's place among all runs of the report."""

    index: int
    run: History
    artifact: ArtifactContents


def artifact_plots(contents: Sequence[Contents]) -> list[Plot]:
    """What takes the room in the artifacts, and how their levels are used."""
    return [_size_plot(contents), *_level_plots(contents)] if contents else []


def _size_plot(contents: Sequence[Contents]) -> Plot:
    sizes = [size for _, _, one in contents for size in one.report.kinds]
    kinds = list(dict.fromkeys(size.kind for size in sizes))
    unit, name = (1e6, "megabytes") if max(size.packed_bytes for size in sizes) > 1e6 else (1e3, "kilobytes")

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        height = 0.8 / len(contents)
        for place, (index, run, one) in enumerate(contents):
            by_kind = {size.kind: size for size in one.report.kinds}
            amounts = [by_kind[kind].packed_bytes / unit if kind in by_kind else 0.0 for kind in kinds]
            places = np.arange(len(kinds)) + (place - (len(contents) - 1) / 2) * height
            hatch = ("", "//", "..", "xx")[index % 4]
            bars = axes.barh(
                places, amounts, 0.92 * height, color=line(theme, index)[0], hatch=hatch, label=label_of(run)
            )
            labels = [f"{amount:.2f}" for amount in amounts]
            axes.bar_label(bars, labels, padding=3, fontsize=8.5 if len(contents) < 3 else 6.5)
        axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{name} in the artifact")

    told = "; ".join(
        f"{run.name}: " + ", ".join(f"{size.kind} {size.packed_bytes:,} bytes" for size in one.report.kinds)
        for _, run, one in contents
    )
    title = "Artifact size by kind of tensor"
    return Plot("artifact-size", title, f"{title}. {told}.", draw)


def _level_plots(contents: Sequence[Contents]) -> list[Plot]:
    forms = sorted({form for _, _, one in contents for form in one.level_counts})
    return [_level_plot(form, [one for one in contents if form in one.artifact.level_counts]) for form in forms]


def _level_plot(form: str, contents: Sequence[Contents]) -> Plot:
    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, run, one in contents:
            counts = one.level_counts[form]
            half = len(counts) // 2
            edges = np.arange(-half, half + 1) - 0.5
            color, style = line(theme, index)
            share = 100 * counts / counts.sum()
            axes.stairs(share, edges, color=color, alpha=0.3 if len(contents) == 1 else 0.12, fill=True)
            axes.stairs(share, edges, color=color, linestyle=style, linewidth=1.3, label=label_of(run))
        axes.set_xlabel("level")
        axes.set_ylabel("percent of the levels")

    told = "; ".join(f"{run.name}: entropy {one.level_entropy_bits(form):.3f} bits" for _, run, one in contents)
    title = f"{form.capitalize()} levels"
    return Plot(f"levels-{form}", title, f"Histogram of the {form} levels in the artifact. {told}.", draw)
