"""Runs trained side by side against the same runs trained alone."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.artifact.container import pack
from jgolf.cli import main
from jgolf.config import Config, load
from jgolf.config.parts import PARTS
from jgolf.data.batches import BatchOrder
from jgolf.data.shards import TokenStream, find_shards
from jgolf.evaluate.validation import Validation
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import dequantize
from jgolf.sweep import train as sweep_train
from jgolf.sweep.grid import make_runs
from jgolf.sweep.program import SweepProgram
from jgolf.train.averages import averaged_params
from jgolf.train.step import TrainState, new_state, train_step
from tests.conftest import QUICK_COMPILATION, relative_distances

SETTINGS = {
    "model.num_layers": 1,
    "model.model_dim": 32,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.bigram_buckets": 64,
    "model.bigram_dim": 16,
    "model.xsa_layers": (0,),
    "model.value_embedding_layers": (0,),
    "model.value_embedding_dim": 16,
    "train.steps": 8,
    "train.warmdown_steps": 8,
    "train.batch_tokens": 256,
    "train.seq_len": 32,
    "optim.muon.newton_schulz_steps": 2,
    "average.swa_every": 1,
    "average.export": "ema+swa",
    "evaluate.max_tokens": 1024,
    "evaluate.batch_tokens": 1024,
    "data.build_demo": False,
}
ASSIGNMENTS = (
    "optim.muon.learning_rate=0.02",
    "optim.adamw.beta2=0.9,0.95",
    "average.ema_decay=0.9,0.8",
    "average.swa_start=0.5",
    "train.warmdown_steps=5,7",
    "quantize.late_qat_start=0.3,0.45",
)


@pytest.fixture(scope="module")
def config(demo_dir) -> Config:
    return configs.replace_all(load("demo"), {**SETTINGS, "data.dir": str(demo_dir)})


@pytest.fixture(scope="module")
def runs(config):
    """Three runs that differ in a seed and in every kind of value; not the whole grid of 32."""
    corners = make_runs(config, 2, ASSIGNMENTS)
    return [corners[0], corners[-1], corners[len(corners) // 2 + 6]]


@pytest.fixture(scope="module")
def alone(config, runs) -> list[tuple[TrainState, list[float]]]:
    """Each run's last state and its losses, its settings being constants of its program."""
    stream, order = TokenStream(find_shards(config.data.dir, "train")), BatchOrder.from_config(config.train)
    found = []
    for run in runs:
        state = jax.jit(partial(new_state, run.config))(jax.random.key(run.seed))
        step = jax.jit(partial(train_step, run.config))
        losses = []
        for index in range(config.train.steps):
            state, metrics = step(state, *order.rows(stream, index, slice(None)))
            losses.append(float(metrics.loss))
        assert int(metrics.late_qat) and int(metrics.swa_count)
        found.append((state, losses))
    return found


def test_side_by_side_is_alone(config, runs, alone):
    stream, order = TokenStream(find_shards(config.data.dir, "train")), BatchOrder.from_config(config.train)
    program = SweepProgram(runs, jax.local_devices()[:1])
    program.begin(range(len(runs)))
    losses = []
    for index in range(config.train.steps):
        metrics = program.step(order.rows(stream, index, slice(None)))
        losses.append(np.asarray(metrics.loss))
    for index, (state, expected_losses) in enumerate(alone):
        found = program.run_state(index)
        np.testing.assert_allclose([loss[index] for loss in losses], expected_losses, rtol=2e-5)
        assert int(found.swa_count) == int(state.swa_count) and int(found.step) == config.train.steps
        for part in ("params", "ema", "swa_sum"):
            values, expected = getattr(found, part), getattr(state, part)
            whole = [np.concatenate([np.ravel(tree[path]) for path in expected]) for tree in (values, expected)]
            assert np.linalg.norm(whole[0] - whole[1]) < 5e-5 * np.linalg.norm(whole[1]), part
            # A vector that has hardly moved yet has moved by Adam's steps, which amplify the last bits of gradients.
            assert max(relative_distances(values, expected).values()) < 2e-3, part
    counts = {int(state.swa_count) for state, _ in alone}
    assert len(counts) > 1  # the runs did not all do the same


