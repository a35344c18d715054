"""Where the commands `jgolf`, `python -m jgolf`, `train.py` and `export.py` begin."""

from __future__ import annotations

from jgolf.importing import ended_by_interrupts


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns its exit code; see `jgolf.cli.main`, which takes a moment to import."""
    with ended_by_interrupts():
        from jgolf.cli import main as run

    return run(argv)
