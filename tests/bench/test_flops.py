"""The count of the network's products against closed forms, and closed forms against counts of traced programs."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.bench.flops import (
    forward_flops,
    kernel_flops,
    newton_schulz_flops,
    pairs_within_pieces,
    product_flops,
    train_flops,
    visible_pairs,
)
from jgolf.config import Config, ModelConfig
from jgolf.data.shards import BOS_ID
from jgolf.model.functional import apply, loss, parameter_shapes
from jgolf.optim.muon import newton_schulz
from tests.conftest import RECIPE

B, T = 2, 16


def pairs_flops(model: ModelConfig, last: int = T) -> int:
    """Of one layer's attention: two products of a head's width for every key that each of the queries sees."""
    return B * 2 * 2 * model.model_dim * sum(position + 1 for position in range(T - last, T))


def by_hand(model: ModelConfig, last: int = T, extra_visits: int = 0) -> int:
    """The operations of a forward pass in which so many visits come back to a layer."""
    every, wanted = B * T, B * last
    qkv = 2 * model.model_dim * (model.model_dim + 2 * model.kv_dim)
    gate = 2 * model.num_heads * model.gate_window if model.attention_gate else 0
    rest = 2 * model.model_dim * (model.model_dim + 2 * model.mlp_dim) + gate
    inner = model.num_layers - 1 + extra_visits
    total = inner * (every * (qkv + rest) + pairs_flops(model))
    total += every * qkv + wanted * rest + pairs_flops(model, last)
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
    assert train_flops(model, np.zeros((B, T))) == 3 * by_hand(model, extra_visits=4)


def test_the_backward_pass_does_twice_the_forward_pass(nano: Config) -> None:
    params = {path: jnp.ones(shape) for path, shape in parameter_shapes(nano.model).items()}
    tokens = jnp.zeros((B, T), jnp.int32)
    forward = partial(loss, nano.model)
    assert product_flops(jax.grad(forward), params, tokens, tokens) == 3 * product_flops(
        forward, params, tokens, tokens
    )


def small(name: str) -> ModelConfig:
    """A recipe's network with all of its parts, in the order in which they run, but narrow."""
    model = configs.load(name).model
    narrow = {"model_dim": 48, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 80, "kernels": "plain"}
    if model.rope_dims:
        narrow["rope_dims"] = 4
    narrow |= {"bigram_buckets": 50, "bigram_dim": 20} if model.bigram_buckets else {}
    narrow |= {"value_embedding_dim": 14} if model.value_embedding_layers else {}
    return configs.resolved(dataclasses.replace(model, **narrow))


def text_flops(text: str) -> int:
    """Operations of all products in a program's text, by the shapes that are printed there."""
    products = re.findall(
        r"dot_general %\S+, %\S+, (?:batching_dims = \[[\d, ]+\] x \[[\d, ]+\], )?"
        r"contracting_dims = \[([\d, ]+)\] x .*?"
        r": \(tensor<([\dx]+)x\w+>, tensor<\S+>\) -> tensor<([\dx]+)x\w+>",
        text,
    )
    assert len(products) == text.count("stablehlo.dot_general")
    sizes = ([[int(size) for size in shape.split("x")] for shape in shapes] for _, *shapes in products)
    return sum(
        2 * prod(result) * prod(left[int(axis)] for axis in contracted.split(","))
        for (contracted, *_), (left, result) in zip(products, sizes, strict=True)
    )


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("name", configs.config_names())
def test_of_every_recipe(name: str, looped: bool) -> None:
    """All that the lowered program multiplies, less the pairs that attention masks, of the T · T of each execution."""
    model = small(name)
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(model).items()}
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    text = jax.jit(lambda params, tokens: apply(model, params, tokens, looped=looped)).lower(params, tokens).as_text()
    loop = len(model.loop_layers) * model.num_loops if looped else 0
    masked = (model.num_layers + loop) * B * 4 * model.model_dim * T * (T - 1) // 2
    assert forward_flops(model, B, T, looped=looped) == text_flops(text) - masked
    # The first and the last matrix of each block, once for each execution.
    up = 2 * B * T * model.model_dim * model.mlp_dim
    assert forward_flops(model, B, T, looped=looped) > (model.num_layers + loop) * 2 * up


def test_what_documents_leave_of_attention() -> None:
    model, rows, piece_length = small("pr1855"), np.full((2, 40), 7), 9
    rows[0, [3, 4, 20]] = rows[1, [0, 39]] = BOS_ID
    pairs = 0
    for row in rows:
        pieces, inside = [], 0
        for token in row:  # counted a token at a time
            inside = 0 if token == BOS_ID or inside == piece_length else inside
            inside += 1
            pieces.append(inside)
        pairs += sum(pieces)
    assert pairs_within_pieces(rows, piece_length) == pairs
    assert pairs_within_pieces(np.full((3, 8), 7), 8) == 3 * 36 == visible_pairs(3, 8)
    apart, whole = (train_flops(model, rows, length) for length in (piece_length, 0))
    executions = 11 + 3 * 2
    assert whole - apart == 3 * executions * 4 * model.model_dim * (2 * 40 * 41 // 2 - pairs)


@pytest.mark.parametrize(("looped", "millions"), [(False, 215.5), (True, 319.3)])
def test_of_pr1855(looped: bool, millions: float) -> None:
    """Six for every weight and execution, of 11 blocks and of 17, and at most 12 · 512 · 1,024.5 for attention."""
    model, tokens = configs.resolved(configs.load("pr1855").model), 2 * 2048
    without_attention = 3 * kernel_flops(model, 2, 2048, looped=looped)
    assert without_attention / tokens / 1e6 == pytest.approx(millions, abs=0.05)
    with_attention = train_flops(model, np.zeros((2, 2048)), looped=looped)
    assert with_attention - without_attention == tokens * (17 if looped else 11) * 12 * 512 * 1024.5


def test_of_pr592() -> None:
    assert train_flops(RECIPE.model, np.zeros((48, 2048))) == pytest.approx(2.4e13, rel=0.03)


@pytest.mark.parametrize(("count", "rows", "columns"), [(3, 4, 8), (1, 8, 4)])
def test_of_newton_schulz(count: int, rows: int, columns: int) -> None:
    matrices = jnp.ones((count, *sorted((rows, columns))))
    found = product_flops(partial(newton_schulz, steps=5, dtype="float32"), matrices)
    assert found == newton_schulz_flops(count, rows, columns, 5)
