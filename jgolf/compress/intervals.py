"""Distributions as integers, on the device: what an entropy coder can rely on to the last bit. B rows, V symbols."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgolf.compress.rans import TOTAL

_KEPT = 1 - 2.0**-12
"""Of a probability; the likeliest symbol has the rest, which is more than rounding can take from the sum."""


def cumulative(logits: Float[Array, "B V"]) -> Int[Array, "B V+1"]:
    """Where each symbol's interval begins, in proportion to softmax(logits); the last number is TOTAL.

    Every symbol has at least one of the TOTAL integers.
    """
    num_symbols = logits.shape[1]
    shares = jax.nn.softmax(logits) * (_KEPT * (TOTAL - num_symbols))
    counts = 1 + jnp.floor(shares).astype(jnp.int32)
    rest = TOTAL - jnp.sum(counts, axis=1, keepdims=True)
    likeliest = jnp.arange(num_symbols) == jnp.argmax(logits, axis=1, keepdims=True)
    ends = jnp.cumsum(counts + jnp.where(likeliest, rest, 0), axis=1)
    return jnp.pad(ends, ((0, 0), (1, 0)))


@jax.jit
def intervals_of(
    table: Int[Array, "B V+1"], logits: Float[Array, "B V"], symbols: Int[Array, " B"]
) -> tuple[Int[Array, "2 B"], Float[Array, " B"]]:
    """Starts and frequencies of one symbol of each row, and its information by the logits themselves, in nats."""
    starts, ends = (jnp.take_along_axis(table, symbols[:, None] + offset, axis=1)[:, 0] for offset in (0, 1))
    chosen = jnp.take_along_axis(logits, symbols[:, None], axis=1)[:, 0]
    return jnp.stack([starts, ends - starts]), jax.nn.logsumexp(logits, axis=1) - chosen
