"""Folders that one process has to itself."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jgolf import config as configs
from jgolf.errors import JgolfError
from jgolf.lock import in_turn, locked
from jgolf.sweep.cli import sweep
from jgolf.verbs.export import export

HOLD = """
import sys, time
from jgolf.errors import JgolfError
from jgolf.lock import locked
try:
    with locked(sys.argv[1], "wait"):
        print("has it", flush=True)
        sys.stdin.read()
except JgolfError:
    print("refused", flush=True)
"""


def _holder(folder: Path) -> subprocess.Popen:
    """A process that has the folder until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_one_of_those_that_start_at_once(tmp_path: Path) -> None:
    processes = [_holder(tmp_path / "run") for _ in range(5)]
    assert sorted(process.stdout.readline() for process in processes) == ["has it\n"] + 4 * ["refused\n"]
    for process in processes:
        process.communicate(timeout=60)
    assert not list(tmp_path.iterdir())


def test_the_one_that_has_it_is_named(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    assert process.stdout.readline() == "has it\n"
    with pytest.raises(JgolfError, match=rf"{tmp_path}: in use by process {process.pid} on .* since .*; wait"):
        locked(tmp_path, "wait").__enter__()
    process.communicate(timeout=60)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    assert process.stdout.readline() == "has it\n"
    process.kill()
    process.communicate(timeout=60)
    with locked(tmp_path, "wait"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_else_is_there_stays(tmp_path: Path) -> None:
    with locked(tmp_path / "new", "wait"):
        (tmp_path / "new" / "train.log").write_text("a line")
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty", "wait"):
        pass
    assert {path.name for path in tmp_path.rglob("*")} == {"new", "train.log", "empty"}


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, "wait"):
        pass
    assert "no lock: Function not implemented" in capsys.readouterr().err


def test_a_sweep_keeps_to_itself(tmp_path: Path) -> None:
    with locked(tmp_path / "sweep", "wait"), pytest.raises(JgolfError, match="in use by process .* another --out"):
        sweep(["demo", "--out", str(tmp_path / "sweep")])


def test_an_export_keeps_to_itself(tmp_path: Path) -> None:
    configs.write_json(configs.load("demo"), tmp_path / "config.json")
    unscored = tmp_path / "artifact" / "unscored.jgolf"
    with locked(tmp_path / "artifact", "wait"):
        unscored.write_bytes(b"of the other export")
        with pytest.raises(JgolfError, match="artifact: in use by process"):
            export([str(tmp_path)])
        assert unscored.exists()


def test_one_after_the_other(tmp_path: Path) -> None:
    """Of threads that each read, wait and write, none loses what another wrote."""
    kept = tmp_path / "kept"
    kept.write_text("")

    def add(text: str) -> None:
        with in_turn(tmp_path):
            before = kept.read_text()
            time.sleep(0.01)
            kept.write_text(before + text)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, "abcdefgh"))
    assert sorted(kept.read_text()) == list("abcdefgh")
    with pytest.raises(JgolfError, match="nothing: cannot be read: No such file"), in_turn(tmp_path / "nothing"):
        pass
