"""No part of a recipe lets a position see a later one."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.config import Config, ModelConfig
from jgolf.config.parts import PARTS, UNET_SKIPS, Part, compose
from jgolf.data.shards import BOS_ID
from jgolf.errors import ConfigError
from jgolf.model.functional import apply, parameter_shapes

SMALLEST = {
    "model.vocab_size": 32,
    "model.model_dim": 32,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.mlp_multiple": 1.0,
    "model.bigram_dim": 8,
    "model.value_embedding_dim": 8,
    "model.gate_window": 6,
    "model.compute_dtype": "float32",
}
NETWORK_PARTS = [part for part in PARTS if any(name.startswith("model.") for name in part.settings)]
LENGTH, CHANGED, PIECE_LENGTH = 12, (3, 7, 11), 5


def with_part(part: Part) -> ModelConfig:
    """The smallest network of two or more layers in which the part makes sense, with skips, which gates need."""
    for num_layers in range(2, 9):
        config = compose("small", Config(), SMALLEST, UNET_SKIPS, part, {"model.num_layers": num_layers})
        with contextlib.suppress(ConfigError):
            configs.validate(config)
            return config.model
    raise AssertionError(f"{part.name}: not in any small network")


def random_params(config: ModelConfig) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config).items()
    return {path: jnp.asarray(rng.normal(0.3, 0.5, shape), jnp.float32) for path, shape in shapes}


def rows() -> np.ndarray:
    """A row of three documents, and the same with another token at each of CHANGED."""
    tokens = np.tile(np.random.default_rng(1).integers(BOS_ID + 1, 16, LENGTH), (1 + len(CHANGED), 1))
    tokens[:, [0, 5, 9]] = BOS_ID
    tokens[1 + np.arange(len(CHANGED)), CHANGED] += 16
    return tokens.astype(np.int32)


@pytest.mark.parametrize("part", NETWORK_PARTS, ids=lambda part: part.name)
def test_a_later_token_changes_no_earlier_logit(part: Part) -> None:
    """Of the written network and of the modules, which agree, with attention over rows and within documents."""
    config = with_part(part)

    @jax.jit
    def logits(params, tokens):
        networks = [dataclasses.replace(config, kernels=kernels) for kernels in ("plain", "interpret")]
        return [
            [apply(network, params, tokens, piece_length=length) for length in (0, PIECE_LENGTH)]
            for network in networks
        ]

    written, modules = jax.device_get(logits(random_params(config), rows()))
    np.testing.assert_allclose(modules, written, rtol=1e-4, atol=1e-4)
    for first, *others in (*written, *modules):
        for position, changed in zip(CHANGED, others, strict=True):
            np.testing.assert_array_equal(changed[:position], first[:position])
            assert np.abs(changed[position] - first[position]).max() > 1e-3
