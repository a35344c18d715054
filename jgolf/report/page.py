"""The report's page: one HTML file that needs no other, for phones and desks, by day and by night."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #ffffff; --text: #1f2328; --soft: #59636e;
  --line: #d8dee4; --stripe: #f6f8fa; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --panel: #161b22; --text: #e6edf3; --soft: #9da7b1;
  --line: #30363d; --stripe: #1c2128; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.25rem clamp(0.75rem, 3vw, 2rem) 3rem; }
h1 { font-size: clamp(1.35rem, 4vw, 1.9rem); margin: 0.4rem 0 0.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.7rem; }
h3 { font-size: 1rem; margin: 0 0 0.35rem; }
p { margin: 0.3rem 0; max-width: 62rem; } .soft { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; margin: 0.6rem 0; }
a { color: var(--accent); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 0.8rem; border: 1px solid var(--line); border-radius: 0.5rem; background: var(--panel); }
figure img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 0.5rem; margin: 0.5rem 0 1rem; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.4rem 0.6rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; white-space: normal; vertical-align: bottom; line-height: 1.3; }
tbody tr { background: var(--panel); } tbody tr:nth-child(even) { background: var(--stripe); }
td.number, th.number { text-align: right; }
th[scope=row] { font-weight: 600; position: sticky; left: 0; background: inherit; }
@media (max-width: 40rem) {
  th[scope=row] { min-width: 6.5rem; max-width: 45vw; white-space: normal; overflow-wrap: anywhere; } }
details { margin: 0.8rem 0; } summary { cursor: pointer; padding: 0.3rem 0; }
"""


@dataclass(frozen=True)
class Table:
    """A table: its caption, the heads of its columns, and rows whose first cell is their head."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    """Behind a line that opens it."""


@dataclass(frozen=True)
class Picture:
    """A plot on both grounds, as PNG."""

    title: str
    alt: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def page(title: str, text: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    anchors = [f'<a href="#{_anchor(section)}">{escape(section.title)}</a>' for section in sections]
    text = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<header><h1>{escape(title)}</h1>",
            f'<p class="soft">{escape(text)}</p>',
            f'<nav aria-label="Parts of this page">{" ".join(anchors)}</nav></header>',
            *map(_section, sections),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )
    return text.encode(errors="replace").decode()  # paths among the settings may be no UTF-8


def _section(section: Section) -> str:
    anchor = _anchor(section)
    parts = [f'<section aria-labelledby="{anchor}">', f'<h2 id="{anchor}">{escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    parts += map(_table, section.tables)
    if section.pictures:
        parts += ['<div class="plots">', *map(_figure, section.pictures), "</div>"]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    numeric = [all(_is_number(row[column]) for row in table.rows) for column in range(len(table.heads))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    heads = "".join(f'<th scope="col"{kind}>{escape(head)}</th>' for head, kind in zip(table.heads, kinds, strict=True))
    rows = []
    for row in table.rows:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
        rows.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    text = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    if table.folded:
        return f"<details><summary>{escape(table.caption)}</summary>{text}</details>"
    return f'<p class="soft">{escape(table.caption)}</p>{text}'


def _figure(picture: Picture) -> str:
    light, dark = (base64.b64encode(data).decode() for data in (picture.light, picture.dark))
    return (
        f"<figure><figcaption><h3>{escape(picture.title)}</h3></figcaption><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
        f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{light}"></picture></figure>'
    )


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _is_number(text: str) -> bool:
    return (
        text == "–" or text.replace(",", "").replace(".", "").replace("−", "").replace("-", "").split(" ")[0].isdigit()
    )
