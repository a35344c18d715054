"""A model continues a text, token by token."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from jgolf.config import ModelConfig
from jgolf.evaluate.score import scoring_model
from jgolf.model.context import rotary_base
from jgolf.model.functional import Params, hidden, logits_of

SHORTEST_CONTEXT = 64


def continuations(
    config: ModelConfig,
    params: Params,
    ids: list[int],
    count: int,
    seq_len: int,
    temperature: float,
    top_k: int,
    seed: int,
):
    """Yields `count` sampled token ids after `ids`, with a context of up to `seq_len` tokens."""
    # Short texts run at a short length, with the rotary base of the length that was trained on.
    base = rotary_base(config, seq_len)
    config = dataclasses.replace(scoring_model(config), rope_base=base, rope_original_length=seq_len)
    params = jax.device_put(params)
    ids, key = list(ids), jax.random.key(seed)
    for _ in range(count):
        context = ids[-seq_len:]
        length = min(seq_len, max(SHORTEST_CONTEXT, 1 << (len(context) - 1).bit_length()))
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(context)] = context
        key, own = jax.random.split(key)
        token = int(_next_token(config, top_k, params, padded, len(context) - 1, temperature, own))
        ids.append(token)
        yield token


@partial(jax.jit, static_argnums=(0, 1))
def _next_token(
    config: ModelConfig,
    top_k: int,
    params: Params,
    tokens: Int[Array, "1 T"],
    last: Int[Array, ""],
    temperature: float,
    key: PRNGKeyArray,
) -> Int[Array, ""]:
    at_last = jax.lax.dynamic_slice_in_dim(hidden(config, params, tokens), last, 1, axis=1)
    logits = logits_of(config, params, at_last)[0, 0]
    if top_k and top_k < config.vocab_size:
        logits = jnp.where(logits >= jax.lax.top_k(logits, top_k)[0][-1], logits, -jnp.inf)
    sampled = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, sampled, jnp.argmax(logits))
