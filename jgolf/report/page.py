"""The report's page: one HTML file that needs no other, for phones and desks, by day and by night."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from jgolf.errors import MissingExtraError
from jgolf.report.charts import json_in_html
from jgolf.report.plots import DARK, LIGHT, Theme
from jgolf.report.tables import Table, csv_text


class Bar(NamedTuple):
    """How much of a limit is used."""

    text: str
    percent: float
    """At most 100."""
    is_over: bool


@dataclass(frozen=True)
class Card:
    """The verdict on a group of runs.

    Attributes:
      group: its place among the groups.
      place: its place among the legends, which decides its colour.
      name, score, kind: what it is, its bits per byte, and of what.
      lines: further figures.
      told: what its seeds say against the baseline; "" for a single group.
      bars: bytes and seconds, of what the challenge allows.
    """

    group: int
    place: int
    name: str
    score: str
    kind: str
    lines: Sequence[str]
    told: str
    bars: Sequence[Bar]


class Sample(NamedTuple):
    """A text that a run's weights wrote: what it is, what was given, and how it went on."""

    caption: str
    prompt: str
    rest: str


class Download(NamedTuple):
    """A file that is within the page: its name and its address there."""

    name: str
    address: str


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str = ""
    cards: Sequence[Card] = ()
    tables: Sequence[Table] = ()
    csv: Download | None = None
    forests: Sequence[tuple[str, str]] = ()
    """Names and headings of the charts of means and intervals."""
    has_curves: bool = False
    has_levels: bool = False
    samples: Sequence[Sample] = ()

    @property
    def anchor(self) -> str:
        return "part-" + self.title.lower().replace(" ", "-")


def page(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    baselines: Sequence[tuple[str, int]],
    data: Mapping[str, Any],
    refresh_s: int = 0,
) -> str:
    """The whole page.

    Args:
      title, subtitle: what stands above it.
      sections: its parts.
      baselines: names of the groups that others can be compared with, and their places.
      data: what the page's script draws; see `charts.chart_data`.
      refresh_s: seconds after which the browser loads it again; 0 for never.

    Raises:
      MissingExtraError: Jinja2 is not installed.
    """
    text = _template().render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        baselines=baselines,
        baseline=data["baseline"],
        data=_markup(json_in_html({**data, "colors": len(LIGHT.lines)})),
        refresh_s=refresh_s,
        style=_markup(_style()),
        library=_markup(_library()),
        script=_markup(_script()),
    )
    return text.encode(errors="replace").decode()  # paths among the settings may be no UTF-8


def download(name: str, table: Table) -> Download:
    """A table as a CSV file within the page."""
    return Download(name, f"data:text/csv;charset=utf-8,{urllib.parse.quote(csv_text(table))}")


def require_jinja() -> None:
    """Raises MissingExtraError where the template package is missing."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise MissingExtraError("jinja2", "report", "jgolf report") from None


@cache
def _template():
    require_jinja()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    return environment.from_string(_asset("page.html.jinja"))


def _markup(text: str):
    """Text that is HTML, script or style already."""
    from markupsafe import Markup

    return Markup(text)


def _style() -> str:
    """The page's rules, and its colours by day and by night."""
    day = _colors(LIGHT, "#ffffff", "#f6f8fa", "#59636e", "#0072b2", "#b3261e", "#1a6b3c")
    night = _colors(DARK, "#0d1117", "#1c2128", "#9da7b1", "#56b4e9", "#ff7b72", "#4fd08a")
    return (
        f":root {{ color-scheme: light dark; {day} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {night} }} }}\n"
        f"{_asset('page.css')}{_asset('uPlot.min.css')}"
    )


def _colors(theme: Theme, ground: str, stripe: str, soft: str, accent: str, warning: str, good: str) -> str:
    named = {"ground": ground, "panel": theme.ground, "text": theme.text, "line": theme.grid, "stripe": stripe}
    named |= {"soft": soft, "accent": accent, "warning": warning, "good": good}
    named |= {f"line-{number}": color for number, color in enumerate(theme.lines)}
    return " ".join(f"--{name}: {value};" for name, value in named.items())


def _library() -> str:
    """uPlot with its license in place of the comment with its address: the page names no other."""
    return f"/*\nuPlot 1.6.32\n\n{_asset('uPlot.LICENSE')}\n*/\n{_asset('uPlot.iife.min.js').partition('*/')[2]}"


def _script() -> str:
    """What the page does, in one scope."""
    return f"(() => {{\n'use strict';\n{_asset('curves.js')}{_asset('page.js')}}})();\n"


def _asset(name: str) -> str:
    return resources.files("jgolf.report").joinpath("assets", name).read_text(encoding="utf-8")
