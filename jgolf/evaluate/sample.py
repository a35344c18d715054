"""A model continues a text, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jgolf.config import ModelConfig
from jgolf.data.tokenizer import Tokenizer
from jgolf.errors import JgolfError
from jgolf.evaluate.stepping import Stepper
from jgolf.model.functional import Params


def check_sampling(tokens: int, temperature: float, top_k: int, top_p: float, seed: int) -> None:
    """Raises JgolfError for the first of these that makes no sense; see `continuations`."""
    if not 0 <= temperature < math.inf or top_k < 0 or tokens < 0:
        raise JgolfError(
            f"--temperature {temperature}, --top-k {top_k}, --tokens {tokens}: expected numbers of 0 or more"
        )
    if not 0 < top_p <= 1:
        raise JgolfError(f"--top-p {top_p}: expected more than 0, and at most 1")
    if not 0 <= seed < 1 << 32:
        raise JgolfError(f"--seed {seed}: expected from 0 to 4294967295")


def continued_text(tokenizer: Tokenizer, ids: Sequence[int], new: Iterable[int]) -> Iterator[str]:
    """The text of new tokens after `ids`, in pieces of whole characters, up to the end of the document."""
    ids = list(ids)
    shown = tokenizer.decode(ids)
    for token in new:
        if token == tokenizer.bos_id:
            return
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # else in the middle of a character of several bytes
            yield text[len(shown) :]
            shown = text


def continuations(
    config: ModelConfig,
    params: Params,
    ids: list[int],
    count: int,
    seq_len: int,
    temperature: float,
    top_k: int,
    seed: int,
    top_p: float = 1.0,
    documents: bool = False,
) -> Iterator[int]:
    """Yields `count` sampled token ids after `ids`, with a context of up to `seq_len` tokens.

    Args:
      config: the network.
      params: its parameters.
      ids: the text so far, one token or more.
      count: tokens to sample.
      seq_len: length that the model was trained on.
      temperature: of the distribution; 0 takes the likeliest token.
      top_k: choose among this many likeliest tokens; 0 for all.
      seed: of the choices.
      top_p: choose among the fewest likeliest tokens that have this probability together; 1 for all.
      documents: whether the model was trained on documents apart.
    """
    stepper, key = Stepper(config, params, 1, seq_len, seq_len, documents), jax.random.key(seed)
    new = ids[-seq_len:]
    for _ in range(count):
        for token in new:
            logits = stepper([token])
        key, own = jax.random.split(key)
        new = [int(chosen(logits[0], own, temperature, top_p, top_k))]
        yield new[0]


@partial(jax.jit, static_argnames="top_k")
def chosen(
    logits: Float[Array, " vocab"], key: PRNGKeyArray, temperature: float, top_p: float, top_k: int
) -> Int[Array, ""]:
    """A token drawn from the likeliest; see `continuations` for what limits them. Ties at the limit are kept."""
    scaled = logits / jnp.maximum(temperature, 1e-6)
    if 0 < top_k < len(logits):
        scaled = jnp.where(scaled >= jax.lax.top_k(scaled, top_k)[0][-1], scaled, -jnp.inf)
    falling = jnp.sort(scaled, descending=True)
    before = jnp.cumsum(jax.nn.softmax(falling)) - jax.nn.softmax(falling)
    least = jnp.min(jnp.where((before < top_p) | (top_p >= 1), falling, falling[0]))
    drawn = jax.random.categorical(key, jnp.where(scaled >= least, scaled, -jnp.inf))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits))
