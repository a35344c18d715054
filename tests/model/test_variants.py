"""Networks of many shapes: the modules with their kernels against the written model."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.config import ModelConfig
from jgolf.model.functional import Params, loss, parameter_shapes, token_losses
from jgolf.model.kernels import rowwise
from jgolf.model.lora import HEAD, LowRank
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
    kernels="interpret",
)
KERNEL_TOKENS = rowwise.TILES_PER_SUM * rowwise.TILE_VALUES // 64
"""A number of tokens that the kernels' tiles divide, the widest row being the logits' 64."""
VARIANTS = {
    "odd layers": {"num_layers": 3, "xsa_layers": (2,), "value_embedding_layers": (1, 2)},
    "kv heads = heads": {"num_kv_heads": 4},
    "all dimensions rotated, XSA everywhere": {"rope_dims": 0, "xsa_layers": (0, 1)},
    "equal widths": {"bigram_dim": 32, "value_embedding_dim": 16},
    "nothing differs": {
        "num_kv_heads": 4, "rope_dims": 0, "xsa_layers": (0, 1), "bigram_dim": 32, "value_embedding_dim": 32,
    },
    "untied head, no softcap": {"tie_embeddings": False, "logit_softcap": 0.0},
    "bare": {
        "bigram_buckets": 0, "smear_gate": False, "unet_skips": False, "xsa_layers": (), "ln_scale": False,
        "value_embedding_layers": (), "q_gain": 0.0,
    },
    "a width that is no power of two": {"model_dim": 24, "num_heads": 2, "num_kv_heads": 1},
    "leaky activation": {"activation_slope": 0.5},
    "gated skips": {"num_layers": 3, "skip_gates": True},
    "attention gate": {"attention_gate": True, "gate_window": 6, "xsa_layers": ()},
    "attention gate after XSA": {"attention_gate": True, "attention_gate_scale": 1.0, "xsa_layers": (0, 1)},
    "gated smear": {"gated_smear": True},
    "loop": {"num_layers": 4, "loop_layers": (1, 2), "num_loops": 2},
    "lanes": {"num_layers": 4, "lanes_from": 3},
    "everything": {
        "num_layers": 5, "loop_layers": (1, 2), "lanes_from": -2, "skip_gates": True, "attention_gate": True,
        "gated_smear": True, "activation_slope": 0.3, "xsa_layers": (0, 3, 4),
    },
}  # fmt: skip
IN_OTHERS = {
    *("leaky activation", "gated skips", "gated smear", "loop", "lanes"),
    *("kv heads = heads", "all dimensions rotated, XSA everywhere", "equal widths"),
}
"""Variants by one part, which "everything" or "nothing differs" has."""
EVERYTHING_ONCE = VARIANTS["everything"] | {
    "num_layers": 3,
    "loop_layers": (1,),
    "num_loops": 1,
    "lanes_from": -1,
    "xsa_layers": (0, 2),
}
"""Every part, in as few layers as can be."""


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
    found, expected = jax.device_get(found), jax.device_get(expected)
    total = np.sqrt(sum(np.sum(value**2) for value in expected.values()))
    for path, value in expected.items():
        error, norm = np.linalg.norm(found[path] - value), np.linalg.norm(value)
        assert error < 2e-4 * norm + 3e-6 * total, (path, error, norm, total)


def value_and_grad(config: ModelConfig, tokens: tuple[jax.Array, jax.Array], **how: int):
    return jax.jit(jax.value_and_grad(lambda params: loss(config, params, *tokens, **how)))(random_params(config))


def assert_same_as_plain(config: ModelConfig, tokens: tuple[jax.Array, jax.Array], **how: int) -> None:
    value, grads = value_and_grad(config, tokens, **how)
    expected_value, expected = value_and_grad(dataclasses.replace(config, kernels="plain"), tokens, **how)
    np.testing.assert_allclose(value, expected_value, rtol=2e-5)
    assert_same_gradients(grads, expected)


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[pytest.mark.slow] if name in IN_OTHERS else []) for name in VARIANTS],
)
def test_loss_and_gradients(variant):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    assert_same_as_plain(config, random_tokens(config, (2, 12)))


def test_one_sequence_of_one_token():
    assert_same_as_plain(CONFIG, random_tokens(CONFIG, (1, 1)))


@pytest.mark.parametrize("variant", ["odd layers", "all dimensions rotated, XSA everywhere", "everything once"])
def test_shapes_that_suit_the_kernels(variant):
    config = dataclasses.replace(CONFIG, **VARIANTS.get(variant, EVERYTHING_ONCE))
    assert_same_as_plain(config, random_tokens(config, (KERNEL_TOKENS // 16, 16)))


@pytest.mark.parametrize("piece_length", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_documents(piece_length):
    config = dataclasses.replace(CONFIG, **EVERYTHING_ONCE)
    assert_same_as_plain(config, random_tokens(config, (2, 30)), piece_length=piece_length)


def test_gradients_under_vmap():
    params, tokens = random_params(CONFIG), random_tokens(CONFIG, (2, 12))
    gradient = jax.grad(lambda params: loss(CONFIG, params, *tokens))
    both = jax.jit(jax.vmap(gradient))({path: jnp.stack([1.1 * params[path], params[path]]) for path in params})
    expected = jax.jit(gradient)(params)
    assert_same_gradients({path: value[1] for path, value in both.items()}, expected)


@pytest.mark.parametrize("kernels", ["plain", "interpret"])
@pytest.mark.parametrize("additions", [False, True])
def test_losses_of_several_tokens_in_a_place(kernels, additions):
    config = dataclasses.replace(CONFIG, kernels=kernels)
    params, (inputs, targets) = random_params(config), random_tokens(config, (2, KERNEL_TOKENS // 2))
    others = jnp.roll(targets, 3, axis=1)
    rng = np.random.default_rng(0)
    shapes = (2, config.model_dim, 2), (2, 2, config.vocab_size)
    factors = LowRank(*(jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32) for shape in shapes))
    losses = jax.jit(partial(token_losses, config, params, inputs, additions={HEAD: factors} if additions else {}))
    both = losses(jnp.stack([targets, others], axis=-1))
    assert np.abs(both[..., 0] - both[..., 1]).max() > 0.1
    for index, own in enumerate((targets, others)):
        np.testing.assert_allclose(both[..., index], losses(own), rtol=1e-6)


def test_losses_of_the_last_positions():
    params, (inputs, targets) = random_params(CONFIG), random_tokens(CONFIG, (2, 12))
    every = jax.jit(lambda: token_losses(CONFIG, params, inputs, targets))()
    for num_last in (5, 12):
        last = jax.jit(lambda targets: token_losses(CONFIG, params, inputs, targets))(targets[:, -num_last:])
        np.testing.assert_allclose(last, every[:, -num_last:], rtol=1e-5)
