"""`jgolf sample`: a model continues a text."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Int, PRNGKeyArray

from jgolf.config import Average, ModelConfig
from jgolf.errors import JgolfError
from jgolf.evaluate.cli import tokenizer_of
from jgolf.evaluate.score import scoring_model
from jgolf.load import load_model
from jgolf.model.context import rotary_base
from jgolf.model.functional import Params, hidden, logits_of
from jgolf.options import PathText

SHORTEST_CONTEXT = 64


def sample(
    model: tyro.conf.Positional[PathText],
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    tokenizer: Path | None = None,
    config: PathText | None = None,
    average: Average | None = None,
) -> None:
    """Let a model continue a text.

    Example: jgolf sample runs/demo --prompt "The function" --tokens 100

    Args:
      model: A run directory, a .jgolf artifact, or a PyTorch checkpoint (.pt) or artifact (.ptz).
      prompt: The text to continue; empty starts a new document.
      tokens: Tokens to write at most; a new document ends the text.
      temperature: Below 1 prefers likely tokens; 0 always takes the likeliest.
      top_k: Choose among this many likeliest tokens; 0 for all.
      seed: Seed of the choices.
      tokenizer: Its file; the run's own by default, also of a run's artifact.
      config: For PyTorch files, what their tensors do not tell.
      average: For a run, the weights to use; those that it exports by default.
    """
    if not 0 <= temperature < math.inf or top_k < 0 or tokens < 0:
        raise JgolfError(
            f"--temperature {temperature}, --top-k {top_k}, --tokens {tokens}: expected numbers of 0 or more"
        )
    if not 0 <= seed < 1 << 32:
        raise JgolfError(f"--seed {seed}: expected from 0 to 4294967295")
    prompt = prompt.encode(errors="replace").decode()  # bytes of the command line that are no UTF-8
    loaded = load_model(model, config, average)
    pieces = tokenizer_of(loaded, tokenizer)
    ids = [pieces.bos_id, *pieces.encode(prompt)]
    shown = pieces.decode(ids)
    print(shown, end="", flush=True)
    generated = continuations(
        loaded.config.model, loaded.params, ids, tokens, loaded.config.train.seq_len, temperature, top_k, seed
    )
    for token in generated:
        if token == pieces.bos_id:
            break
        ids.append(token)
        text = pieces.decode(ids)
        if text.endswith("\ufffd"):
            continue  # in the middle of a character of several bytes
        print(text[len(shown) :], end="", flush=True)
        shown = text
    print()


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
