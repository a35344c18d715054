"""Each verb of `jgolf bench`, on a config of seconds."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import programs
from jgolf.bench import goals, start
from jgolf.bench.flops import forward_flops, train_flops
from jgolf.bench.optimizer import update
from jgolf.bench.report import Figure
from jgolf.bench.running import RunningStep, bench_config, random_batch
from jgolf.bench.start import seconds_to_first_step
from jgolf.cli import main
from jgolf.config import Config
from jgolf.data.shards import write_shard
from jgolf.errors import JgolfError
from jgolf.model.functional import parameter_shapes
from jgolf.train.step import mean_loss_and_grads, new_state, train_step

SCRIPT = Path(__file__).parents[1] / "torch_bridge" / "reference_script.py"
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")

Bench = Callable[..., dict]


@pytest.fixture
def bench(nano_path: str, capsys: pytest.CaptureFixture) -> Bench:
    """Runs a verb with --json, and returns what it prints, with the figures by name."""

    def run(verb: str, *options: str) -> dict:
        assert main(["bench", verb, "--config", nano_path, "--runs", "1", "--json", *options]) == 0
        printed = json.loads(capsys.readouterr().out)
        return printed | {"figures": {figure["name"]: figure for figure in printed["figures"]}}

    return run


def value(found: dict, name: str) -> float:
    return found["figures"][name]["value"]


def test_step(bench: Bench, nano: Config, nano_path: str) -> None:
    found = bench("step", "--sequences", "2", "--peak-tflops", "2", "--profile")
    step_ms, flops = value(found, "whole step, steady state"), train_flops(nano.model, np.zeros((2, 16)))
    for name in ("the step while late QAT acts", "forward + backward", "clipping + optimizers + EMA"):
        assert value(found, name) > 0
    assert value(found, "tokens a second") == pytest.approx(2 * 16 / (step_ms / 1000))
    assert value(found, "model FLOPs of a step") == pytest.approx(flops / 1e12)
    assert value(found, "model FLOP utilization") == pytest.approx(100 * flops / (step_ms / 1000) / 2e12)
    # Parameters and their copies: Muon's momentum or Adam's two moments, the EMA and the sum of the SWA.
    num_params = sum(int(np.prod(shape)) for shape in parameter_shapes(nano.model).values())
    assert value(found, "memory of the program") > 4 * 4 * num_params / 1e9
    kernels = found["profile"]["kernels"]
    assert value(found, "device time of a step") == pytest.approx(sum(kernel["ms"] for kernel in kernels))
    assert found["command"] == (
        f"jgolf bench step --config {nano_path} --sequences 2 --runs 1 --peak-tflops 2.0 --profile"
    )


@needs_torch
def test_step_beside_pytorch(bench: Bench) -> None:
    figures = bench("step", "--sequences", "2", "--peak-tflops", "2", "--reference", str(SCRIPT))["figures"]
    compared = {name for name, figure in figures.items() if figure["reference"] is not None}
    assert compared == {"whole step, steady state", "forward + backward", "clipping + optimizers + EMA"}


def test_late_qat_acts_in_the_same_program(nano: Config, nano_path: str) -> None:
    running = RunningStep.compiled(bench_config(nano_path, 2))
    assert int(running().metrics.late_qat) == 0
    late = running.after(nano.train.steps - 100)
    assert int(late().metrics.late_qat) == 1
    assert late.step is running.step
    assert int(running().metrics.step) == 2  # its own state is still there


def test_the_update_is_the_steps(nano_path: str) -> None:
    config = bench_config(nano_path, 2)
    state, batch = jax.jit(partial(new_state, config))(jax.random.key(0)), random_batch(config)
    expected, _ = jax.jit(partial(train_step, config))(state, *batch)
    _, gradients = jax.jit(partial(mean_loss_and_grads, config.model))(state.params, *batch)
    found = jax.jit(partial(update, config))((state.params, state.opt_state, state.ema), gradients)
    wanted = (expected.params, expected.opt_state, expected.ema)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), found, wanted)


def test_sequences(nano: Config, nano_path: str) -> None:
    assert bench_config(nano_path).train.batch_tokens == 512 // 8
    train = bench_config(nano_path, 5).train
    assert (train.batch_tokens, train.num_ranks, train.accumulation) == (5 * 16, 1, 1)
    with pytest.raises(JgolfError, match="--sequences -1: expected 1 or more"):
        bench_config(nano_path, -1)


@needs_torch
def test_evaluate(bench: Bench, nano: Config) -> None:
    found = bench("evaluate", "--sequences", "3", "--stride", "4", "--profile", "--reference", str(SCRIPT))
    for name, last in (("sliding", 4), ("standard", 16)):
        figure = found["figures"][name]
        assert figure["tflops"] == pytest.approx(forward_flops(nano.model, 3, 16, last) / figure["value"] / 1e9)
        assert figure["reference"] > 0
        assert value(found, f"{name}, scored tokens a second") == pytest.approx(3 * last / figure["value"] * 1000)
    assert found["profile"]["kernels"]


def test_attention(bench: Bench) -> None:
    assert bench("attention")["figures"].keys() == {"plain, forward", "plain, forward + backward"}  # no cuDNN on a CPU


def test_optimizer(bench: Bench) -> None:
    names = bench("optimizer")["figures"].keys()
    assert {"clipping + optimizers + EMA", "clipping", "Muon", "AdamW", "EMA"} < names
    # One layer: q and out; k and v; up; down; the bigram table's projection; the value table's projection.
    shapes = {"2 × (32, 32)", "2 × (32, 16)", "1 × (32, 96)", "1 × (96, 32)", "1 × (16, 32)", "1 × (8, 16)"}
    assert {name.removeprefix("Newton-Schulz, ") for name in names if "Newton" in name} == shapes


def test_input(bench: Bench, tmp_path: Path) -> None:
    found = bench("input", "--sequences", "2")
    assert found["setup"].endswith("from a shard of random tokens")
    resident, disk = value(found, "step on one resident batch"), value(found, "step on batches from disk")
    assert value(found, "more, from disk") == pytest.approx(100 * (disk / resident - 1))
    write_shard(tmp_path / "x_train_000000.bin", np.arange(500) % 64)
    assert bench("input", "--sequences", "2", "--data", str(tmp_path))["setup"].endswith(f"from {tmp_path}")


def test_input_without_shards(nano_path: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "input", "--config", nano_path, "--data", str(tmp_path / "none")]) == 2
    assert "no such data folder" in capsys.readouterr().err


def test_export(bench: Bench, nano: Config) -> None:
    found = bench("export", "--compressors")
    num_params = sum(int(np.prod(shape)) for shape in parameter_shapes(nano.model).values())
    assert found["setup"] == f"nano: {num_params:,} random parameters"
    assert {"quantize", "pack, zstd", "unpack, zstd"} < found["figures"].keys()
    assert 0 < value(found, "artifact, zstd") < 4 * num_params
    for name in ("sum of entropies", "zstd, level 22", "xz, preset 9e"):
        assert 0.2 * value(found, "artifact, zstd") < value(found, name) < 4 * num_params


def test_tables(nano_path: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "evaluate", "--config", nano_path, "--sequences", "2", "--runs", "1", "--profile"]) == 0
    printed = capsys.readouterr().out
    for text in ("nano, 2 windows of 16", "sliding", "longest kernels", "share", "jgolf bench evaluate --config"):
        assert text in printed


def test_starts_with_what_earlier_ones_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def first_step(config: str, sequences: int, cache: Path) -> float:
        found.append(sorted(path.name for path in cache.iterdir()))
        for folder in ("of-jax", programs.FOLDER):
            (cache / folder).mkdir(exist_ok=True)
        return float(len(found))

    monkeypatch.setattr(start, "seconds_to_first_step", first_step)
    figures = {figure.name: figure.value for figure in start.measure_start("nano", 2)}
    assert figures == {start.COLD: 1.0, start.KEPT: 2.0, start.CACHED: 3.0}
    assert found == [[], ["of-jax", "programs"], ["of-jax"]]


def test_a_process_that_has_no_first_step(tmp_path: Path) -> None:
    with pytest.raises(JgolfError, match="ended with 1 before its first step:\n(.|\n)*no config 'none'"):
        seconds_to_first_step("none", 0, tmp_path)


def test_all(nano_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    started = [Figure(goals.COLD, 20.0, "s"), Figure(goals.CACHED, 5.0, "s")]
    monkeypatch.setattr(goals, "measure_start", lambda config, sequences: started)
    monkeypatch.setattr("jgolf.bench.step.measured_peak_tflops", lambda size, dtype, runs: 1.0)
    assert main(["bench", "all", "--config", nano_path, "--sequences", "2", "--runs", "1", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("nano, 2 × 16 tokens, float32, on cpu, JAX")
    assert f"jgolf bench all --config {nano_path} --sequences 2 --runs 1 --markdown" in lines
    assert "| start to first step, cold | 75 s | ≤ 25 s | 20 s |" in lines
    assert "| peak memory | 23.9 GB | ≤ 14 GB | – |" in lines  # a CPU does not tell
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(goals.GOALS)


def test_rows_that_compare_two_figures() -> None:
    figures = [
        Figure(goals.WHOLE_STEP, 50.0, "ms", 49.0, 52.0, reference=100.0),
        Figure(goals.WITH_QAT, 50.5, "ms", 50.0, 51.0),
    ]
    rows = {row.goal.figure: row for row in goals.goal_rows({figure.name: figure for figure in figures})}
    qat = rows[goals.WITH_QAT]
    assert (qat.value, qat.low, qat.high) == pytest.approx((1.0, 0.0, 2.0))
    assert rows[goals.WHOLE_STEP].reference == 100.0  # measured here: not the one once measured
    assert rows[goals.GRADIENTS].value is None
