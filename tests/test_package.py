"""What is published: wheel and source distribution, and a wheel that was installed, outside the repository."""

from __future__ import annotations

import email
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from jgolf import __version__
from jgolf.artifact import submission

ROOT = Path(__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "jgolf").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
CONFIGS = {path.name for path in (ROOT / "configs").glob("*.py")}
PROGRAM = """
import hashlib, json
import jgolf
from jgolf.artifact import submission
print(json.dumps([jgolf.__file__, hashlib.sha256(submission.package()).hexdigest(), submission.code_bytes()]))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of the wheel and the source distribution, the wheel built from the latter."""
    for name in ("build", "hatchling"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The programs of a virtual environment with the wheel; packages that it needs are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    run([*pip, "--no-deps", "--no-index", str(next(built.glob("*.whl")))], folder)
    # A folder that a .pth file names is searched, but no .pth file in it is read, an editable jgolf's for one.
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_its_configs_and_its_licence(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = f"jgolf-{__version__}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{about}/METADATA"))
        assert wheel.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert names == SOURCES | {f"jgolf/configs/{name}" for name in CONFIGS}
    assert metadata["Version"] == __version__ and metadata["License-Expression"] == "MIT"
    assert metadata.get_payload().startswith("# jgolf\n")


def test_the_source_distribution_holds_the_repository(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names > SOURCES | {f"configs/{name}" for name in CONFIGS} | {"train.py", "README.md", "CHANGELOG.md"}
    assert not {name.partition("/")[0] for name in names} & {"data", "runs", "report", "dist"}


def test_an_installed_wheel_works_outside_the_repository(installed, tmp_path):
    assert "usage: jgolf VERB" in run([str(installed / "jgolf"), "--help"], tmp_path)
    assert run([str(installed / "jgolf"), "--version"], tmp_path) == f"jgolf {__version__}\n"
    found, package, code_bytes = json.loads(run([str(installed / "python"), "-c", PROGRAM], tmp_path))
    assert Path(found).is_relative_to(installed.parent)
    assert (package, code_bytes) == (hashlib.sha256(submission.package()).hexdigest(), submission.code_bytes())
    run([str(installed / "jgolf"), "train", "demo", "--steps", "2", "--train.validate-every", "0"], tmp_path)
    assert json.loads((tmp_path / "runs" / "demo" / "config.json").read_text())["name"] == "demo"
    assert len((tmp_path / "runs" / "demo" / "metrics.jsonl").read_text().splitlines()) >= 2
