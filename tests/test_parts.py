"""Recipes as compositions: their values, what each part turns on and off, and a network without any."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.cli import main
from jgolf.config import Config
from jgolf.config.parts import PARTS, SKIP_GATES, SMEAR_GATE, UNET_SKIPS, XSA, Part, compose, known_parts
from jgolf.errors import ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.sweep.ablation import WITHOUT, make_ablation
from jgolf.train.step import new_state, train_step
from tests.conftest import RECIPE

OLD = json.loads((Path(__file__).parent / "old" / "recipes.json").read_text())
MENDED = (
    "model.rope_original_length",
    "optim.adamw.head_learning_rate",
    "optim.adamw.head_weight_decay",
    "quantize.embedding",
    "quantize.symmetric_levels",
)
"""Settings of which an old recipe had a value that its script had not."""
SMALL = {
    "model.vocab_size": 64, "model.num_layers": 2, "model.model_dim": 32, "model.num_heads": 2, "model.num_kv_heads": 1,
    "model.compute_dtype": "float32", "train.batch_tokens": 256, "train.seq_len": 32, "train.steps": 12,
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_recipes_are_what_they_were_when_they_were_lists_of_values(name):
    config = configs.load(name)
    found = configs.leaves(dataclasses.replace(config, model=configs.resolved(config.model)))
    expected = configs.leaves(configs.from_written(OLD[name]))
    for setting in MENDED:
        expected.pop(setting)
    assert found.items() >= expected.items()
    off = configs.leaves(Config())
    assert all(value == off[key] for key, value in found.items() if key not in configs.leaves(RECIPE))


def test_nothing_is_on_by_default():
    assert not [part.name for part in PARTS if part.is_in(Config())]
    names = {
        path.rpartition("/")[2] for path in parameter_shapes(configs.replace(Config(), "model.vocab_size", 64).model)
    }
    assert names == {"embedding", "kernel", "attn_scale", "mlp_scale", "resid_mix"}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_is_turned_on_and_off(part):
    needed = [UNET_SKIPS] if part is SKIP_GATES else []
    with_it = compose("x", configs.replace(Config(), "train.steps", 10), *needed, part)
    assert part.is_in(with_it) and not part.is_in(part.left_out_of(with_it))
    configs.validate(with_it)
    expected = ["nothing", *(one.name for one in PARTS if one is part or one in needed)]
    assert [run.setting[WITHOUT] for run in make_ablation(with_it, 1)] == expected


def test_a_composition_is_its_pieces_each_over_the_ones_before():
    config = compose("x", RECIPE, SMEAR_GATE, {"model.smear_gate": False, "model.q_gain": 5.0}, XSA)
    expected = {"name": "x", "model.smear_gate": False, "model.q_gain": 5.0, "model.xsa_layers": (-4, -3, -2, -1)}
    assert config == configs.replace_all(RECIPE, expected)
    with pytest.raises(ConfigError, match=r"no setting 'model\.smear'|no setting 'smear'"):
        compose("x", RECIPE, {"model.smear": True})
    with pytest.raises(ConfigError, match="no setting 'gate'"):
        Part("gate", {"model.gate": True})


def test_a_config_files_own_parts_are_left_out_too(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jgolf.config import load\n"
        "from jgolf.config.parts import SMEAR_GATE, Part, compose\n"
        "WIDE = Part('wide embedding', {'model.embedding_init_std': 0.02})\n"
        "def config():\n"
        "    return compose('mine', load('baseline'), SMEAR_GATE, WIDE)\n"
    )
    parts = known_parts(str(path))
    found = [run.setting[WITHOUT] for run in make_ablation(configs.load(str(path)), 1, parts=parts)]
    assert found[0] == "nothing" and found[-1] == "wide embedding" and "SmearGate" in found and "XSA" not in found
    assert known_parts("pr592") == known_parts() == known_parts("config.json") == PARTS
    command = ["sweep", str(path), "--ablate", "--techniques", "wide", "--data", str(tmp_path)]
    assert main(command) == 2
    assert "--techniques 'wide': expected some of" in (error := capsys.readouterr().err) and "wide embedding" in error


def test_the_plain_network_learns():
    config = configs.validate(configs.replace_all(Config(), SMALL))
    rng = np.random.default_rng(0)
    text = np.cumsum(rng.integers(1, 3, 4096)) % 64  # the next token is one of two
    step = jax.jit(partial(train_step, config))
    state, losses = jax.jit(partial(new_state, config))(jax.random.key(0)), []
    for index in range(config.train.steps):
        rows = text[index * 256 :][:257]
        inputs, targets = (part.reshape(1, 8, 32) for part in (rows[:-1], rows[1:]))
        state, metrics = step(state, inputs, targets, 0.0)
        losses.append(float(metrics.loss))
    assert losses[0] == pytest.approx(math.log(64), abs=0.5) and losses[-1] < 0.8 * losses[0]
