"""What of the source a module needs: a package written for the purpose, and our own."""

import subprocess
import sys

import pytest

from jgolf.artifact import submission
from jgolf.artifact.code import ADAPTING_MODULE, SCORING_MODULES, needed_code
from jgolf.config import AdaptedConfig
from jgolf.errors import ArtifactError

PACKAGE = {
    "__init__.py": '"""The package."""\n',
    "score.py": (
        '"""Scores."""\nimport os\nimport golf.shapes\nfrom golf.model.net import run as go\n'
        "def main():\n    # how it goes\n    go()  # now\n    return golf.shapes.SIDES, getattr(os, 'sep')\n"
    ),
    "shapes.py": "from golf import unused\nSIDES = 4\nMORE: int = 5\ndef area():\n    from golf import lazy_unused\n",
    "model/__init__.py": "from . import act\n",
    "model/act.py": "act = 1\n",
    "model/net.py": (
        "from ..names import table, chair\nfrom golf.names import (\n    stool,\n)\n"
        "def run():\n    '''Runs.'''\n    from golf import lazy\n    return lazy.Loader('by_name').read(key=table)\n"
        "def train():\n    from golf import train_only\n    chair()\n    stool()\n"
    ),
    "names.py": "def table(): pass\ndef chair(): pass\ndef stool(): pass\nprint('always')\n",
    "lazy.py": (
        "import golf.deep as deep\nclass Base:\n    '''Only a docstring.'''\n\n\n"
        "class Loader:\n    '''Reads.'''\n    size: int = deep.x\n    '''Of it.'''\n"
        "    def __init__(self, name): pass\n    def read(self, key):\n        from golf.deeper import y\n"
        "    @property\n    def by_name(self): pass\n    @staticmethod\n    def unread(): pass\n"
        "class Left:\n    '''Not empty.'''\n    def unread(self): pass\n    def unread_too(self): pass\n"
        "class Child(Base):\n    def read(self, key): pass\n    def unread(self): pass\n"
        "class Foreign(int):\n    def unread(self): pass\nclass Heir(Foreign):\n    def unread(self): pass\n"
        "CHILD = Child\nprint(Base, CHILD, Left, Heir)\n"
    ),
    "deep.py": "x = 1\n",
    "deeper.py": "y = 1\nz = 2\n",
    "train_only.py": "",
    "lazy_unused.py": "",
    "unused.py": "",
}


@pytest.fixture
def package(tmp_path):
    for name, text in PACKAGE.items():
        path = tmp_path / "golf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_follows_what_is_used_and_nothing_else(package):
    found = {path.removeprefix("golf/"): text for path, text in needed_code(["golf.score"], package).items()}
    assert found == {
        "__init__.py": "",
        "score.py": (
            "import os\nimport golf.shapes\nfrom golf.model.net import run as go\n"
            "def main():\n    go()  # now\n    return golf.shapes.SIDES, getattr(os, 'sep')\n"
        ),
        "shapes.py": "SIDES = 4\n",
        "model/__init__.py": "",
        "model/net.py": (
            "from ..names import table\ndef run():\n    from golf import lazy\n"
            "    return lazy.Loader('by_name').read(key=table)\n"
        ),
        "names.py": "def table(): pass\nprint('always')\n",
        "lazy.py": (
            "import golf.deep as deep\nclass Base:\n    '''Only a docstring.'''\n\n"
            "class Loader:\n    size: int = deep.x\n    def __init__(self, name): pass\n"
            "    def read(self, key):\n        from golf.deeper import y\n    @property\n    def by_name(self): pass\n"
            "class Left:\n    def unread(self): pass\n"
            "class Child(Base):\n    def read(self, key): pass\n"
            "class Foreign(int):\n    def unread(self): pass\nclass Heir(Foreign):\n    def unread(self): pass\n"
            "CHILD = Child\nprint(Base, CHILD, Left, Heir)\n"
        ),
        "deep.py": "x = 1\n",
        "deeper.py": "y = 1\n",
    }


def test_an_entry_is_needed_whole(package):
    found = needed_code(["golf.shapes"], package)
    assert {path.rpartition("/")[2] for path in found} == {"__init__.py", "shapes.py", "lazy_unused.py"}
    assert "MORE: int = 5" in found["golf/shapes.py"] and "import unused\n" not in found["golf/shapes.py"]


def test_an_unknown_entry_is_named(package):
    with pytest.raises(ArtifactError, match="no module golf.nothing"):
        needed_code(["golf.nothing"], package)


CHECK = """
import ast, builtins, dis, importlib, sys, types
from pathlib import Path

def codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)

checked = 0
for path in sorted(Path().rglob("*.py")):
    parts = path.with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert Path(module.__file__).is_relative_to(Path.cwd()), module
    text = path.read_text()
    for code in codes(compile(text, str(path), "exec")):
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and code.co_name != "<module>":
                name = instruction.argval
                in_class = instruction.opname == "LOAD_NAME"
                assert hasattr(module, name) or hasattr(builtins, name) or in_class, (path, code.co_name, name)
                checked += 1
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = getattr(module, node.value.id, None)
            if isinstance(owner, types.ModuleType) and owner.__name__.startswith("jgolf"):
                assert hasattr(owner, node.attr), (path, node.value.id, node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jgolf"):
            for alias in node.names:
                if not hasattr(importlib.import_module(node.module), alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
print(checked)
"""


@pytest.mark.parametrize("entry", [*SCORING_MODULES, ADAPTING_MODULE])
def test_every_name_that_the_scoring_code_uses_is_there(entry, tmp_path):
    """Not only on the way that scoring a submission takes, which the tests of exports do."""
    for name, text in needed_code([entry]).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shown = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert int(shown.stdout) > 1000


def test_it_has_its_share_of_the_bytes():
    assert submission.code_bytes() <= 45_000 and submission.code() == submission.code()
    assert submission.code_bytes(AdaptedConfig()) <= 59_200
