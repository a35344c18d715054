"""The site of README.md, CHANGELOG.md and these pages: `sphinx-build -W -c docs . docs/_site`, by the extra `docs`.

The pages are read where they lie, so that their links to one another and to source files hold here and there.
"""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

from jgolf import __version__

project = "jgolf"
author = "The jgolf developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md"]
root_doc = "README"
html_theme = "furo"
html_title = f"jgolf {release}"
myst_heading_anchors = 3
smartquotes = False
default_role = "code"
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # of types called as some attribute is: bytes
autodoc_default_options = {"members": True, "member-order": "bysource"}

PAGES = (
    "own-text",
    "cluster",
    "quantization",
    "evaluation",
    "audit",
    "compression",
    "recipe",
    "research",
    "performance",
    "reference",
)
"""As the README lists them."""


def add_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Gives the README its menu, which would be a block of code where it is read as it is."""
    if name == root_doc:
        listed = "\n".join([*(f"docs/{page}" for page in PAGES), "CHANGELOG"])
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def add_index(app: Sphinx, error: Exception | None) -> None:
    """The README is what a folder's address shows."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keeps the lines of a docstring's indented blocks, which are code, formulas and tables."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's own words for a NamedTuple's field
        lines.clear()
    for at in range(len(lines) - 1, 1, -1):
        if lines[at].startswith("    ") and not lines[at - 1] and lines[at - 2][:1].strip():
            lines[at:at] = ["::", ""]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_written, priority=400)  # before napoleon's
    app.connect("source-read", add_pages)
    app.connect("build-finished", add_index)
