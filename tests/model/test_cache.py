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


def small_recipe(name: str) -> ModelConfig:
    """The recipe with all of its parts in a small network."""
    recipe = configs.load(name)
    layers = configs.resolved(recipe.model).num_layers
    model = configs.replace_all(recipe, {**SMALLEST, "model.num_layers": layers}).model
    return dataclasses.replace(model, bigram_buckets=min(model.bigram_buckets, 50), kernels="plain")


def stepwise(config: ModelConfig, params, tokens: np.ndarray, **how) -> np.ndarray:
    """Logits of all positions, one step after the other, with room for more than there are."""
    run = jax.jit(partial(step, config, **how), donate_argnums=1)
    cache = empty_cache(config, len(tokens), tokens.shape[1] + 3, how.get("looped", True))
    found = []
    for column in tokens.T:
        logits, cache = run(params, cache, jnp.asarray(column))
        found.append(np.asarray(logits))
    return np.stack(found, axis=1)


def documents_in_a_row() -> np.ndarray:
    """Rows of several documents, of different lengths; one begins in the middle of one."""
    tokens = np.random.default_rng(0).integers(BOS_ID + 1, 32, (3, LENGTH))
    tokens[:2, 0] = BOS_ID
    tokens[[0, 0, 1, 2], [5, 6, 11, 3]] = BOS_ID
    return tokens.astype(np.int32)


def assert_steps_are_rows(config: ModelConfig, looped: bool = True) -> None:
    params, tokens = random_params(config), documents_in_a_row()
    for documents in (False, True):
        how = {"looped": looped, "rotary_length": LENGTH}
        whole = jax.jit(partial(apply, config, piece_length=LENGTH if documents else 0, **how))(params, tokens)
        found = stepwise(config, params, tokens, documents=documents, **how)
        np.testing.assert_allclose(found, whole, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", configs.config_names())
def test_recipes(name):
    assert_steps_are_rows(small_recipe(name))


@pytest.mark.parametrize("part", NETWORK_PARTS, ids=lambda part: part.name)
def test_parts(part):
    assert_steps_are_rows(dataclasses.replace(with_part(part), kernels="plain"))


def test_the_loop_may_be_off():
    assert_steps_are_rows(small_recipe("pr1855"), looped=False)
