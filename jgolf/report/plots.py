"""What a plot for a paper is: a PNG or an SVG.

Runs are told apart by colour and by the kind of line, so that neither colour vision nor a colour
printer is needed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jgolf.errors import MissingExtraError
from jgolf.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_INCHES = (5.4, 3.5)
PIXELS_PER_INCH = 200
LINE_STYLES = ("-", "--", "-.", ":")
LEGEND_LINE_INCHES = 0.2
LEGEND_CHARS = 76  # in a line
LEGEND_MARK_CHARS = 10  # that a name's mark and the space around it take
LONGEST_NAME = 60  # characters; of longer ones the end is shown


@dataclass(frozen=True)
class Theme:
    """Colours of one ground; the lines' follow Okabe and Ito's palette for all kinds of colour vision."""

    name: str
    ground: str
    text: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1f2328",
    "#d8dee4",
    ("#0072b2", "#d55e00", "#007a5a", "#a3417f", "#9a6a00", "#3b8fc4", "#444444"),
)
DARK = Theme(
    "dark",
    "#161b22",
    "#e6edf3",
    "#30363d",
    ("#56b4e9", "#ff8f4d", "#2cc69a", "#e79fcb", "#f0b93a", "#9ad7ff", "#d0d7de"),
)


@dataclass(frozen=True)
class Plot:
    """A plot: a file name without its ending, a title, the text for those who do not see it, and how to draw it."""

    name: str
    title: str
    alt: str
    draw: Callable[[Figure, Theme], None]

    def image(self, form: Literal["png", "svg"], theme: Theme = LIGHT) -> bytes:
        """The plot as a file of that form."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(_style(theme)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # of a name: it is shown as a box
            figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
            self.draw(figure, theme)
            _legend(figure)
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=PIXELS_PER_INCH, metadata={"Date": None} if form == "svg" else None)
        return file.getvalue()


def require_matplotlib() -> None:
    """Raises MissingExtraError where the plotting package is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "jgolf report") from None


def placed(runs: Sequence[History]) -> list[tuple[int, History]]:
    """Each run with its place among the legends, which decides its colour."""
    legends = list(dict.fromkeys(run.legend for run in runs))
    return [(legends.index(run.legend), run) for run in runs]


def line(theme: Theme, index: int) -> tuple[str, str]:
    """Colour and kind of line of the runs with this place."""
    return theme.lines[index % len(theme.lines)], LINE_STYLES[index % len(LINE_STYLES)]


def label_of(run: History) -> str:
    """What the legend calls the run; matplotlib leaves out what begins with an underscore."""
    return f" {run.legend}" if run.legend.startswith("_") else run.legend


def shortened(name: str) -> str:
    """The end of a name that is too long for a plot."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _style(theme: Theme) -> dict[str, object]:
    return {
        "figure.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.grid,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "grid.color": theme.grid,
        "axes.grid": True,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.4,
        "hatch.linewidth": 0.5,
        "text.parse_math": False,  # a run's name may hold dollars
    }


def _legend(figure: Figure) -> None:
    """The runs' names where there are several: above the plot, where no line can cross them."""
    marks, names = figure.axes[0].get_legend_handles_labels()
    of_name = dict(zip(names, marks, strict=True))
    names, marks = list(of_name), list(of_name.values())
    if len(names) < 2:
        return
    shown = [shortened(name) for name in names]
    columns = max(1, min(len(names), LEGEND_CHARS // (max(map(len, shown)) + LEGEND_MARK_CHARS)))
    figure.legend(marks, shown, loc="outside upper left", ncols=columns)
    width, height = FIGURE_INCHES
    figure.set_size_inches(width, height + LEGEND_LINE_INCHES * -(-len(names) // columns))
