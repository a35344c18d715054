"""Losses and gradients of networks of many shapes against the network written out plainly, and against its kernels."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain_network
import pytest

from jgolf.config import ModelConfig
from jgolf.evaluate.score import last_token_losses
from jgolf.model import attention, heads, network
from jgolf.model.functional import Params, loss, parameter_shapes, token_losses
from tests.conftest import RECIPE

CONFIG = dataclasses.replace(
    RECIPE.model,
    vocab_size=64,
    num_layers=2,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_multiple=2.0,
    bigram_buckets=48,
    bigram_dim=16,
    xsa_layers=(1,),
    rope_dims=4,
    value_embedding_layers=(0, 1),
    value_embedding_dim=8,
    compute_dtype="float32",
    attention="xla",
)
VARIANTS = {
    "odd layers": {"num_layers": 3, "xsa_layers": (2,), "value_embedding_layers": (1, 2)},
    "kv heads = heads": {"num_kv_heads": 4},
    "all dimensions rotated, XSA everywhere": {"rope_dims": 0, "xsa_layers": (0, 1)},
    "equal widths": {"bigram_dim": 32, "value_embedding_dim": 16},
    "untied head, no softcap": {"tie_embeddings": False, "logit_softcap": 0.0},
    "bare": {
        "bigram_buckets": 0, "smear_gate": False, "unet_skips": False, "xsa_layers": (), "ln_scale": False,
        "value_embedding_layers": (), "q_gain": 0.0,
    },
    "a width that is no power of two": {"model_dim": 24, "num_heads": 2, "num_kv_heads": 1},
}  # fmt: skip


def random_params(config: ModelConfig) -> Params:
    rng = np.random.default_rng(0)
    return {
        path: jnp.asarray(rng.normal(0.5 if len(shape) < 2 else 0.0, 0.3, shape), jnp.float32)
        for path, shape in parameter_shapes(config).items()
    }


def random_tokens(config: ModelConfig, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    inputs, targets = (jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32) for _ in range(2))
    return inputs, targets


def assert_same_gradients(found: Params, expected: Params) -> None:
    """Each to 2e-4 of its norm; to 3e-6 of the norm of all where a sum of large terms leaves next to nothing."""
    assert found.keys() == expected.keys()
    total = np.sqrt(sum(float(jnp.sum(value**2)) for value in expected.values()))
    for path, value in expected.items():
        error, norm = float(jnp.linalg.norm(found[path] - value)), float(jnp.linalg.norm(value))
        assert error < 2e-4 * norm + 3e-6 * total, (path, error, norm, total)


def plain_value_and_grad(config: ModelConfig, params: Params, tokens: tuple[jax.Array, jax.Array]):
    return jax.value_and_grad(lambda params: jnp.mean(plain_network.token_losses(params, config, *tokens)))(params)


def assert_same_as_plain(config: ModelConfig, tokens: tuple[jax.Array, jax.Array]) -> None:
    params = random_params(config)
    value, grads = jax.jit(jax.value_and_grad(lambda params: loss(config, params, *tokens)))(params)
    expected_value, expected = jax.jit(lambda params: plain_value_and_grad(config, params, tokens))(params)
    np.testing.assert_allclose(value, expected_value, rtol=2e-5)
    assert_same_gradients(grads, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients(variant):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    assert_same_as_plain(config, random_tokens(config, (2, 12)))


def test_one_sequence_of_one_token():
    assert_same_as_plain(CONFIG, random_tokens(CONFIG, (1, 1)))


@pytest.mark.parametrize("variant", ["odd layers", "all dimensions rotated, XSA everywhere"])
def test_the_kernels_compute_the_same(variant, monkeypatch):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    assert heads.can_split_heads(heads.HeadShape(4, 2, 8, 0.0), heads.TILE_ROWS)
    # Kernels are interpreted on a CPU; cuDNN's is the one that cannot be.
    xla_attention = attention.causal_attention
    monkeypatch.setattr(network, "attention_kernel", lambda config: "cudnn")
    monkeypatch.setattr(attention, "causal_attention", lambda q, k, v, kernel: xla_attention(q, k, v, "xla"))
    assert_same_as_plain(config, random_tokens(config, (8, heads.TILE_ROWS)))


def test_gradients_under_vmap():
    params, tokens = random_params(CONFIG), random_tokens(CONFIG, (2, 12))
    gradient = jax.grad(lambda params: loss(CONFIG, params, *tokens))
    both = jax.jit(jax.vmap(gradient))({path: jnp.stack([1.1 * params[path], params[path]]) for path in params})
    expected = jax.jit(gradient)(params)
    assert_same_gradients({path: value[1] for path, value in both.items()}, expected)


def test_losses_of_the_last_positions():
    params, (inputs, targets) = random_params(CONFIG), random_tokens(CONFIG, (2, 12))
    every = jax.jit(lambda: token_losses(CONFIG, params, inputs, targets))()
    for num_last in (5, 12):
        last = jax.jit(lambda targets: last_token_losses(CONFIG, params, inputs, targets))(targets[:, -num_last:])
        np.testing.assert_allclose(last, every[:, -num_last:], rtol=1e-5)