def test_a_sweep_on_two_devices_scores_what_the_runs_alone_score(config, tmp_path):
    """Three runs on two devices, by the command line: one is trained twice to fill up."""
    configs.write_json(config, tmp_path / "config.json")
    rates = "optim.muon.learning_rate=0.01,0.02,0.03"
    command = [sys.executable, "-m", "jgolf", "sweep", str(tmp_path / "config.json"), "--set", rates]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {QUICK_COMPILATION}"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "sweep")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "3 runs on 2 × cpu" in done.stdout and "step:8/8" in done.stdout
    rows = list(csv.DictReader((tmp_path / "sweep" / "results.csv").open()))
    assert [row["optim.muon.learning_rate"] for row in rows] == ["0.01", "0.02", "0.03"]

    validation = Validation.open(config)
    stream, order = TokenStream(find_shards(config.data.dir, "train")), BatchOrder.from_config(config.train)
    first = jax.jit(partial(new_state, config))(jax.random.key(config.train.seed))
    step = jax.jit(lambda rate, *args: train_step(configs.replace(config, "optim.muon.learning_rate", rate), *args))
    for row in rows:
        state = first
        for index in range(config.train.steps):
            state, metrics = step(
                float(row["optim.muon.learning_rate"]), state, *order.rows(stream, index, slice(None))
            )
        average = averaged_params(state, "ema+swa")
        stored = quantize(average, config.quantize)
        assert 0.9 * len(pack(stored, {})) < float(row["artifact_bytes"]) < 1.1 * len(pack(stored, {}))
        for weights, params in (("raw", state.params), ("ema+swa", average), ("quantized", dequantize(stored))):
            score = validation.standard(params, config.evaluate.max_tokens)
            np.testing.assert_allclose(float(row[f"{weights}_val_loss"]), score.val_loss, rtol=2e-5)
            np.testing.assert_allclose(float(row[f"{weights}_val_bpb"]), score.val_bpb, rtol=2e-5)
        np.testing.assert_allclose(float(row["train_loss"]), float(metrics.loss), rtol=2e-5)
    shown = float(re.search(r"step:8/8 train_loss:([\d.]+)", done.stdout)[1])
    assert shown == pytest.approx(np.mean([float(row["train_loss"]) for row in rows]), abs=1e-4)

    written = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert len(written["runs"]) == 3 and len(written["summaries"]) == 9 and written["summaries"][0]["deviation"] is None
    metrics = (tmp_path / "sweep" / rows[-1]["folder"] / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == config.train.steps + 1 and json.loads(metrics[-2])["late_qat"] is True


def test_an_ablation_from_the_command_line(config, tmp_path, capsys):
    """This config has three techniques: a structure, a number, and one that comes after training."""
    config = configs.replace(config, "average.export", "ema")
    for name, settings in ((part.name, part.off) for part in PARTS):
        if name not in ("gradient clip", "SmearGate", "EMA"):
            config = configs.replace_all(config, settings)
    configs.write_json(config, tmp_path / "config.json")
    out = tmp_path / "ablation"
    command = ["sweep", str(tmp_path / "config.json"), "--ablate", "--at-once", "1", "--out", str(out)]
    assert main([*command, "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "4 runs of 8 steps, 2 structures" in shown and "grad_clip=0.0" in shown
    assert "program 1 of 2: 1 run from 2 of 2 on" in shown  # with clipping and without
    assert main([*command, "--seeds", "2", "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "8 runs of 8 steps, 4 of them there already, 2 structures" in shown
    written = json.loads((out / "results.json").read_text())
    bpb = {}
    for run in written["runs"]:
        bpb.setdefault(run["without"], []).append(run["quantized_val_bpb"])
    for worth in written["worths"]:
        expected = np.mean(bpb[worth["technique"]]) - np.mean(bpb["nothing"])
        assert worth["quantized"]["gain"] == pytest.approx(expected) and worth["quantized"]["interval"] > 0
        assert f"{expected:+.4f}" in shown
    assert [worth["technique"] for worth in written["worths"]] == ["SmearGate", "gradient clip", "EMA"]


def test_errors_come_before_training(config, tmp_path, capsys):
    path = tmp_path / "config.json"
    configs.write_json(config, path)
    for name in ("train.time_cap_s", "train.time-cap-s"):
        assert main(["sweep", str(path), "--set", f"{name}=1,2", "--out", str(tmp_path)]) == 2
        assert "there is no time cap in a sweep" in capsys.readouterr().err
    assert main(["sweep", "pr592", "--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "none")]) == 2
    assert "no tokenizer" in capsys.readouterr().err and not (tmp_path / "none").exists()
    (tmp_path / "results.json").write_text("{}")
    assert main(["sweep", str(path), "--out", str(tmp_path)]) == 2
    assert "already holds a sweep" in capsys.readouterr().err
    assert main(["sweep", str(path), "--ablate", "--set", "optim.grad_clip=0,1"]) == 2
    assert "leave --set out" in capsys.readouterr().err
    assert main(["sweep", str(path), "--techniques", "XSA"]) == 2
    assert "--techniques belongs to --ablate" in capsys.readouterr().err
    assert main(["sweep", str(path), "--at-once", "-1"]) == 2
    assert "--at-once -1" in capsys.readouterr().err
    wide = ["--model.value-embedding-dim", "2000000000"]
    assert main(["sweep", str(path), *wide, "--out", str(tmp_path / "wide")]) == 2
    assert "GB: make the model smaller" in capsys.readouterr().err


def stop_while_scoring(patch: pytest.MonkeyPatch) -> None:
    scored = []
    scores = sweep_train._scores

    def third_is_stopped(*args):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(scores(*args))
        return scored[-1]

    patch.setattr(sweep_train, "_scores", third_is_stopped)


def stop_while_packing(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def stopped(description):
        if description == "packing the last runs":
            raise KeyboardInterrupt
        yield

    patch.setattr(sweep_train, "activity", stopped)


def fail_to_pack(patch: pytest.MonkeyPatch) -> None:
    results = iter([MemoryError("no room"), b"12", b"345"])

    def pack(*args):
        result = next(results)
        if isinstance(result, MemoryError):
            raise result
        return result

    patch.setattr(sweep_train, "pack", pack)


@pytest.mark.parametrize(
    ("disturb", "exit_code", "seeds"),
    [
        (stop_while_scoring, 130, [1337, 1338]),
        (stop_while_packing, 130, [1337, 1338, 1339]),
        (fail_to_pack, 2, [1338, 1339]),
    ],
)
def test_what_was_scored_is_kept(disturb, exit_code, seeds, config, tmp_path, monkeypatch, capsys):
    """Three runs side by side, disturbed after their training."""
    configs.write_json(configs.replace(config, "train.steps", 2), tmp_path / "config.json")
    command = ["sweep", str(tmp_path / "config.json"), "--seeds", "3", "--out", str(tmp_path / "sweep")]
    with monkeypatch.context() as patch:
        disturb(patch)
        assert main(command) == exit_code
    assert f"{len(seeds)} of 3 runs have results in" in capsys.readouterr().out
    runs = json.loads((tmp_path / "sweep" / "results.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == seeds and all(run["artifact_bytes"] for run in runs)


def test_a_sweep_goes_on_and_takes_more_seeds(config, tmp_path, capsys, monkeypatch):
    configs.write_json(config, tmp_path / "config.json")

    def sweep(out: str, seeds: int, *more: str) -> list[dict]:
        command = ["sweep", str(tmp_path / "config.json"), "--at-once", "1", "--out", str(tmp_path / out)]
        assert main([*command, "--seeds", str(seeds), "--set", "model.smear_gate=true,false", *more]) == 0
        return json.loads((tmp_path / out / "results.json").read_text())["runs"]

    def first_program(self, metrics, steps, name):
        for step, one in enumerate(metrics):
            if name.startswith("program 2") and step == 3:
                raise KeyboardInterrupt
            yield one

    with monkeypatch.context() as patch:
        patch.setattr("jgolf.sweep.cli._Shown.__call__", first_program)
        command = ["sweep", str(tmp_path / "config.json"), "--set", "model.smear_gate=true,false", "--at-once", "1"]
        assert main([*command, "--seeds", "1", "--out", str(tmp_path / "stopped")]) == 130
    shown = capsys.readouterr()
    assert "1 of 2 runs have results in" in shown.out and "--resume goes on" in shown.out
    written = json.loads((tmp_path / "stopped" / "results.json").read_text())
    stopped, seconds = written["runs"], written["seconds"]
    assert [(row["model.smear_gate"], row["seed"]) for row in stopped] == [(True, 1337)]

    more = sweep("stopped", 2, "--resume")
    assert json.loads((tmp_path / "stopped" / "results.json").read_text())["seconds"] > seconds > 0
    assert "4 runs of 8 steps, 1 of them there already, 2 structures" in capsys.readouterr().out
    assert [row for row in more if row in stopped] == stopped  # as they were, folders too
    assert len({row["folder"] for row in more}) == 4
    whole = sweep("whole", 2)
    for found, expected in zip(more, whole, strict=True):
        assert list(found) == list(expected)
        assert found.pop("data") == expected.pop("data")
        del found["folder"], expected["folder"]
        assert found == pytest.approx(expected, rel=1e-4)

    capsys.readouterr()
    assert main([*command, "--seeds", "1", "--out", str(tmp_path / "stopped"), "--resume"]) == 2
    assert "its result would be lost" in capsys.readouterr().err
    (tmp_path / "stopped" / "results.json").write_text("[]")
    assert main([*command, "--seeds", "2", "--out", str(tmp_path / "stopped"), "--resume"]) == 2
    assert "not the results of a sweep, or damaged" in capsys.readouterr().err
