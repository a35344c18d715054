"""Curves of runs: losses, schedule, gradient norm and step time over steps and over training time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jgolf.history import History
from jgolf.report.plots import Plot, Theme, label_of, line, placed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING = 0.02  # of the logged steps are averaged for one point of the training loss
SKIPPED_START = 0.02  # of the run, whose high losses would flatten the rest of the plot


def history_plots(runs: Sequence[History]) -> list[Plot]:
    """Curves over steps and over training time; those that no run has data for are left out."""
    plots = []
    for x, suffix, over in (("step", "steps", "steps"), ("train_time_s", "time", "training time")):
        plots.append(_loss_plot(runs, x, f"loss-{suffix}", f"Loss over {over}"))
        plots.append(_bpb_plot(runs, x, f"bpb-{suffix}", f"Bits per byte over {over}"))
    plots += [_multiplier_plot(runs), _grad_norm_plot(runs), _step_time_plot(runs)]
    return [plot for plot in plots if plot is not None]


def _loss_plot(runs: Sequence[History], x: str, name: str, title: str) -> Plot | None:
    shown = [
        (index, run)
        for index, run in placed(runs)
        if _has(run.train, x, "train_loss") or _has(run.validation, x, "val_loss")
    ]
    if not shown:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        tops, bottoms = [], []
        for index, run in shown:
            color, style = line(theme, index)
            if _has(run.train, x, "train_loss"):
                smooth = smoothed(run.train["train_loss"])
                axes.plot(run.train[x], run.train["train_loss"], color=color, alpha=0.18, linewidth=0.7)
                axes.plot(run.train[x], smooth, style, color=color, linewidth=1.4, label=label_of(run))
                late = smooth[run.train["step"] > SKIPPED_START * run.train["step"][-1]]
                tops.append(np.nanmax(late, initial=-np.inf))
                bottoms.append(np.nanmin(run.train["train_loss"], initial=np.inf))
            if _has(run.validation, x, "val_loss"):
                trained = _trained(run)
                losses = run.validation["val_loss"][trained]
                label = None if _has(run.train, x, "train_loss") else label_of(run)
                axes.plot(run.validation[x][trained], losses, "o", color=color, markersize=4.5, label=label)
                tops.append(np.nanmax(losses, initial=-np.inf))
                bottoms.append(np.nanmin(losses, initial=np.inf))
        _limit(axes, tops, bottoms)
        _finish(axes, x, "loss in nats a token")

    told = "; ".join(_told(run, "val_loss", "validation loss") for _, run in shown)
    alt = f"{title}. Lines are the training loss, smoothed; dots the validation loss. {told}."
    return Plot(name, title, alt, draw)


def _bpb_plot(runs: Sequence[History], x: str, name: str, title: str) -> Plot | None:
    shown = [(index, run) for index, run in placed(runs) if _has(run.validation, x, "val_bpb")]
    if all(len(run.validation["step"]) < 2 for _, run in shown):
        return None  # no curve; the table of results has the figures

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, run in shown:
            color, style = line(theme, index)
            trained = _trained(run)
            places, bpb = run.validation[x][trained], run.validation["val_bpb"][trained]
            axes.plot(places, bpb, style, marker="o", markersize=4, color=color, label=label_of(run))
        _finish(axes, x, "bits per byte")

    alt = f"{title}, on the validation split. " + "; ".join(_told(run, "val_bpb", "bits per byte") for _, run in shown)
    return Plot(name, title, alt + ".", draw)


def _multiplier_plot(runs: Sequence[History]) -> Plot | None:
    shown = [(index, run) for index, run in placed(runs) if _has(run.train, "step", "learning_rate_multiplier")]
    if not shown:
        return None

    longest = max((run for _, run in shown), key=lambda run: run.train["step"][-1])  # its marks have room for names

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, run in shown:
            color, style = line(theme, index)
            steps, multiplier = run.train["step"], run.train["learning_rate_multiplier"]
            axes.plot(steps, multiplier, style, color=color, label=label_of(run))
            for event, step in run.events.items():
                height = float(np.interp(step, steps, multiplier))
                left = event == "SWA"
                axes.plot(step, height, "^" if left else "v", color=color, markersize=7)
                if run is longest:
                    offset = (-9, 6 if left else -7)
                    axes.annotate(event, (step, height), offset, textcoords="offset points", ha="right", fontsize=9)
        axes.set_ylim(0, 1.05)
        _finish(axes, "step", "learning-rate multiplier")

    told = "; ".join(
        f"{run.name}: " + (", ".join(f"{event} from step {step:,}" for event, step in run.events.items()) or "no marks")
        for _, run in shown
    )
    title = "Learning-rate multiplier"
    alt = f"{title} over steps, with marks where SWA (upward triangle) and late QAT (downward) begin. {told}."
    return Plot("learning-rate", title, alt, draw)


def _grad_norm_plot(runs: Sequence[History]) -> Plot | None:
    shown = [
        (index, run)
        for index, run in placed(runs)
        if _has(run.train, "step", "grad_norm") and np.nanmax(run.train["grad_norm"]) > 0
    ]
    if not shown:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, run in shown:
            color, style = line(theme, index)
            axes.plot(run.train["step"], run.train["grad_norm"], color=color, alpha=0.18, linewidth=0.7)
            axes.plot(run.train["step"], smoothed(run.train["grad_norm"]), style, color=color, label=label_of(run))
        _logarithmic(axes)
        _finish(axes, "step", "global gradient norm")

    told = "; ".join(f"{run.name}: median {np.nanmedian(run.train['grad_norm']):.3g}" for _, run in shown)
    title = "Gradient norm"
    return Plot("gradient-norm", title, f"{title} before clipping over steps, on a logarithmic scale. {told}.", draw)


def _step_time_plot(runs: Sequence[History]) -> Plot | None:
    times = [(index, run, *step_times_ms(run)) for index, run in placed(runs)]
    shown = [(index, run, steps, ms) for index, run, steps, ms in times if len(ms)]
    if not shown:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, run, steps, ms in shown:
            color, style = line(theme, index)
            axes.plot(steps, ms, ".", color=color, alpha=0.25, markersize=2.5)
            axes.plot(steps, smoothed(ms), style, color=color, label=label_of(run))
        top = max(np.percentile(ms, 98) for *_, ms in shown)
        axes.set_ylim(0, 1.15 * top if top > 0 else None)
        _finish(axes, "step", "milliseconds a step")

    told = "; ".join(f"{run.name}: median {np.median(ms):.1f} ms" for _, run, _, ms in shown)
    title = "Step time"
    return Plot("step-time", title, f"{title} over steps. {told}.", draw)


def step_times_ms(run: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean time of a step since the logged one before, in milliseconds."""
    steps, elapsed_s = run.train["step"], run.train["train_time_s"]
    known = np.isfinite(elapsed_s) & (np.diff(elapsed_s, prepend=-np.inf) > 0)  # coarse clocks stand still
    steps, elapsed_s = steps[known], elapsed_s[known]
    return steps[1:], 1000 * np.diff(elapsed_s) / np.diff(steps)


