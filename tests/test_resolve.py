"""Layers named from the end, and a vocabulary of the tokenizer's size, become plain numbers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf import doctor
from jgolf.cli import main
from jgolf.config import Mark, ModelConfig, marked, resolved
from jgolf.data.vocabulary import resolved_for
from jgolf.errors import ConfigError, JgolfError
from jgolf.model.functional import apply, parameter_shapes
from jgolf.sweep.grid import make_runs
from jgolf.train.options import TrainOptions
from tests.conftest import NANO
from tests.train.runs import nano_config


def named_from_the_end(model: ModelConfig) -> ModelConfig:
    layers = {name: getattr(model, name) for name in marked(ModelConfig, Mark.LAYERS)}
    lists = {name: value for name, value in layers.items() if isinstance(value, tuple)}
    named = {name: tuple(layer - model.num_layers for layer in value) for name, value in lists.items()}
    return dataclasses.replace(model, **named)


def test_a_network_is_the_same_however_its_layers_are_named():
    model = named_from_the_end(NANO)
    assert model.xsa_layers == model.value_embedding_layers == (-1,) and resolved(model) == NANO
    assert parameter_shapes(model) == parameter_shapes(NANO)
    random = np.random.default_rng(0)
    params = {path: random.normal(size=shape, scale=0.1) for path, shape in parameter_shapes(NANO).items()}
    tokens = random.integers(NANO.vocab_size, size=(1, 16))
    run = jax.jit(apply, static_argnums=0)
    found = np.asarray(run(model, params, tokens))
    np.testing.assert_array_equal(found, run(NANO, params, tokens))
    assert np.abs(found - run(dataclasses.replace(NANO, xsa_layers=()), params, tokens)).max() > 1e-3


def test_another_depth_leaves_the_last_layers_last():
    last = {"model.xsa_layers": (-4, -3, -2, -1), "model.value_embedding_layers": (-2, -1)}
    base = configs.replace_all(configs.load("pr592"), {**last, "train.time_cap_s": 0.0})
    found = [resolved(run.config.model) for run in make_runs(base, 1, ["model.num_layers=6,12,14"])]
    assert [model.xsa_layers for model in found] == [(2, 3, 4, 5), (8, 9, 10, 11), (10, 11, 12, 13)]
    assert [model.value_embedding_layers for model in found] == [(4, 5), (10, 11), (12, 13)]
    expected = r"model\.xsa_layers is \(-4, -3, -2, -1\): .*, each from 0 to 2, or from the end, -3 to -1"
    with pytest.raises(ConfigError, match=expected):
        make_runs(base, 1, ["model.num_layers=3"])


@pytest.mark.parametrize("layers", [(-13,), (12,), (-1, 0), (11, -1), (0, 0)])
def test_layers_that_are_not_there_or_twice_are_refused(layers):
    config = configs.replace_all(configs.load("pr592"), {"model.num_layers": 12, "model.xsa_layers": layers})
    with pytest.raises(ConfigError, match=r"model\.xsa_layers is .*expected different layers in rising order, each"):
        configs.validate(config)


def test_the_command_line_takes_layers_from_the_end(nano_data, tmp_path):
    options = ["--model.xsa-layers", "-2", "-1", "--model.num-layers", "2", "--data", str(nano_data)]
    options += [
        "--model.vocab-size",
        "0",
        "--model.value-embedding-layers",
        "-1",
        "--steps",
        "0",
        "--data.build-demo",
        "False",
    ]
    assert main(["train", "demo", *options, "--run-dir", str(tmp_path / "run")]) == 0
    found = configs.read_json(tmp_path / "run" / "config.json").model
    assert (found.vocab_size, found.xsa_layers, found.value_embedding_layers) == (NANO.vocab_size, (0, 1), (1,))


def test_the_size_of_the_vocabulary_is_the_tokenizers(nano_data, tmp_path):
    config = configs.replace(nano_config(nano_data), "model.vocab_size", 0)
    assert configs.validate(config) == config
    assert resolved_for(config.data, config.model).vocab_size == NANO.vocab_size
    assert resolved_for(config.data, dataclasses.replace(config.model, vocab_size=9)).vocab_size == 9
    found = {check.name: check for check in doctor.run_checks(TrainOptions(config), tmp_path / "run")}
    assert found["settings"].verdict == "ok" and "parameters" in found["settings"].found
    assert found["tokenizer"].verdict == "ok"
    nowhere = configs.replace(config, "data.dir", str(tmp_path))
    with pytest.raises(JgolfError, match="no tokenizer"):
        resolved_for(nowhere.data, nowhere.model)
    found = {check.name: check for check in doctor.run_checks(TrainOptions(nowhere), tmp_path / "run")}
    assert found["settings"].verdict == "ok" and found["tokenizer"].verdict == "missing"


def test_a_network_of_unknown_vocabulary_is_not_built():
    with pytest.raises(ConfigError, match=r"model\.vocab_size is 0, .*expected that number"):
        parameter_shapes(dataclasses.replace(NANO, vocab_size=0))


def test_a_sweep_asks_the_tokenizer_too(nano_data, tmp_path, capsys):
    config = configs.replace_all(
        nano_config(nano_data, steps=1, warmdown_steps=1, batch_tokens=256, num_ranks=1),
        {
            "model.vocab_size": 0,
            "model.num_layers": 2,
            "model.xsa_layers": (-1,),
            "model.value_embedding_layers": (1,),
            "evaluate.max_tokens": 256,
        },
    )
    configs.write_json(config, tmp_path / "config.json")
    out = tmp_path / "sweep"
    assert main(["sweep", str(tmp_path / "config.json"), "--set", "model.num_layers=1,2", "--out", str(out)]) == 2
    assert "model.value_embedding_layers is (1,)" in capsys.readouterr().err
    command = ["sweep", str(tmp_path / "config.json"), "--model.value-embedding-layers", "-1", "--out", str(out)]
    assert main([*command, "--set", "model.num_layers=1,2"]) == 0
    found = [configs.read_json(path).model for path in sorted(out.glob("runs/*/config.json"))]
    assert [(model.vocab_size, model.xsa_layers) for model in found] == [
        (NANO.vocab_size, (0,)),
        (NANO.vocab_size, (1,)),
    ]
