"""Runs that are killed or asked to stop, and go on."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.data.shards import write_shard
from jgolf.errors import DataError
from jgolf.train.checkpoint import Checkpoints
from jgolf.train.same_data import check_same_data
from jgolf.train.signals import StopSignals
from jgolf.train.step import TrainState
from tests.train.runs import ROOT, Runs, finish, free_port, metrics, nano_config, several, wait_for

STEPS = 120


def _final_state(run_dir: Path) -> TrainState:
    checkpoints = Checkpoints(run_dir)
    assert checkpoints.latest_step == STEPS
    state, _ = checkpoints.restore(configs.read_json(run_dir / "config.json"))
    checkpoints.close()
    return state


def _complete_checkpoints(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.glob("checkpoints/*") if path.name.isdigit()]


def _logged_steps(run_dir: Path, kind: str) -> list[int]:
    return [int(step) for step in re.findall(rf"^step:(\d+)/\d+ {kind}", (run_dir / "train.log").read_text(), re.M)]


@pytest.mark.parametrize("times", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_several_times_ends_bit_identical(runs: Runs, tmp_path: Path, times: int) -> None:
    train = {"steps": STEPS, "warmdown_steps": 60, "validate_every": 40, "checkpoint_every_steps": 10}
    runs.train_here(tmp_path / "whole", **train)

    run_dir = tmp_path / "killed"
    random = np.random.default_rng(int(time.time()))  # the moments are to differ from one day to the next
    moments = [
        f"step:{random.integers(2, 7)}/",  # before the first checkpoint
        "checkpoint:saving",  # it is being written in the background
        *(f"step:{first + random.integers(20)}/" for first in (30, 60, 90)),
    ]
    expected = ""
    for count, moment in enumerate(moments[:times]):
        process = runs.train(run_dir, *(["--resume"] if count else []), **train)
        output = wait_for(process, moment)
        assert expected in output
        while count == 2 and process.poll() is None and not _complete_checkpoints(run_dir):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.01))
        process.kill()
        process.communicate()
        expected = "resumed after step" if _complete_checkpoints(run_dir) else "no checkpoint yet: starting from step 0"
    assert expected in runs.train_here(run_dir, "--resume")

    whole, killed = _final_state(tmp_path / "whole"), _final_state(run_dir)
    jax.tree.map(np.testing.assert_array_equal, killed, whole)
    assert metrics(run_dir, "train_loss") == metrics(tmp_path / "whole", "train_loss")
    assert list(metrics(run_dir, "val_bpb")) == [0, 40, 80, 120]
    assert metrics(run_dir, "val_bpb") == metrics(tmp_path / "whole", "val_bpb")
    assert _logged_steps(run_dir, "train_loss") == list(range(1, STEPS + 1))
    assert _logged_steps(run_dir, "val_loss") == [0, 40, 80, 120]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [str(STEPS - 10), str(STEPS)]


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop_saves_and_says_how_to_go_on(
    runs: Runs, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    run_dir = tmp_path / "run"
    process = runs.train(run_dir, steps=100_000, warmdown_steps=150, validate_every=100)
    wait_for(process, "step:7/")
    beside = runs.train_here(run_dir, "--resume", exit_code=2)
    assert f"{run_dir}: in use by process {process.pid} on " in beside
    process.send_signal(number)
    output = finish(process, exit_code)
    assert "asked to stop: what is trained is saved" in output
    assert f"jgolf train --resume --run-dir {run_dir}" in output
    assert str(tmp_path) not in (run_dir / "train.log").read_text()  # it may be published
    last = max(metrics(run_dir, "train_loss"))
    assert [int(path.name) for path in (run_dir / "checkpoints").iterdir()] == [last]
    output = runs.train_here(run_dir, "--resume", f"--train.steps={last + 5}")
    assert f"resumed after step {last}\n" in output
    assert list(metrics(run_dir, "train_loss")) == list(range(1, last + 6))

    before = metrics(run_dir, "train_loss")
    output = runs.train_here(run_dir, "--resume")  # nothing is left to train, and nothing is compiled
    assert "stopping: all steps done" in output and "compilation" not in output
    assert metrics(run_dir, "train_loss") == before
    output = runs.train_here(run_dir, "--resume", "--model.num-layers=3", "--train.steps=200000", exit_code=2)
    assert (
        f"would make another run of the one that is trained to step {last + 5}:\n  model.num_layers: was 1, now 3\n"
        in output
    )


def test_which_signals_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopSignals, "_leave", lambda self: None)
    as_found = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            before = signal.getsignal(number)
            with StopSignals(tmp_path) as signals:
                noted = threading.Event()
                signals.on_stop(noted.set)
                signal.raise_signal(number)
                assert noted.wait(60) and signals.received == number
            assert signal.getsignal(number) == before
    finally:
        signal.signal(signal.SIGHUP, as_found)


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(tmp_path) as signals:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signals.received is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_asked_to_stop_while_compiling(runs: Runs, tmp_path: Path) -> None:
    process = runs.train(tmp_path / "run")
    wait_for(process, "nano:")  # the line before compilation
    process.terminate()
    output = finish(process, 0)
    assert "nothing new to save" in output and "--resume" in output
    assert "ready" not in output


@pytest.mark.slow
def test_asked_to_stop_while_validating(runs: Runs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = runs.train(run_dir, "--evaluate.batch-tokens=32", steps=20, validate_every=10)
    wait_for(process, "step:10/20 train_loss")
    process.terminate()
    finish(process, 0)
    assert list(metrics(run_dir, "val_bpb")) == [0]
    finish(runs.train(run_dir, "--resume"))
    assert list(metrics(run_dir, "val_bpb")) == [0, 10, 20]
    assert list(metrics(run_dir, "train_loss")) == list(range(1, 21))


def _pair(runs: Runs, run_dir: Path, *options: str, **train: float) -> list[subprocess.Popen]:
    port = free_port()
    return [runs.train(run_dir, *several(2, index, port), *options, **train) for index in range(2)]


@pytest.mark.parametrize(
    "train",
    [
        {"checkpoint_every_steps": 1},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"checkpoint_every_s": 0.01}, marks=pytest.mark.slow),
        {"checkpoint_every_steps": 5, "time_cap_s": 1.0},
    ],
)
def test_two_processes_end_together_whenever_checkpoints_fall(runs: Runs, tmp_path: Path, train: dict) -> None:
    """Only the first one saves, and sees a stop or the cap no earlier than the other for that; one goes on alone."""
    run_dir = tmp_path / "run"
    pair = _pair(runs, run_dir, **{"steps": 100_000, "warmdown_steps": 150, "validate_every": 0} | train)
    if "time_cap_s" not in train:
        wait_for(pair[0], "step:7/")
        pair[1].terminate()  # it reaches the other with the next step
    output = finish(pair[0], within_s=90)
    finish(pair[1], within_s=90)
    last = max(metrics(run_dir, "train_loss"))
    assert f"step:{last}/100000" in [line for line in output.splitlines() if "step:" in line][-1]
    assert last in [int(path.name) for path in (run_dir / "checkpoints").iterdir()]
    if train in ({}, {"checkpoint_every_steps": 1}):
        runs.train_here(run_dir, "--resume", f"--train.steps={last + 5}")
        assert list(metrics(run_dir, "train_loss")) == list(range(1, last + 6))


@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_name_a_process_that_was_killed(runs: Runs, tmp_path: Path, lost: int) -> None:
    pair = _pair(runs, tmp_path / "run", steps=100_000, warmdown_steps=150, validate_every=0)
    wait_for(pair[0], "step:7/")
    pair[lost].kill()
    output = finish(pair[1 - lost], 4, within_s=60)
    assert f"process {lost} of 2 is lost" in output and "--resume" in output
    expected = "step:", "checkpoint:", "[Gloo]", f"process {1 - lost} of 2, by "
    after = [line for line in output.splitlines() if not line.startswith(expected)]
    assert len(after) == 1, output
    pair[lost].communicate()


@pytest.mark.slow
def test_the_commands_in_the_documentation(runs: Runs, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    (script,) = [block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "localhost" in block]
    configs.write_json(nano_config(runs.data_dir), tmp_path / "nano.json")
    for old, new in (
        ("demo", str(tmp_path / "nano.json")),
        ("runs/two", str(tmp_path / "two")),
        ("localhost:7733", f"localhost:{free_port()}"),
        ("python", sys.executable),
    ):
        assert old in script
        script = script.replace(old, new)
    subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, timeout=240)
    assert max(metrics(tmp_path / "two", "val_bpb")) == 20


@pytest.fixture
def hosts(runs: Runs, tmp_path: Path) -> list[Path]:
    """On hosts of their own, the same path may hold other files."""
    return [shutil.copytree(runs.data_dir, tmp_path / f"host{index}" / "data") for index in range(2)]


@pytest.mark.parametrize(("split", "told"), [("train", "2 train shards of 60,100"), ("val", "2 val shards of 6,100")])
def test_other_data_are_told_from_the_first_process_s(hosts: list[Path], split: str, told: str) -> None:
    said = []

    def check(folder: Path) -> None:
        peers = SimpleNamespace(count=2, exchange=lambda name, value: said.append(value) or said)
        check_same_data(nano_config(folder), peers)

    check(hosts[0])
    check(hosts[0])
    write_shard(hosts[1] / f"nano_{split}_000001.bin", np.zeros(100, np.uint16))
    with pytest.raises(DataError, match=f"other data for process 2, on .*{told}.*expected the same shards"):
        check(hosts[1])


def test_processes_with_other_data_say_so(runs: Runs, tmp_path: Path, hosts: list[Path]) -> None:
    write_shard(hosts[1] / "nano_train_000001.bin", np.zeros(100, np.uint16))
    configs.write_json(nano_config(Path("data")), tmp_path / "nano.json")
    port = free_port()
    pair = [
        runs.start(
            ROOT / "train.py",
            *(str(tmp_path / "nano.json"), "--run-dir", str(tmp_path / "run"), *several(2, index, port)),
            cwd=folder.parent,
        )
        for index, folder in enumerate(hosts)
    ]
    for process in pair:
        output = finish(process, 2, within_s=60)
        assert "other data for process 1, on " in output and "expected the same shards" in output
        assert "2 train shards of 60,100" in output
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_ends_the_others(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")  # looks like a run: only the first process uses the folder
    first, second = _pair(runs, tmp_path / "run")
    assert "already holds a run" in finish(first, 2)
    assert "process 0 of 2 is lost" in (output := finish(second, 4)) and "already holds a run" in output
