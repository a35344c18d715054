"""Help comes at once: without JAX, which takes seconds to import; and Ctrl-C in an import ends a command."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jgolf.cli import main
from jgolf.errors import EXIT_INTERRUPTED
from jgolf.importing import ended_by_interrupts

ROOT = Path(__file__).parents[1]

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


INTERRUPTED = """
import os, runpy, signal, sys
_, module, *sys.argv = sys.argv
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it may be ignored
target = sys.argv[0]
class Interrupting:
    def find_spec(name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
(runpy.run_path if target.endswith(".py") else runpy.run_module)(target, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("jgolf.cli", ["jgolf", "train"]),
        ("rich.console", ["train.py"]),
        ("tyro", ["export.py", "--help"]),
        ("jax", ["jgolf", "sample", "--help"]),
        ("jaxlib", ["train.py", "demo", "--data", "tests", "--run-dir", "nowhere"]),
    ],
)
def test_ctrl_c_in_an_import_shows_no_stack_trace(module, words):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, module, *words], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, "", "interrupted\n")


def test_ctrl_c_that_is_somebody_else_s_stays_so():
    for handler in (signal.SIG_IGN, lambda *_: None):
        before = signal.signal(signal.SIGINT, handler)
        try:
            with ended_by_interrupts():
                assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)
    with ThreadPoolExecutor(1) as pool, ended_by_interrupts():
        pool.submit(main, ["--version"]).result()
