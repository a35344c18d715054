"""Closed forms against a count of every product in the traced programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from jgolf.bench.flops import attention_flops, forward_flops, newton_schulz_flops, train_flops
from jgolf.config import Config, ModelConfig
from jgolf.model.functional import loss, parameter_shapes, token_losses
from jgolf.optim.muon import newton_schulz
from tests.conftest import RECIPE

B, T = 2, 16


def product_flops(function, *arguments) -> int:
    """2 × multiplications of all products that a function traces to."""
    return sum(map(_flops, _products(jax.make_jaxpr(function)(*arguments).jaxpr)))


def _products(jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _products(inner)


def _flops(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * prod(equation.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)


def arguments(model: ModelConfig, last: int = T) -> tuple:
    params = {path: jnp.ones(shape) for path, shape in parameter_shapes(model).items()}
    return params, jnp.zeros((B, T), jnp.int32), jnp.zeros((B, last), jnp.int32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "bigram_dim": 32, "value_embedding_dim": 16, "mlp_multiple": 2.0},
        {"bigram_buckets": 0, "value_embedding_layers": (), "num_layers": 3, "num_kv_heads": 2},
    ],
)
def test_of_the_network(nano: Config, changes: dict) -> None:
    model = dataclasses.replace(nano.model, **changes)
    # The kernel for the CPU computes and masks what causality hides.
    hidden = model.num_layers * (B * 4 * model.model_dim * T * T - attention_flops(model, B, T))
    assert product_flops(partial(loss, model), *arguments(model)) == forward_flops(model, B, T) + hidden
    gradient = jax.grad(partial(loss, model))
    assert product_flops(gradient, *arguments(model)) == train_flops(model, B, T) + 3 * hidden


def test_of_the_last_positions(nano: Config) -> None:
    model, last = nano.model, 4
    hidden = B * 4 * model.model_dim * T * T - attention_flops(model, B, T)
    hidden += B * 4 * model.model_dim * last * T - attention_flops(model, B, T, last)
    found = product_flops(partial(token_losses, model), *arguments(model, last))
    assert found == forward_flops(model, B, T, last) + hidden


def test_attention_counts_what_causality_leaves() -> None:
    model = dataclasses.replace(RECIPE.model, model_dim=8, num_heads=2, num_kv_heads=1)
    pairs = sum(position + 1 for position in range(T))
    assert attention_flops(model, B, T) == B * 2 * 2 * 8 * pairs
    assert attention_flops(model, B, T, last=3) == B * 2 * 2 * 8 * (T + (T - 1) + (T - 2))


def test_of_the_recipe() -> None:
    assert train_flops(RECIPE.model, 48, 2048) == pytest.approx(2.4e13, rel=0.03)


@pytest.mark.parametrize(("count", "rows", "columns"), [(3, 4, 8), (1, 8, 4)])
def test_of_newton_schulz(count: int, rows: int, columns: int) -> None:
    matrices = jnp.ones((count, *sorted((rows, columns))))
    found = product_flops(partial(newton_schulz, steps=5, dtype="float32"), matrices)
    assert found == newton_schulz_flops(count, rows, columns, 5)
