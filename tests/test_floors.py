"""The order in which the package is built, as the README's map draws it: nothing knows of what stands above it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import jgolf

ROOT = Path(jgolf.__file__).parent
FLOORS = (
    # what everything stands on
    *("__init__", "importing", "errors", "watch", "run_dir", "compiling", "reading", "encoding", "options"),
    *("output", "files", "lock", "progress", "programs"),
    # what a run is, and what becomes of each parameter
    *("config", "rules"),
    # text, the network, its updates, its storage forms, its scores
    *("data", "model", "optim", "quantize", "evaluate", "artifact", "compress"),
    # whole runs, and models from any file
    *("train", "torch_bridge", "load", "export"),
    # what is done with them
    *("api", "audit", "history", "compare", "sweep", "report", "bench", "doctor", "new", "serve"),
    # the command line
    *("verbs", "completion", "cli", "start", "__main__"),
)
"""Folders and files of the package; each may import those before it, inside functions too."""
HEIGHT = {name: number for number, name in enumerate(FLOORS)}


def _modules() -> dict[str, Path]:
    """Dotted name → source file of everything in the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(module: str) -> Iterator[str]:
    """Modules of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are written from the package's name on"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from {name if name in MODULES else node.module} & MODULES.keys()


def _floor(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_the_order_names_everything_once() -> None:
    assert sorted(FLOORS) == sorted({_floor(module) for module in MODULES})


def test_the_readme_draws_this_order() -> None:
    """The map's lines go down; names on one line stand side by side."""
    text = (ROOT.parent / "README.md").read_text(encoding="utf-8")
    inside = text.partition("\njgolf/\n")[2].partition("\ntests/")[0].splitlines()
    lines = [re.match(r"  ((?:\w+(?:/|\.py) +)+)", line) for line in inside]
    drawn = [re.findall(r"\w+(?=/|\.py)", line[1]) for line in lines if line]
    assert sorted(sum(drawn, [])) == sorted({*FLOORS} - {"__init__", "__main__"})
    for above, below in pairwise(drawn):
        assert min(map(HEIGHT.get, above)) > max(map(HEIGHT.get, below)), (above, below)


def test_no_import_runs_up() -> None:
    upward = {
        (module, _floor(imported))
        for module in MODULES
        for imported in _imports(module)
        if HEIGHT[_floor(imported)] > HEIGHT[_floor(module)]
    }
    assert upward == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter({module: set(_imports(module)) - {module} for module in MODULES}).prepare()


OBSERVED = """
import contextlib, importlib, json, logging, os, random, signal, sys, threading, warnings
import numpy

for other in json.loads(sys.argv[2]):  # these may do as they like
    with contextlib.suppress(ImportError):
        importlib.import_module(other)
import jax

def observed():
    loggers = [logging.root, *(logging.getLogger(name) for name in ("absl", "asyncio", "flax", "jax", "orbax"))]
    plots = sys.modules.get("matplotlib")
    return {
        "signals": {int(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "hooks": [str(hook) for hook in (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook)],
        "logging": [[str(one), one.disabled, *map(str, one.handlers + one.filters)] for one in loggers],
        "environment": dict(os.environ),
        "warnings": list(map(str, warnings.filters)),
        "jax": {name: str(value) for name, value in jax.config.values.items()},
        "devices": list(jax._src.xla_bridge._backends),
        "matplotlib": plots and plots.get_backend(auto_select=False),
        "random numbers": [hash(random.getstate()), hash(str(numpy.random.get_state()))],
        "threads": [thread.name for thread in threading.enumerate()],
        "the rest": [os.getcwd(), sys.path, sys.getrecursionlimit(), str(sys.stdout), str(sys.stderr)],
    }

changed, before = {}, observed()
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
    except ImportError as error:  # of an extra that is not installed
        assert not error.name.startswith("jgolf"), error
    now = observed()
    differing = {name: [before[name], now[name]] for name in now if now[name] != before[name]}
    if differing:
        changed[module], before = differing, now
print(json.dumps(changed))
"""
OTHERS = (
    *("flax.nnx", "jax.experimental.pallas.mosaic_gpu", "optax", "orbax.checkpoint"),
    *("matplotlib.pyplot", "rich", "scipy.stats", "torch", "tyro"),
)


def test_an_import_leaves_the_process_as_it_was() -> None:
    """Handlers, hooks, logging, environment, warnings, JAX's settings and devices: a library touches none of them."""
    names = [name for name in MODULES if name != "jgolf.__main__"]
    done = subprocess.run(
        [sys.executable, "-c", OBSERVED, json.dumps(names), json.dumps(OTHERS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}
