"""What a run says of how it was started."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import pytest

from jgolf.run_dir import STARTS_FILE
from jgolf.train.starts import commit, keep_start


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    return folder


def _git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_the_checkouts(package):
    root = package.parent
    assert commit(package) is None
    _git(root, "init", "-q")
    assert commit(package) is None  # a checkout, but not of this package: it may be installed in there
    _git(root, "add", ".")
    _git(root, "commit", "-qm", "x")
    head = _git(root, "rev-parse", "HEAD")
    assert commit(package) == head[:12]
    (root / "notes.txt").write_text("beside the package")
    assert commit(package) == head[:12]
    (package / "__init__.py").write_text("changed = True\n")
    assert commit(package) == head[:12] + "+"


def test_no_commit_without_git(package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit(package) is None


def test_each_start_is_a_line(tmp_path, monkeypatch):
    def starts():
        return [json.loads(line) for line in (tmp_path / STARTS_FILE).read_text().splitlines()]

    monkeypatch.setattr(sys, "argv", ["/where/ever/train.py", "demo", "--run-dir", "a b"])
    keep_start(tmp_path, jax.devices(), 0)
    (first,) = starts()
    assert first["command"] == "train.py demo --run-dir 'a b'" and first["first_step"] == 0
    assert first["hardware"] == f"{len(jax.devices())} × {jax.devices()[0].device_kind}"
    assert first["date"].endswith("+00:00")
    keep_start(tmp_path, jax.devices(), 5)
    assert [start["first_step"] for start in starts()] == [0, 5]
    keep_start(tmp_path, jax.devices(), 0)  # resumed before there was a checkpoint: nothing of before counts
    assert len(starts()) == 1
