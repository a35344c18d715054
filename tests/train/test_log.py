"""The files of a run that goes on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from jgolf.errors import JgolfError
from jgolf.train.log import RunLog


def _write(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.train_step(step, 40, 2.0, 0.5 * step, every=10)
        log.metrics(step=step, train_loss=2.0)
        if step % 10 == 0:
            log.validation(step, 40, 1.5, 0.9, 0.5 * step)
        if step >= 12:
            log.line_once("late_qat:enabled", f"step:{step} scale:0.1000")


def test_resumed_files_hold_each_step_once(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    _write(RunLog(whole), 1, 40)
    _write(RunLog(parts), 1, 33)
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 34, "train_l')  # killed in the middle of a line
    for name in ("train.log", "metrics.jsonl"):
        assert (parts / name).read_text() != (whole / name).read_text()
    log = RunLog(parts, resume_step=20)
    assert log.holds_validation(20) and not log.holds_validation(30)
    assert log.last_bpb == 0.9 and RunLog(tmp_path / "new").last_bpb is None
    _write(log, 21, 40)
    for name in ("train.log", "metrics.jsonl"):
        assert (parts / name).read_text() == (whole / name).read_text()


def test_what_is_not_ours_is_kept_and_counts_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _write(RunLog(tmp_path), 1, 12)
    with (tmp_path / "train.log").open("ab") as file:
        file.write(b"a note in Latin-1: caf\xe9\n \t\nstep:" + b"9" * 5000 + b"\n")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        lines = ["[" * 100_000, '{"step": "5"}', '{"step": NaN}', '{"step": ' + "9" * 5000 + "}", "3", "{}"]
        file.write("\n".join(lines) + "\n")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    RunLog(tmp_path, resume_step=10)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "metrics.jsonl:14: not the metrics of a step: b'[[[[" in said
    assert "(6 lines in all)" in said and len(said) < 500
    assert (tmp_path / "metrics.damaged-1.jsonl").read_bytes() == before
    RunLog(tmp_path, resume_step=10)
    assert not capsys.readouterr().err and len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / "train.log").read_bytes().endswith(b"caf\xe9\n \t\nstep:" + b"9" * 5000 + b"\n")
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 11), 10]


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "train.log").mkdir()
    with pytest.raises(JgolfError, match="train.log: cannot be read: Is a directory"):
        RunLog(tmp_path, resume_step=10)


def test_a_writer_that_cannot_close_hides_no_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Full:
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    log = RunLog(tmp_path)
    log.attach(Full())
    with pytest.raises(JgolfError, match="the first error"), contextlib.closing(log):
        raise JgolfError("the first error")
    assert "Full cannot be closed: [Errno 28]" in capsys.readouterr().err


def test_lines_are_those_of_the_challenge(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.train_step(500, 20000, 2.39551, 42.1051, every=500)
    log.validation(500, 20000, 2.5, 1.25, 42.1051)
    assert (tmp_path / "train.log").read_text().splitlines() == [
        "step:500/20000 train_loss:2.3955 train_time:42105ms step_avg:84.21ms",
        "step:500/20000 val_loss:2.5000 val_bpb:1.2500 train_time:42105ms step_avg:84.21ms",
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["val_bpb"] == 1.25


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _write(RunLog(tmp_path, is_main=False), 1, 20)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_full_disk_is_named(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    log = RunLog(tmp_path)
    log._files["metrics.jsonl"] = open(full, "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(JgolfError, match="/dev/full: cannot be written: No space left on device.*--resume"):
        log.metrics(step=1)
