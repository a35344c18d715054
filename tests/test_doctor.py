from __future__ import annotations

import collections
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from jgolf import config as configs
from jgolf import doctor
from jgolf.cli import main
from jgolf.config import Config, load
from jgolf.data.shards import write_shard
from jgolf.model.kernels import door


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def checks(config: Config) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.run_checks(config)}


def test_the_demo_needs_nothing_more(capsys):
    assert main(["doctor", "demo"]) == 0
    shown = capsys.readouterr().out
    assert "ready to train: python train.py demo" in shown and "data/demo will be built" in shown


def test_missing_data_is_named_with_what_to_do(capsys):
    assert main(["doctor", "pr592"]) == 1
    shown = capsys.readouterr().out
    assert "jgolf data download sp1024" in shown and "3 things missing" in shown
    assert "30,404,196 parameters" in shown


def test_settings_are_taken_as_train_takes_them(capsys):
    assert main(["doctor", "demo", "--data", "my data", "--train.steps", "30"]) == 0
    shown = capsys.readouterr().out
    assert "my data will be built" in shown and "python train.py demo --data 'my data' --train.steps 30" in shown


def test_tokens_are_counted():
    config = configs.replace(load("demo"), "data.dir", "tokens")
    Path("tokens").mkdir()
    write_shard(Path("tokens/x_train_0.bin"), np.arange(1000))
    found = checks(config)
    assert "1,000 in 1 shard(s)" in found["train tokens"].found
    passes = config.train.steps * config.train.batch_tokens / 1000
    assert f"{passes:.2g} times" in found["train tokens"].found
    assert found["val tokens"].verdict == "missing" and found["tokenizer"].verdict == "missing"


def test_state_bytes_are_those_of_a_state():
    """Parameters, EMA and SWA; one momentum for Muon's matrices, two moments for the rest; six counters."""
    config = load("demo")
    from jgolf.model.functional import parameter_shapes
    from jgolf.rules import rule_of

    sizes = {path: int(np.prod(shape)) for path, shape in parameter_shapes(config.model).items()}
    moments = sum(size * (1 if rule_of(path).group == "muon" else 2) for path, size in sizes.items())
    assert doctor.state_bytes(config) == pytest.approx(4 * (3 * sum(sizes.values()) + moments), abs=64)


def test_a_full_disk(monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 10**5))
    assert checks(load("demo"))["disk"].verdict == "missing"


def test_settings_that_make_no_sense():
    config = configs.replace(load("demo"), "train.batch_tokens", 1000)
    found = checks(config)
    assert found["settings"].verdict == "missing" and "train.batch_tokens is 1000" in found["settings"].found


@pytest.mark.parametrize("name", ["model.num_heads", "train.seq_len", "train.num_ranks"])
def test_settings_from_which_nothing_follows(name):
    found = checks(configs.replace(load("demo"), name, 0))
    assert found["settings"].verdict == "missing" and name in found["settings"].found
    assert "batch" not in found and "tokenizer" in found


def test_attention_that_cudnn_cannot_run(monkeypatch):
    monkeypatch.setattr(door, "gpu", lambda: "an NVIDIA GPU")
    found = checks(load("demo"))["attention"]
    assert found.verdict == "warning" and "bfloat16, not in float32" in found.found


@pytest.mark.parametrize(
    ("trial", "verdict", "expected"),
    [
        (lambda config: 0.01, "ok", "agrees with ordinary JAX within 0.01"),
        (lambda config: 0.5, "missing", "off by 0.5"),
        (lambda config: 1 / 0, "missing", "the kernel of cuDNN fails: division by zero"),
    ],
)
def test_a_kernel_is_tried(trial, verdict, expected, monkeypatch):
    monkeypatch.setattr(door, "gpu", lambda: "an NVIDIA GPU")
    monkeypatch.setattr(doctor, "attention_error", trial)
    found = checks(configs.replace(load("demo"), "model.compute_dtype", "bfloat16"))["attention"]
    assert found.verdict == verdict and expected in found.found


def test_extras(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert checks(load("demo"))["extra torch"].verdict == "optional"
    assert main(["doctor", "demo"]) == 0
    assert "pip install 'jgolf[torch]'" in capsys.readouterr().out
