"""What is measured on several devices: the arithmetic of its table, and the whole command on simulated ones."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from jgolf import config as configs
from jgolf.bench.cluster import command
from jgolf.bench.cluster.command import Budget, Job, share_of
from jgolf.bench.cluster.findings import Findings, steps_within
from jgolf.bench.cluster.lost import random_folder
from jgolf.bench.cluster.outcome import Outcome
from jgolf.bench.cluster.processes import Machine, Processes
from jgolf.bench.cluster.tokens import write_random_shard
from jgolf.bench.cluster.worker import Measured
from jgolf.bench.communication import Exchange
from jgolf.bench.report import Figure
from jgolf.bench.timing import Timing
from jgolf.bench.trace import CollectiveTime
from jgolf.cli import main
from jgolf.config import Config, TrainConfig
from jgolf.data.shards import open_shard
from jgolf.data.tokenizer import load_tokenizer
from jgolf.errors import ConfigError, JgolfError
from jgolf.train.mesh import device_batch_order
from tests.conftest import QUICK_COMPILATION

LOOPED = TrainConfig(steps=20_000, loop_start_fraction=0.35)


@pytest.mark.parametrize("steps", [20_000, 4_000, 2_500])
@pytest.mark.parametrize("cap_s", [600.0, 599.5])
def test_steps_within_a_cap(steps: int, cap_s: float) -> None:
    """Against a run, step by step: the loop is on from the part of its steps or of its time that comes first."""
    train = dataclasses.replace(LOOPED, steps=steps)
    done, elapsed_s = 0, 0.0
    while done < steps and elapsed_s < cap_s:
        looped = max(done / steps, elapsed_s / cap_s) >= train.loop_start_fraction
        elapsed_s += 0.1253 if looped else 0.0831
        done += 1
    assert steps_within(cap_s, train, 83.1, 125.3) == pytest.approx(done, abs=1)
    assert steps_within(cap_s, train, 300.0) == pytest.approx(min(steps, cap_s / 0.3))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulation", [1, 3, 8])
@pytest.mark.parametrize("devices", [2, 3, 4, 8])
def test_one_devices_share_is_laid_out_as_among_all(num_ranks: int, accumulation: int, devices: int) -> None:
    train = TrainConfig(
        batch_tokens=num_ranks * accumulation * 24 * 16, seq_len=16, num_ranks=num_ranks, accumulation=accumulation
    )
    if num_ranks * accumulation % devices and (num_ranks > devices or num_ranks * 24 % devices):
        with pytest.raises(ConfigError, match=f"{devices} devices cannot share a batch"):
            share_of(train, devices)
        return
    among, alone = device_batch_order(train, devices), device_batch_order(share_of(train, devices), 1)
    assert alone.accumulation == among.accumulation
    assert alone.micro_batch_rows == among.micro_batch_rows / devices


def _timing(ms: float) -> Timing:
    return Timing(ms, 0.9 * ms, 1.1 * ms, 3, 4)


def _found(devices: int, batch_tokens: int = 786_432) -> Findings:
    """Of a machine where a step takes 3 ms, 1 ms per 1,000 tokens of a device (1.5 with the loop), and 2 ms beside."""
    config = configs.load("pr1855")
    train = dataclasses.replace(config.train, batch_tokens=batch_tokens)

    def step(of_device: int, more: float = 0.0) -> dict[str, Timing]:
        return {kind: _timing(3 + more + a * of_device / 1000) for kind, a in (("plain", 1.0), ("looped", 1.5))}

    return Findings(
        config=dataclasses.replace(config, train=train),
        devices=devices,
        together=Measured(
            first_step_s=30.0,
            losses=[9.0, 8.0, 7.5],
            peak_gb=20.0,
            step_ms=step(batch_tokens // devices, 2),
            exchanges=[Exchange("all-reduce", "f32", 2, 120_000_000)],
            collectives=CollectiveTime(whole_ms=3.0, exposed_ms=1.0, least_whole_ms=2.5),
        ),
        apart=Measured(losses=[9.0, 8.001, 7.5], step_ms=step(batch_tokens // devices, 5)),
        share=Measured(step_ms=step(batch_tokens // devices)),
        whole=Measured(losses=[9.0, 8.0, 7.52], step_ms=step(batch_tokens)),
    )


def test_figures() -> None:
    found = _found(devices=4)
    values = {figure.name: figure.value for figure in found.figures()}
    share, whole = 3 + 196.608, 3 + 786.432
    together = "a step, 4 devices in one process"
    assert values[together] == share + 2
    assert values[f"{together}: of linear scaling"] == pytest.approx(100 * share / (share + 2))
    assert values[f"{together}: times as fast"] == pytest.approx(whole / (share + 2))
    apart = "a step with the loop, 4 processes of one device"
    looped = 3 + 1.5 * 196.608
    assert values[f"{apart}: of linear scaling"] == pytest.approx(100 * looped / (looped + 5))
    # On eight devices it would be the same fixed times and half of the tokens.
    eight = {figure.name: figure.value for figure in _found(devices=8).figures()}
    cap = "steps within the time cap"
    assert values[f"{cap}, estimated for 8 devices"] == pytest.approx(eight[f"{cap}, 8 devices in one process"])
    assert f"{cap}, estimated for 8 devices" not in eight
    assert eight[f"{cap}, 8 devices in one process"] == pytest.approx(
        599_500 * (0.35 / (5 + 98.304) + 0.65 / (5 + 1.5 * 98.304))
    )
    assert values["steps of the record, 8 devices"] == 4931
    assert values["of the step, not hidden"] == pytest.approx(100 / (share + 2))
    assert values["all-reduce of f32 in a step: bytes"] == 120
    assert values["largest difference of 3 losses, 4 processes against one process"] == pytest.approx(0.001)
    assert found.exceeded() == [
        "pr1855: largest difference of 3 losses, 4 devices against one device: 0.02 nats, expected at most 0.01"
    ]


def test_the_table_holds_what_there_is(tmp_path: Path) -> None:
    empty = Findings(configs.load("pr592"), 4)
    machine = Machine("gpu", "some GPU", 4, tmp_path)
    outcome = Outcome(machine, "jgolf bench cluster", [empty, _found(4)], ["random tokens"] * 2, ["a note"])
    outcome.write(tmp_path)
    lines = (tmp_path / "cluster.md").read_text().splitlines()
    assert lines[0].startswith("4 × some GPU, JAX ") and "pr1855 on random tokens, 786,432 a step, bfloat16" in lines[0]
    assert "| a step, 4 devices in one process | – | 201.6 (181.4–221.8) ms |" in lines
    assert "| steps of the record, 8 devices | 4,973 | 4,931 |" in lines
    assert lines[-1] == "- a note"
    stored = json.loads((tmp_path / "cluster.json").read_text())
    assert stored["devices"] == 4 and stored["notes"] == ["a note"]
    assert stored["findings"][1]["losses"]["whole"] == [9.0, 8.0, 7.52]
    assert Figure(**stored["findings"][1]["figures"][0]) == outcome.findings[1].figures()[0]


def test_what_fails_or_has_no_time_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        raise error

    outcome, limits = Outcome(Machine("cpu", "cpu", 2, tmp_path), "", [], []), []
    jobs = [
        Job("first", lambda limit_s: fail(JgolfError("no room"))),
        Job("second", lambda limit_s: fail(ValueError("odd"))),
        Job("third", limits.append),
    ]
    for job in jobs:
        command._do(job, outcome, Budget(100))
    assert limits == [pytest.approx(40, abs=1)]
    command._do(Job("fourth", limits.append), outcome, Budget(10))
    assert len(limits) == 1 and outcome.failed
    assert [note.partition(";")[0] for note in outcome.notes] == [
        "first: failed after 0 s: no room",
        "second: failed after 0 s: ValueError: odd",
        "fourth: not run: the budget's time is over",
    ]


def test_processes_are_not_waited_for_longer_than_allowed() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Processes([sleep], [dict(os.environ)]) as processes, pytest.raises(JgolfError, match="not done within 0 s"):
        processes.wait(0.2)
    assert processes.all[0].returncode == -9
    failing = [sys.executable, "-c", "import sys; print('a line'); sys.exit('error: no such thing')"]
    with Processes([failing], [dict(os.environ)]) as processes, pytest.raises(JgolfError) as error:
        processes.wait(30)
    assert str(error.value) == "the process ended with 1: no such thing"


def test_which_devices_a_process_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("gpu", "some GPU", 4, tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.environment(2)["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert machine.environment(2)["CUDA_VISIBLE_DEVICES"] == "4,5"
    processes = machine.environments()
    assert [one["LOCAL_RANK"] for one in processes] == ["0", "1", "2", "3"]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in processes} == {"4,5,6,7"}
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_other=1")
    simulated = dataclasses.replace(machine, platform="cpu")
    assert simulated.environment(2)["XLA_FLAGS"].split() == [
        "--xla_other=1",
        "--xla_force_host_platform_device_count=2",
    ]


def test_random_tokens(nano: Config, tmp_path: Path) -> None:
    write_random_shard(tmp_path / "x_train_000000.bin", nano, steps=200)
    tokens = np.asarray(open_shard(tmp_path / "x_train_000000.bin"))
    assert len(tokens) >= 200 * 520 and tokens[0] == 1 and tokens[tokens != 1].min() >= 2 and tokens.max() < 320
    assert np.mean(tokens == 1) == pytest.approx(1 / 957, rel=0.3)
    # As many from 2 to 19 as from 20 to 199: both are tenfold.
    small, large = (np.mean((tokens >= first) & (tokens < 10 * first)) for first in (2, 20))
    assert small == pytest.approx(large, rel=0.05)
    random_folder(nano, tmp_path / "folder")
    assert load_tokenizer(tmp_path / "folder" / "random.model").vocab_size == nano.model.vocab_size


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--devices", "1"], "--devices is 1: expected 2 or more"),
        (["--runs", "0"], "--runs is 0: expected at least 1"),
        (["--budget-s", "nan"], "--budget-s is nan: expected seconds, more than 0"),
        (["--data", "a", "b"], "--data names 2 folders for 1 configs: expected one for each"),
        (["--data", "none"], "none: no such data folder"),
        (["--batch-tokens", "100"], "train.batch_tokens is 100: expected a multiple of"),
    ],
)
def test_bad_options(nano_path: str, options: list[str], text: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "cluster", "--config", nano_path, *options]) == 2
    assert text in capsys.readouterr().err


def test_ranks_that_devices_cannot_share_are_others() -> None:
    subjects = [command.Subject(configs.load(name), None) for name in ("pr592", "best")]
    (same, other), notes = command._shared_out(subjects, 4)
    assert same == subjects[0]
    assert other.config.train == dataclasses.replace(subjects[1].config.train, num_ranks=4)
    assert device_batch_order(other.config.train, 4).rows_per_run == 1
    assert notes == ["best: with --train.num-ranks 4, as 4 devices cannot share its own"]
    with pytest.raises(ConfigError, match="5 devices cannot share a batch of 1 micro-steps × 1 ranks × 1 rows of doc"):
        command._shared_out(subjects[1:], 5)
    for devices, advice in ((4, "change train.num_ranks to 4, train"), (5, "change train.num_ranks, train")):
        with pytest.raises(ConfigError, match=advice):
            device_batch_order(subjects[1].config.train, devices)


def _run(nano_path: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *options) -> dict:
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count=2 {QUICK_COMPILATION}")
    assert main(["bench", "cluster", "--config", nano_path, "--out", str(out), "--runs", "1", "--json", *options]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    return {figure["name"]: figure["value"] for figure in found["figures"]} | {"losses": found["losses"]}


def test_two_devices(
    nano_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["--parts", "speed", "losses", "collectives", "--losses", "4"]
    found = _run(nano_path, tmp_path / "out", monkeypatch, capsys, *options)
    share, together = found["a step, one device, a half of the tokens"], found["a step, 2 devices in one process"]
    scaling = found["a step, 2 devices in one process: of linear scaling"]
    assert scaling == pytest.approx(100 * share / together)
    losses = found["losses"]["together"]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.1  # they learn how frequent tokens are
    assert losses == pytest.approx(found["losses"]["whole"], rel=1e-4)
    assert found["all-reduce of f32 in a step: operations"] >= 1
    assert 0 < found["of it, not hidden behind other kernels"] <= found["collectives in a step, waiting included"]
    assert "| a step, 2 devices in one process | " in (tmp_path / "out" / "cluster.md").read_text()


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(
    nano_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["--parts", "losses", "processes", "lost", "--losses", "4"]
    found = _run(nano_path, tmp_path / "out", monkeypatch, capsys, *options)
    assert found["losses"]["apart"] == pytest.approx(found["losses"]["together"], rel=1e-4)
    assert found["a step, 2 processes of one device"] > 0
    assert found["a process killed: all others had ended after"] < 30
    assert found["resumed on 1 of 2 devices: step of the checkpoint"] % 10 == 0
    assert found["resumed on 1 of 2 devices: largest difference of their losses"] < 1e-4
    told = (tmp_path / "out" / "cluster.md").read_text()
    assert "process 0: process 1 of 2 is lost: it has ended. Process 0 ends too." in told
