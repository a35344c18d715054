"""Continued texts: the tokens that whole passes would give, and what limits the choice."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.evaluate.sample import chosen, continuations
from jgolf.model.functional import apply
from tests.conftest import NANO
from tests.model.test_causality import random_params

CONTEXT = 12


def test_the_likeliest_tokens_are_those_of_whole_passes():
    """Past the context too, where the last half of it is read again and the rest is forgotten."""
    params, ids = random_params(NANO), [1, 7, 99, 34]
    found = list(continuations(NANO, params, ids, 30, CONTEXT, 0.0, 0, seed=0))
    logits = jax.jit(lambda tokens: apply(NANO, params, tokens))
    window = list(ids)
    for token in found:
        if len(window) > CONTEXT:
            window = window[-CONTEXT // 2 - 1 :]
        padded = jnp.zeros((1, CONTEXT), jnp.int32).at[0, : len(window)].set(jnp.array(window))
        assert token == int(jnp.argmax(logits(padded)[0, len(window) - 1]))
        window.append(token)


def test_the_seed_settles_the_choices():
    params = random_params(dataclasses.replace(NANO, logit_softcap=2.0))

    def sampled(seed: int) -> list[int]:
        return list(continuations(NANO, params, [1], 12, CONTEXT, 1.0, 0, seed, top_p=0.9))

    assert sampled(3) == sampled(3) != sampled(4)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "expected"),
    [
        (1.0, 1.0, 0, {0, 1, 2, 3}),
        (1.0, 1.0, 2, {0, 1}),
        (1.0, 0.5, 0, {0}),
        (1.0, 1e-320, 0, {0}),
        (1.0, 0.51, 0, {0, 1}),
        (1.0, 0.85, 0, {0, 1, 2}),
        (0.2, 0.85, 0, {0}),
        (1.0, 0.85, 2, {0, 1}),
        (0.0, 1.0, 0, {0}),
    ],
)
def test_what_is_chosen_among(temperature, top_p, top_k, expected):
    chances = np.array([0.5, 0.3, 0.15, 0.05])
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(lambda key: chosen(jnp.log(chances), key, temperature, top_p, top_k))
    drawn = np.bincount(np.asarray(draw(keys)), minlength=4) / len(keys)
    assert set(np.flatnonzero(drawn)) == expected
    if temperature == 1:
        among = np.where(np.isin(np.arange(4), list(expected)), chances, 0)
        np.testing.assert_allclose(drawn, among / among.sum(), atol=0.03)
