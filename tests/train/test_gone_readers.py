"""Runs whose output no one reads any more: a closed pipe, a dropped connection."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from jgolf import config as configs
from tests.train.runs import Runs, finish, metrics, nano_config, wait_for


def test_a_run_goes_on_to_its_end(runs: Runs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = runs.train(run_dir)  # as with `2>&1 | head -1`
    assert process.stdout.readline().startswith("nano:")
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert list(metrics(run_dir, "train_loss")) == list(range(1, 21))
    assert "stopping: all steps done" in (run_dir / "train.log").read_text()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["20"]


def test_a_terminal_that_is_gone_has_the_run_saved(runs: Runs, tmp_path: Path) -> None:
    def own_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    run_dir = tmp_path / "run"
    master, slave = pty.openpty()
    streams = {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": own_terminal}
    process = runs.train(run_dir, streams=streams, steps=100_000, warmdown_steps=150, validate_every=0)
    os.close(slave)
    shown = b""
    while b"step:7/" not in shown:
        shown += os.read(master, 4096)
    os.close(master)  # the kernel sends SIGHUP, and every further write fails
    try:
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
    last = max(metrics(run_dir, "train_loss"))
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [str(last)]


def _sweep(runs: Runs, folder: Path, steps: int) -> subprocess.Popen:
    configs.write_json(nano_config(runs.data_dir, steps=steps), folder / "nano.json")
    words = ("jgolf", "sweep", str(folder / "nano.json"), "--seeds", "2", "--out", str(folder / "sweep"))
    return runs.start("-m", *words)


def test_a_sweep_goes_on_to_its_end(runs: Runs, tmp_path: Path) -> None:
    process = _sweep(runs, tmp_path, 4)
    assert "2 runs of 4 steps" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert len(json.loads((tmp_path / "sweep" / "results.json").read_text())["runs"]) == 2
    assert not (tmp_path / "sweep" / ".lock").exists()


@pytest.mark.slow
def test_a_sweep_ends_in_order_when_its_terminal_is_gone(runs: Runs, tmp_path: Path) -> None:
    process = _sweep(runs, tmp_path, 100_000)
    wait_for(process, "step:7/")
    process.send_signal(signal.SIGHUP)
    assert "0 of 2 runs have results" in finish(process, 130)
