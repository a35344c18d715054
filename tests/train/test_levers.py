"""Settings that no recipe has yet, in whole training steps: side by side, and after a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.config import Config
from jgolf.rules import rule_of
from jgolf.sweep.program import with_values
from jgolf.train.checkpoint import Checkpoints
from jgolf.train.step import TrainState, new_state, train_step
from tests.conftest import RECIPE, SHALLOW, relative_distances

STEPS = 4
SETTINGS = {
    "optim.muon.newton_schulz_dtype": "float32",
    "optim.muon.newton_schulz_steps": 2,
    "optim.muon.neuron_normalization": True,
    "optim.muon.look_ahead": 0.3,
    "optim.cautious_decay": True,
    "average.ema_decay": 0.0,
    "average.ema_share": 0.1,
    "train.steps": STEPS,
    "train.warmdown_steps": 0,
    "train.time_cap_s": 0.0,
    "train.batch_tokens": 128,
    "train.seq_len": 32,
    "train.num_ranks": 1,
}
VARIED = {
    "optim.muon.neuron_decay": (0.9, 0.5),
    "optim.muon.look_ahead": (0.2, 0.5),
    "optim.muon.look_ahead_decay": (0.99, 0.7),
    "average.ema_share": (0.05, 0.2),
}


@pytest.fixture(scope="module")
def config() -> Config:
    return configs.validate(configs.replace_all(dataclasses.replace(RECIPE, model=SHALLOW), SETTINGS))


@pytest.fixture(scope="module")
def first(config: Config) -> TrainState:
    return jax.jit(partial(new_state, config))(jax.random.key(0))


@pytest.fixture(scope="module")
def batches(config: Config) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SHALLOW.vocab_size, (STEPS, 2, 1, 4, 32))


def test_traced_values_train_as_constants(config: Config, first: TrainState, batches: np.ndarray) -> None:
    """Two runs that differ in every number, as one program and each by itself."""

    def step(values: dict, state: TrainState, batch: np.ndarray) -> TrainState:
        return train_step(with_values(config, values), state, *batch)[0]

    side_by_side = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    together = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), first)
    values = {name: jnp.array(of_runs) for name, of_runs in VARIED.items()}
    for batch in batches:
        together = side_by_side(values, together, batch)
    ends = []
    for index in range(2):
        own = configs.replace_all(config, {name: of_runs[index] for name, of_runs in VARIED.items()})
        alone, state = jax.jit(partial(train_step, own)), first
        for batch in batches:
            state, _ = alone(state, *batch)
        for part in ("params", "ema"):
            found = {path: value[index] for path, value in getattr(together, part).items()}
            distances = relative_distances(found, getattr(state, part))
            assert max(value for path, value in distances.items() if rule_of(path).group == "muon") < 2e-5, part
            assert max(distances.values()) < 5e-3, part  # Adam's first steps amplify the last bits of gradients
        ends.append(state)
    matrix = "blocks/0/mlp/up_proj/kernel"
    assert relative_distances(ends[0].params, ends[1].params)[matrix] > 1e-3


def test_a_run_goes_on_to_the_bit(config: Config, first: TrainState, batches: np.ndarray, tmp_path: Path) -> None:
    step = jax.jit(partial(train_step, config))
    state = first
    configs.write_json(config, tmp_path / "config.json")
    for index, batch in enumerate(batches):
        if index == 2:
            with contextlib.closing(Checkpoints(tmp_path, 1, config, "data")) as checkpoints:
                checkpoints.save(state, index, 1.0)
                checkpoints.finish()
        state, _ = step(state, *batch)
    with contextlib.closing(Checkpoints(tmp_path, 1, config, "data")) as checkpoints:
        resumed, _ = checkpoints.restore(config)
    for batch in batches[2:]:
        resumed, _ = step(resumed, *batch)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
