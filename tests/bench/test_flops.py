"""The count of the network's products against closed forms, and closed forms against counts of traced programs."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jgolf.bench.flops import attention_flops, forward_flops, newton_schulz_flops, product_flops, train_flops
from jgolf.config import Config, ModelConfig
from jgolf.model.functional import loss, parameter_shapes
from jgolf.optim.muon import newton_schulz
from tests.conftest import RECIPE

B, T = 2, 16


def by_hand(model: ModelConfig, last: int = T, extra_visits: int = 0) -> int:
    """The operations of a forward pass in which so many visits come back to a layer."""
    every, wanted = B * T, B * last
    qkv = 2 * model.model_dim * (model.model_dim + 2 * model.kv_dim)
    gate = 2 * model.num_heads * model.gate_window if model.attention_gate else 0
    rest = 2 * model.model_dim * (model.model_dim + 2 * model.mlp_dim) + gate
    inner = model.num_layers - 1 + extra_visits
    total = inner * (every * (qkv + rest) + attention_flops(model, B, T))
    total += every * qkv + wanted * rest + attention_flops(model, B, T, last)
    if model.bigram_buckets and model.bigram_dim != model.model_dim:
        total += every * 2 * model.bigram_dim * model.model_dim
    if model.gated_smear:
        total += every * 2 * model.gate_window
    if model.value_embedding_dim != model.kv_dim:
        total += len(model.value_embedding_layers) * every * 2 * model.value_embedding_dim * model.kv_dim
    return total + wanted * 2 * model.model_dim * model.vocab_size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "bigram_dim": 32, "value_embedding_dim": 16, "mlp_multiple": 2.0},
        {"bigram_buckets": 0, "value_embedding_layers": (), "num_layers": 3, "num_kv_heads": 2},
        {"attention_gate": True, "gated_smear": True, "gate_window": 6},
    ],
)
@pytest.mark.parametrize("last", [T, 4])
def test_of_the_network(nano: Config, changes: dict, last: int) -> None:
    model = dataclasses.replace(nano.model, **changes)
    assert forward_flops(model, B, T, last) == by_hand(model, last)


def test_of_a_loop(nano: Config) -> None:
    model = dataclasses.replace(nano.model, num_layers=4, loop_layers=(1, 2), num_loops=2, value_embedding_layers=())
    assert forward_flops(model, B, T, looped=False) == by_hand(model)
    assert forward_flops(model, B, T) == by_hand(model, extra_visits=4)
    assert train_flops(model, B, T) == 3 * by_hand(model, extra_visits=4)


def test_the_backward_pass_does_twice_the_forward_pass(nano: Config) -> None:
    params = {path: jnp.ones(shape) for path, shape in parameter_shapes(nano.model).items()}
    tokens = jnp.zeros((B, T), jnp.int32)
    forward = partial(loss, nano.model)
    assert product_flops(jax.grad(forward), params, tokens, tokens) == 3 * product_flops(
        forward, params, tokens, tokens
    )


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