def _has(columns: dict[str, np.ndarray], *names: str) -> bool:
    return all(len(columns[name]) and np.isfinite(columns[name]).any() for name in names)


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving mean over SMOOTHING of the values; shorter at the ends, NaN where there is no number."""
    half = int(SMOOTHING * len(values) / 2)
    if half == 0:
        return values
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    first, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    count = counts[end] - counts[first]
    return np.where(count, (sums[end] - sums[first]) / np.maximum(count, 1), np.nan)


def _trained(run: History) -> np.ndarray:
    """Which validations are of a trained model; all of them where none is."""
    after = run.validation["step"] > 0
    return after if after.any() else ~after


def _limit(axes: Axes, tops: Sequence[float], bottoms: Sequence[float]) -> None:
    """Frames what follows the first steps; their losses would flatten the rest."""
    top, bottom = max(tops, default=np.nan), min(bottoms, default=np.nan)
    if np.isfinite([top, bottom]).all() and top > bottom:
        margin = 0.06 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers; between powers of ten only where there is hardly one of these."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if high < 20 * low else "")


def _finish(axes: Axes, x: str, y_label: str) -> None:
    axes.set_xlabel("step" if x == "step" else "training time in seconds")
    axes.set_ylabel(y_label)
    axes.margins(x=0.02)


def _told(run: History, column: str, what: str) -> str:
    values, steps = run.validation[column], run.validation["step"]
    if not len(values):
        return f"{run.name}: no validation"
    if len(values) == 1:
        return f"{run.name}: {what} {values[0]:.4f} at step {steps[0]:.0f}"
    return f"{run.name}: {what} from {values[0]:.4f} at step {steps[0]:.0f} to {values[-1]:.4f} at step {steps[-1]:.0f}"
