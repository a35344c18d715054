"""Which files a module needs: a package written for the purpose, and our own."""

import subprocess
import sys

import pytest

from jgolf.artifact.code import code_bytes, scoring_sources
from jgolf.errors import ArtifactError

PACKAGE = {
    "__init__.py": "",
    "score.py": "import os\nimport golf.shapes\nfrom golf.model.net import run as go\ndef main():\n    go()\n",
    "shapes.py": "def area():\n    from golf import unused_lazy\n",
    "model/__init__.py": "from . import act\n",
    "model/act.py": "",
    "model/net.py": (
        "from ..names import table\n"
        "def run():\n    from golf import lazy\n    return lazy.Loader()\n"
        "def train():\n    from golf import train_only\n"
    ),
    "names.py": "def table(): pass\n",
    "lazy.py": "class Loader:\n    def read(self):\n        from golf.deep import x\n",
    "deep.py": "x = 1\n",
    "train_only.py": "",
    "unused_lazy.py": "",
}


@pytest.fixture
def package(tmp_path):
    for name, text in PACKAGE.items():
        path = tmp_path / "golf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_follows_imports_and_only_the_lazy_ones_that_are_reached(package):
    sources = scoring_sources(["golf.score"], package)
    assert {str(path.relative_to(package / "golf")) for path in sources} == set(PACKAGE) - {
        "train_only.py",
        "unused_lazy.py",
    }
    assert code_bytes(sources) == sum(
        len(text) for name, text in PACKAGE.items() if name not in ("train_only.py", "unused_lazy.py")
    )


def test_an_entry_is_needed_whole(package):
    names = {path.name for path in scoring_sources(["golf.shapes"], package)}
    assert names == {"__init__.py", "shapes.py", "unused_lazy.py"}


def test_an_unknown_entry_is_named(package):
    with pytest.raises(ArtifactError, match="no module golf.nothing"):
        scoring_sources(["golf.nothing"], package)


def test_our_own_files_are_enough_to_read_an_artifact(tmp_path):
    from stored_examples import stored_example

    from jgolf.artifact import container

    container.write(tmp_path / "model.jgolf", container.pack(stored_example(), {"name": "x"}))
    sources = scoring_sources(["jgolf.artifact.container"])
    root = next(path.parents[1] for path in sources if path.parts[-2:] == ("jgolf", "__init__.py"))
    for source in sources:
        copy = tmp_path / source.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    program = (
        "from jgolf.artifact import container; from jgolf.quantize.stored import dequantize; "
        "print(len(dequantize(container.read('model.jgolf')[0])), container.__file__)"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.split()[0] == str(len(stored_example()))
    assert shown.stdout.split()[1].startswith(str(tmp_path))
