"""Steps with a cache give the logits of whole rows: every recipe, and every part that a network may have."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.config import ModelConfig
from jgolf.data.shards import BOS_ID
from jgolf.model.cache import empty_cache, step
from jgolf.model.functional import apply
from tests.model.test_causality import NETWORK_PARTS, SMALLEST, random_params, with_part

LENGTH = 14
SHALLOW = {"model.num_layers": 4}
SHALLOWER = {
    "baseline": SHALLOW,
    "pr414": SHALLOW,
    "pr592": SHALLOW,
    "pr1855": {
        "model.num_layers": 5,
        "model.loop_layers": (1, 2),
        "model.lanes_from": -1,
        "model.xsa_layers": (0, 2, 4),
    },
}
"""What makes recipes quick to compile and leaves them all of their parts."""


def small_recipe(name: str) -> ModelConfig:
    recipe = configs.replace_all(configs.load(name), SMALLEST | SHALLOWER.get(name, {}))
    configs.validate(recipe)
    return dataclasses.replace(recipe.model, bigram_buckets=min(recipe.model.bigram_buckets, 50), kernels="plain")


def documents_in_a_row() -> np.ndarray:
    """Rows of several documents, of different lengths; one begins in the middle of one."""
    tokens = np.random.default_rng(0).integers(BOS_ID + 1, 32, (3, LENGTH))
    tokens[:2, 0] = BOS_ID
    tokens[[0, 0, 1, 2], [5, 6, 11, 3]] = BOS_ID
    return tokens.astype(np.int32)


def assert_steps_are_rows(config: ModelConfig, documents: bool, looped: bool = True) -> None:
    """Steps, with room for more tokens than there are, give the logits of whole rows."""
    params, tokens = random_params(config), documents_in_a_row()
    how = {"looped": looped, "rotary_length": LENGTH}
    run = jax.jit(partial(step, config, documents=documents, **how), donate_argnums=1)
    cache, found = empty_cache(config, len(tokens), LENGTH + 3, looped), []
    for column in tokens.T:
        logits, cache = run(params, cache, column)
        found.append(logits)
    rows = jax.jit(partial(apply, config, piece_length=LENGTH * documents, **how))(params, tokens)
    np.testing.assert_allclose(jnp.stack(found, axis=1), rows, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", configs.config_names())
def test_recipes(name):
    assert_steps_are_rows(small_recipe(name), configs.load(name).train.documents)


@pytest.mark.parametrize("part", NETWORK_PARTS, ids=lambda part: part.name)
def test_parts(part):
    assert_steps_are_rows(dataclasses.replace(with_part(part), kernels="plain"), documents=True)


@pytest.mark.parametrize(("name", "documents", "looped"), [("pr592", True, True), ("pr1855", False, False)])
def test_recipes_otherwise(name, documents, looped):
    assert_steps_are_rows(small_recipe(name), documents, looped)
