"""Causal attention, within the pieces of packed rows where there are such. Shapes as in plain.py.

On Hopper GPUs the kernel of the package jax-linear-attention, which does not touch what a document may not see; on
other NVIDIA GPUs, and without that package, cuDNN's where rows are whole; ordinary JAX for everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jgolf.model.kernels import door
from jgolf.model.kernels.door import Choice, choose


def causal_attention(
    choice: Choice,
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None = None,
    longest_piece: int = 0,
    repeatable: bool = True,
) -> Float[Array, "B S N H"]:
    """softmax(q kᵀ / √H) v over the positions of the same piece up to each one's own; query head n reads ⌊n·K/N⌋.

    Args:
      choice: which forms are allowed.
      q: queries of the last S positions.
      k, v: keys and values.
      segments: number of every position's piece, rising along a row; None where a row is one piece.
      longest_piece: most positions of a piece.
      repeatable: gradients are the same to the bit every time; without it a kernel may sum them in any order.
    """
    arrays = (q, k, v) if segments is None else (q, k, v, segments)
    plain = partial(masked_attention, longest_piece=longest_piece)
    if choice == "interpret" or q.shape[1] < k.shape[1]:  # nobody's kernel does these
        return plain(*arrays)
    name, kernel, reason = kernel_for(q.dtype, q.shape[-1], documents=segments is not None, repeatable=repeatable)
    return choose(choice, name, plain, kernel, reason, *arrays)


def kernel_for(
    dtype: jnp.dtype, head_dim: int, documents: bool, repeatable: bool = True
) -> tuple[str, Callable[..., Array], str | None]:
    """The operation's name, the kernel that this process's GPU has for it, and what keeps it from such heads."""
    name = "attention within documents" if documents else "attention"
    flash = flash_attention()
    if flash is not None and dtype == jnp.bfloat16 and head_dim in (64, 128):
        return name, partial(_flash, flash, "ranged" if repeatable else "fused"), None
    if documents:
        return name, _cudnn, "only jax-linear-attention has one: it needs a Hopper GPU, bfloat16 and heads of 64 or 128"
    if dtype != jnp.bfloat16:
        return name, _cudnn, f"cuDNN works in bfloat16, not in {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > 128:
        return name, _cudnn, f"cuDNN wants heads of a width that 8 divides, up to 128, not of {head_dim}"
    return name, _cudnn, None


@cache
def flash_attention() -> Callable[..., Array] | None:
    """The function of jax-linear-attention, on a Hopper GPU where the package is installed and fits this JAX."""
    if not door.is_hopper():
        return None
    try:
        from jla.ops.mosaic_gpu.attention import flash_attention
    except (ImportError, AttributeError):
        return None
    return flash_attention


def attention_name(dtype: str, head_dim: int, documents: bool) -> str:
    """What attention runs in on this process's GPU, in a few words."""
    _, kernel, reason = kernel_for(jnp.dtype(dtype), head_dim, documents)
    if reason is not None:
        return f"ordinary JAX: {reason}"
    return "cuDNN" if kernel is _cudnn else "jax-linear-attention"


def _cudnn(interpret: bool, q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _flash(
    flash: Callable[..., Array],
    backward: str,
    interpret: bool,
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None = None,
) -> Array:
    return _shared_flash(flash, backward, q, k, v, segments)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _shared_flash(flash, backward, q, k, v, segments):
    return _flash_forward(flash, backward, q, k, v, segments)[0]


# jit, both ways: layers of one shape share the kernels, which are traced and compiled once.
@partial(jax.jit, static_argnums=(0, 1))
def _flash_forward(flash, backward, q, k, v, segments):
    return jax.vjp(lambda q, k, v: flash(q, k, v, segment_ids=segments, backward=backward), q, k, v)


@jax.jit
def _flash_gradients(vjp, gradient):
    return vjp(gradient)


def _flash_backward(flash, backward, vjp, gradient):
    return *_flash_gradients(vjp, gradient), None


_shared_flash.defvjp(_flash_forward, _flash_backward)


def masked_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None = None,
    longest_piece: int = 0,
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


def attention_where(
    q: Float[Array, "B S N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], visible: Bool[Array, "B S T"]
) -> Float[Array, "B S N H"]:
    """softmax(q kᵀ / √H) v over the positions that each query may see, in ordinary JAX."""
    return _attention(q, k, v, mask=visible[:, None])


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
        return attention_where(q, k, v, visible)

    y = jax.lax.map(block, (queries, keys, values, own, pieces))
    return y.swapaxes(0, 1).reshape(rows, blocks * width, *q.shape[2:])[:, :length]


def _attention(q: Array, k: Array, v: Array, **which: Array | bool) -> Array:
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else "default"):
        return jax.nn.dot_product_attention(q, k, v, implementation="xla", **which)
