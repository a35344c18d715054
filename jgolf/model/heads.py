"""From the product with the q, k and v kernels to normalised, rotated heads, as one kernel each way.

What it computes is `jgolf.model.attention.split_heads`; this does it in one pass over memory. A head's
normalising needs a reduction, its rotation the neighbouring half of the rotated dimensions, and cuDNN
three separate arrays: cut up by the compiler, that is five passes forward and more backward.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

TILE_ROWS = 64
NUM_WARPS = 8


class HeadShape(NamedTuple):
    """Static sizes; a row of the product holds the heads of q, then k, then v."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float


def can_split_heads(shape: HeadShape, length: int) -> bool:
    """Whether the kernel's tiles fit: powers of two, and no tile across two sequences."""
    return shape.head_dim & (shape.head_dim - 1) == 0 and length % TILE_ROWS == 0


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def split_heads(
    shape: HeadShape,
    qkv: Float[Array, "B T E"],
    scale: Float[Array, "B T 1"],
    gain: Float[Array, N],
    cos: Float[Array, "T r"],
    sin: Float[Array, "T r"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """q, k and v of `scale · qkv` for a constant scale: q and k normalised per head and rotated, q times `gain`."""
    return _forward(shape, qkv, scale, gain, cos, sin)[0]


def _forward(shape, qkv, scale, gain, cos, sin):
    def kernel(qkv_ref, scale_ref, gain_ref, cos_ref, sin_ref, q_ref, k_ref, v_ref):
        group, scale = pl.program_id(1), scale_ref[...]

        def rotated(head):
            x = _load(qkv_ref, head, shape)
            normalise = scale * _inverse_rms(scale * x, shape)
            return normalise * (x * cos_ref[...] + _load_partner(qkv_ref, head, cos, shape) * sin_ref[...])

        for head in _query_heads(group, shape):
            _store(q_ref, head, shape, gain_ref[0, head] * rotated(head))
        _store(k_ref, group, shape, rotated(shape.num_heads + group))
        _store(v_ref, group, shape, scale * _load(qkv_ref, shape.num_heads + shape.num_kv_heads + group, shape))

    widths = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
    out = [jax.ShapeDtypeStruct((qkv.size // qkv.shape[-1], n * shape.head_dim), qkv.dtype) for n in widths]
    parts = _call(kernel, "split_heads_forward", shape, out, qkv, scale, gain, cos, sin)
    q, k, v = (part.reshape(*qkv.shape[:2], n, shape.head_dim) for part, n in zip(parts, widths, strict=True))
    return (q, k, v), (qkv, scale, gain, cos, sin)


def _backward(shape, residuals, gradients):
    qkv, scale, gain, cos, sin = residuals

    def kernel(qkv_ref, scale_ref, gain_ref, cos_ref, sin_ref, q_ref, k_ref, v_ref, out_ref, gain_out):
        group, scale = pl.program_id(1), scale_ref[...]

        def unrotate(ref, head):
            """The rotation's transpose: the partner's sine has the other sign."""
            gradient = _load(ref, head, shape)
            return gradient * cos_ref[...] - _load_partner(ref, head, cos, shape) * sin_ref[...]

        def unnormalise(head, gradient, gain=None):
            x = scale * _load(qkv_ref, head, shape)
            inverse_rms = _inverse_rms(x, shape)
            normal = inverse_rms * x
            along = jnp.sum(gradient * normal, axis=-1, keepdims=True)
            if gain is not None:
                gain_out[0, head] = jnp.sum(along)
                gradient, along = gain * gradient, gain * along
            _store(out_ref, head, shape, scale * inverse_rms * (gradient - normal * along / shape.head_dim))

        value = shape.num_heads + shape.num_kv_heads + group
        _store(out_ref, value, shape, scale * _load(v_ref, group, shape))
        unnormalise(shape.num_heads + group, unrotate(k_ref, group))
        for head in _query_heads(group, shape):
            unnormalise(head, unrotate(q_ref, head), gain_ref[0, head])

    rows = qkv.size // qkv.shape[-1]
    out = [
        jax.ShapeDtypeStruct((rows, qkv.shape[-1]), qkv.dtype),
        jax.ShapeDtypeStruct((rows // TILE_ROWS, shape.num_heads), jnp.float32),
    ]
    heads = [gradient.reshape(rows, -1) for gradient in gradients]
    qkv_gradient, gain_gradient = _call(kernel, "split_heads_backward", shape, out, qkv, scale, gain, cos, sin, heads)
    no_scale, *no_tables = map(jnp.zeros_like, (scale, cos, sin))  # constants
    return qkv_gradient.reshape(qkv.shape), no_scale, jnp.sum(gain_gradient, axis=0), *no_tables


split_heads.defvjp(_forward, _backward)


def _query_heads(group: Array, shape: HeadShape) -> list[Array]:
    size = shape.num_heads // shape.num_kv_heads
    return [group * size + i for i in range(size)]


def _full_tables(cos: Array, sin: Array, shape: HeadShape) -> tuple[Float[Array, "T H"], Float[Array, "T H"]]:
    """Cosines and signed sines for all dimensions; those that are not rotated have an angle of 0."""
    rest = ((0, 0), (0, shape.head_dim - 2 * cos.shape[-1]))
    return (
        jnp.pad(jnp.concatenate([cos, cos], axis=1), rest, constant_values=1.0),
        jnp.pad(jnp.concatenate([sin, -sin], axis=1), rest),
    )


def _inverse_rms(x: Array, shape: HeadShape) -> Array:
    return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + shape.epsilon)


def _load(ref, head: Array, shape: HeadShape) -> Array:
    return ref[:, pl.ds(head * shape.head_dim, shape.head_dim)].astype(jnp.float32)


def _load_partner(ref, head: Array, cos: Array, shape: HeadShape) -> Array:
    """For each dimension that is rotated the one that it is rotated with: i + r for i, and i for i + r."""
    r = cos.shape[-1]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (TILE_ROWS, shape.head_dim), axis) for axis in (0, 1))
    partner = jnp.where(column < r, column + r, jnp.where(column < 2 * r, column - r, column))
    return ref[row, head * shape.head_dim + partner].astype(jnp.float32)


def _store(ref, head: Array, shape: HeadShape, values: Array) -> None:
    ref[:, pl.ds(head * shape.head_dim, shape.head_dim)] = values.astype(ref.dtype)


def _call(kernel, name, shape, out, qkv, scale, gain, cos, sin, heads=()):
    """Runs a kernel on every tile of rows, once for each key/value head."""

    def tiled(array):
        return pl.BlockSpec((TILE_ROWS, array.shape[1]), lambda i, group: (i, 0))

    num_tiles, tiles_each = qkv.size // qkv.shape[-1] // TILE_ROWS, len(cos) // TILE_ROWS
    table = pl.BlockSpec((TILE_ROWS, shape.head_dim), lambda i, group: (i % tiles_each, 0))
    shared = pl.BlockSpec((1, shape.num_heads), lambda i, group: (0, 0))
    per_tile = pl.BlockSpec((1, shape.num_heads), lambda i, group: (i, 0))
    qkv, scale = qkv.reshape(-1, qkv.shape[-1]), scale.reshape(-1, 1)
    return pl.pallas_call(
        kernel,
        grid=(num_tiles, shape.num_kv_heads),
        in_specs=[tiled(qkv), tiled(scale), shared, table, table, *map(tiled, heads)],
        out_specs=[per_tile if array.shape[0] == num_tiles else tiled(array) for array in out],
        out_shape=out,
        compiler_params=triton.CompilerParams(num_warps=NUM_WARPS, num_stages=1),
        interpret=jax.default_backend() == "cpu",
        name=name,
    )(qkv, scale, gain[None], *_full_tables(cos, sin, shape), *heads)
