"""`export.py RUN_DIR [options]`."""

from __future__ import annotations

import sys

from jgolf.export.options import read_command
from jgolf.importing import ended_by_interrupts


def export(argv: list[str], prog: str = "export.py") -> int:
    """Parses the command line and exports; returns the exit code."""
    options, config = read_command(argv, prog)
    with ended_by_interrupts():
        from jgolf.export.run import export_and_tell  # JAX starts only when there is something to export

    return export_and_tell(config, options)


export.parse_and_call = lambda prog, argv: export(argv, "export.py" if sys.argv[0].endswith("export.py") else prog)
