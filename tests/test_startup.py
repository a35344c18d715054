"""Help comes at once: without JAX, which takes seconds to import."""

import subprocess
import sys

PROGRAM = """
import contextlib, io, sys
from jgolf.cli import main
for words in (["train"], ["sweep"], ["export"], ["report"], ["compare"], ["data", "pack"], ["data", "inspect"]):
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert "usage" in shown.getvalue(), words
    slow = {"jax", "flax", "orbax", "scipy.stats", "matplotlib", "torch"} & set(sys.modules)
    assert not slow, (words, slow)
"""


def test_help_imports_nothing_slow():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
