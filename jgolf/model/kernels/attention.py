"""Causal attention, within the pieces of packed rows where there are such. Shapes as in plain.py."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgolf.model.kernels.door import Choice, choose


def causal_attention(
    choice: Choice,
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None = None,
    longest_piece: int = 0,
) -> Float[Array, "B S N H"]:
    """softmax(q kᵀ / √H) v over the positions of the same piece up to each one's own; query head n reads ⌊n·K/N⌋.

    Args:
      choice: which forms are allowed.
      q: queries of the last S positions.
      k, v: keys and values.
      segments: number of every position's piece, rising along a row; None where a row is one piece.
      longest_piece: most positions of a piece.
    """
    plain = partial(masked_attention, segments=segments, longest_piece=longest_piece)
    if choice == "interpret" or segments is not None or q.shape[1] < k.shape[1]:  # nobody's kernel does these
        return plain(q, k, v)
    return choose(choice, "attention", plain, _cudnn, obstacle(q.dtype, q.shape[-1]), q, k, v)


def obstacle(dtype: jnp.dtype, head_dim: int) -> str | None:
    """What keeps cuDNN's attention from heads of this type and width; None: nothing does."""
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"it works in bfloat16, not in {dtype}"
    if head_dim % 8 or head_dim > 128:
        return f"a head's width has to be a multiple of 8 up to 128, not {head_dim}"
    return None


def _cudnn(interpret: bool, q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def masked_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    longest_piece: int,
) -> Float[Array, "B S N H"]:
    """`causal_attention` in ordinary JAX."""
    num_queries, length = q.shape[1], k.shape[1]
    if segments is None and num_queries == length:
        return _attention(q, k, v, is_causal=True)
    if segments is not None and num_queries == length and length >= 2 * longest_piece:
        return _banded_attention(q, k, v, segments, longest_piece)
    visible = jnp.arange(length) <= jnp.arange(length - num_queries, length)[:, None]
    if segments is not None:
        visible = visible & (segments[:, -num_queries:, None] == segments[:, None, :])
    return _attention(q, k, v, mask=visible.reshape(-1, 1, num_queries, length))


def _banded_attention(q: Array, k: Array, v: Array, segments: Array, width: int) -> Array:
    """For long rows of short pieces: a block of `width` queries reads its own block of keys and the one before.

    One block at a time, and again in the backward pass: the scores of all blocks are never held at once.
    """
    rows, length = segments.shape
    blocks = -(-length // width)
    rest = ((0, 0), (0, blocks * width - length))

    def in_blocks(array: Array, filling: int = 0) -> Array:
        padded = jnp.pad(array, rest + ((0, 0),) * (array.ndim - 2), constant_values=filling)
        return padded.reshape(rows, blocks, width, *array.shape[2:]).swapaxes(0, 1)

    def with_block_before(array: Array, filling: int = 0) -> Array:
        first = jnp.full_like(array[:1], filling)
        return jnp.concatenate([jnp.concatenate([first, array[:-1]]), array], axis=2)

    queries, own = in_blocks(q), in_blocks(segments, -1)
    keys, values = (with_block_before(in_blocks(array)) for array in (k, v))
    pieces = with_block_before(own, -2)
    in_order = jnp.arange(2 * width) <= width + jnp.arange(width)[:, None]

    @jax.checkpoint
    def block(arrays: tuple[Array, ...]) -> Array:
        q, k, v, own, pieces = arrays
        visible = in_order & (own[:, :, None] == pieces[:, None, :])
        return _attention(q, k, v, mask=visible[:, None])

    y = jax.lax.map(block, (queries, keys, values, own, pieces))
    return y.swapaxes(0, 1).reshape(rows, blocks * width, *q.shape[2:])[:, :length]


def _attention(q: Array, k: Array, v: Array, **which: Array | bool) -> Array:
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else "default"):
        return jax.nn.dot_product_attention(q, k, v, implementation="xla", **which)
