"""Help comes at once: without JAX, which takes seconds to import."""

import subprocess
import sys

import pytest

from jgolf.cli import main

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


LIST = "import sys; from jgolf.cli import main; main(['--help']); assert not {'tyro', 'jax'} & set(sys.modules)"


def test_the_list_of_verbs_imports_what_prints_it_alone():
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["help", "data", "pack"], ["data", "pack", "--help"]])
def test_help_of_a_verb(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert capsys.readouterr().out.startswith("usage: jgolf data pack ")


def test_help_imports_nothing_slow():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
