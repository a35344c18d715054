"""From the product with the q, k and v kernels to normalised, rotated heads, as one kernel each way.

What it computes is `plain_split_heads`; the kernel does it in one pass over memory. A head's
normalising needs a reduction, its rotation the neighbouring half of the rotated dimensions, and cuDNN
three separate arrays: cut up by the compiler, that is five passes forward and more backward.

The backward pass starts from the results, which attention keeps anyway, so the product itself is not kept:
a rotation can be undone, and one number for each head is all that else the norm's derivative needs.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jgolf.model.kernels.door import Choice, choose, triton
from jgolf.model.norm import RMS_EPSILON, rms_norm

TILE_ROWS = 16
NUM_WARPS = 8


class HeadShape(NamedTuple):
    """Static sizes; a row of the product holds the heads of q, then k, then v."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def num_factors(self) -> int:
        """Of the heads of q and k that a program handles, rounded up to a power of two."""
        return 1 << (self.num_heads // self.num_kv_heads).bit_length()


def split_heads(
    choice: Choice,
    shape: HeadShape,
    qkv: Float[Array, "B T E"],
    scale: Float[Array, "B T 1"],
    gain: Float[Array, " N"],
    cos: Float[Array, "T r"],
    sin: Float[Array, "T r"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """q, k and v of `scale · qkv` for a constant scale: q and k normalised per head and rotated, q times `gain`."""
    return choose(
        choice,
        "splitting heads",
        partial(plain_split_heads, shape),
        lambda interpret, *arrays: _split_heads(interpret, shape, *arrays),
        _obstacle(shape, qkv, choice),
        *(qkv, scale, gain, cos, sin),
    )


def _obstacle(shape: HeadShape, qkv: Float[Array, "B T E"], choice: Choice) -> str | None:
    """What keeps the kernel from these heads: its tiles are powers of two, and none lies across two sequences."""
    if choice != "interpret" and qkv.dtype != jnp.bfloat16:
        return f"it is made for bfloat16, not for {qkv.dtype}"
    if shape.head_dim & (shape.head_dim - 1):
        return f"a head's width has to be a power of two, not {shape.head_dim}"
    if qkv.shape[1] % TILE_ROWS:
        return f"a sequence's length has to be a multiple of {TILE_ROWS}, not {qkv.shape[1]}"
    return None if triton() else "this JAX has no Triton backend for Pallas"


def plain_split_heads(shape: HeadShape, qkv: Array, scale: Array, gain: Array, cos: Array, sin: Array) -> tuple:
    """`split_heads` in ordinary JAX."""
    x = (jax.lax.stop_gradient(scale) * qkv).reshape(*qkv.shape[:2], -1, shape.head_dim)
    q, k, v = jnp.split(x, [shape.num_heads, shape.num_heads + shape.num_kv_heads], axis=2)
    q, k = (rotated(rms_norm(part), cos, sin) for part in (q, k))
    return (gain[:, None] * q).astype(qkv.dtype), k.astype(qkv.dtype), v.astype(qkv.dtype)


def rotated(x: Float[Array, "B T n H"], cos: Float[Array, "T r"], sin: Float[Array, "T r"]) -> Float[Array, "B T n H"]:
    """RoPE: turns the pairs (i, i + r) of a head's first 2r dimensions."""
    r = cos.shape[-1]
    cos, sin = (table[:, None, :].astype(x.dtype) for table in (cos, sin))
    a, b, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return jnp.concatenate([a * cos + b * sin, b * cos - a * sin, rest], axis=-1)


Operand = tuple[Array | jax.ShapeDtypeStruct, pl.BlockSpec]


def _rows(array: Array | jax.ShapeDtypeStruct) -> Operand:
    """[rows, width], of which a program has the rows of its tile."""
    return array, pl.BlockSpec((TILE_ROWS, array.shape[1]), lambda i, group: (i, 0))


def _rows_of_group(array: Array | jax.ShapeDtypeStruct) -> Operand:
    """[groups, rows, width], of which a program has the rows of its tile and group."""
    return array, pl.BlockSpec((None, TILE_ROWS, array.shape[2]), lambda i, group: (group, i, 0))


def _per_tile(array: Array | jax.ShapeDtypeStruct) -> Operand:
    """[tiles, width], of which a program has the row of its tile."""
    return array, pl.BlockSpec((1, array.shape[1]), lambda i, group: (i, 0))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _split_heads(interpret: bool, shape: HeadShape, qkv: Array, scale: Array, gain: Array, cos: Array, sin: Array):
    return _forward(interpret, shape, qkv, scale, gain, cos, sin)[0]


# jit: layers of one shape share one kernel, which is traced and compiled once.
@partial(jax.jit, static_argnums=(0, 1))
def _forward(interpret, shape, qkv, scale, gain, cos, sin):
    def kernel(qkv_ref, scale_ref, gain_ref, cos_ref, sin_ref, q_ref, k_ref, v_ref, factors_ref):
        group, scale = pl.program_id(1), scale_ref[...]
        factors = []

        def rotated(head):
            x = _load(qkv_ref, head, shape)
            factors.append(scale * jax.lax.rsqrt(jnp.mean((scale * x) ** 2, axis=-1, keepdims=True) + RMS_EPSILON))
            return factors[-1] * (x * cos_ref[...] + _load_partner(qkv_ref, head, cos, shape) * sin_ref[...])

        for head in _query_heads(group, shape):
            _store(q_ref, head, shape, gain_ref[0, head] * rotated(head))
        _store(k_ref, group, shape, rotated(shape.num_heads + group))
        _store(v_ref, group, shape, scale * _load(qkv_ref, shape.num_heads + shape.num_kv_heads + group, shape))
        # Side by side in one store: a column at a time costs a third of the kernel's time.
        column = jax.lax.broadcasted_iota(jnp.int32, factors_ref.shape, 1)
        factors_ref[...] = sum(jnp.where(column == index, factor, 0.0) for index, factor in enumerate(factors))

    rows = qkv.size // qkv.shape[-1]
    widths = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
    out = [_rows(jax.ShapeDtypeStruct((rows, n * shape.head_dim), qkv.dtype)) for n in widths]
    out.append(_rows_of_group(jax.ShapeDtypeStruct((shape.num_kv_heads, rows, shape.num_factors), jnp.float32)))
    inputs = [_rows(qkv.reshape(rows, -1)), _rows(scale.reshape(rows, 1))]
    *parts, factors = _call(interpret, kernel, "split_heads_forward", shape, rows, out, inputs, gain, cos, sin)
    q, k, v = (part.reshape(*qkv.shape[:2], n, shape.head_dim) for part, n in zip(parts, widths, strict=True))
    return (q, k, v), (q, k, factors, scale, gain, cos, sin)


@partial(jax.jit, static_argnums=(0, 1))
def _backward(interpret, shape, residuals, gradients):
    q, k, factors, scale, gain, cos, sin = residuals

    def kernel(*refs):
        scale_ref, q_ref, k_ref, dq_ref, dk_ref, dv_ref, factors_ref, gain_ref, cos_ref, sin_ref = refs[:10]
        dqkv_ref, dgain_ref = refs[10:]
        group = pl.program_id(1)

        def unnormalise(ref, gradient_ref, head, index, out_head, gain=None):
            rotated, gradient = _load(ref, head, shape), _load(gradient_ref, head, shape)
            partner, partner_gradient = (_load_partner(one, head, cos, shape) for one in (ref, gradient_ref))
            if gain is None:
                gain = inverse_gain = 1.0
            else:
                # A gain of exactly 0 leaves nothing of the heads to start from: it is taken to have no gradient.
                inverse_gain = jnp.where(gain == 0, 0.0, 1 / gain)
            along = jnp.sum(gradient * rotated, axis=-1, keepdims=True)  # the same before and after the rotation
            own_share = inverse_gain * along / shape.head_dim
            gradient = gain * gradient - own_share * rotated
            partner_gradient = gain * partner_gradient - own_share * partner
            # The rotation's transpose: the partner's sine has the other sign.
            unrotated = gradient * cos_ref[...] - partner_gradient * sin_ref[...]
            _store(dqkv_ref, out_head, shape, factors_ref[:, pl.ds(index, 1)] * unrotated)
            return inverse_gain * jnp.sum(along)

        query_heads = _query_heads(group, shape)
        for index, head in enumerate(query_heads):
            dgain_ref[0, head] = unnormalise(q_ref, dq_ref, head, index, head, gain_ref[0, head])
        unnormalise(k_ref, dk_ref, group, len(query_heads), shape.num_heads + group)
        value = shape.num_heads + shape.num_kv_heads + group
        _store(dqkv_ref, value, shape, scale_ref[...] * _load(dv_ref, group, shape))

    rows = scale.size
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    out = [
        _rows(jax.ShapeDtypeStruct((rows, width), q.dtype)),
        _per_tile(jax.ShapeDtypeStruct((rows // TILE_ROWS, shape.num_heads), jnp.float32)),
    ]
    inputs = [_rows(array.reshape(rows, -1)) for array in (scale, q, k, *gradients)] + [_rows_of_group(factors)]
    qkv_gradient, gain_gradient = _call(
        interpret, kernel, "split_heads_backward", shape, rows, out, inputs, gain, cos, sin
    )
    no_scale, *no_tables = map(jnp.zeros_like, (scale, cos, sin))  # constants
    return qkv_gradient.reshape(*q.shape[:2], width), no_scale, jnp.sum(gain_gradient, axis=0), *no_tables


_split_heads.defvjp(_forward, _backward)


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


def _call(interpret, kernel, name, shape, rows, out, inputs, gain, cos, sin):
    """Runs a kernel on every tile of rows, once for each key/value head; `gain` and the tables follow the inputs."""
    cos_table, sin_table = _full_tables(cos, sin, shape)
    tiles_each = len(cos) // TILE_ROWS
    table = pl.BlockSpec((TILE_ROWS, shape.head_dim), lambda i, group: (i % tiles_each, 0))
    shared = pl.BlockSpec((1, shape.num_heads), lambda i, group: (0, 0))
    return pl.pallas_call(
        kernel,
        grid=(rows // TILE_ROWS, shape.num_kv_heads),
        in_specs=[*(spec for _, spec in inputs), shared, table, table],
        out_specs=[spec for _, spec in out],
        out_shape=[result for result, _ in out],
        compiler_params=triton().CompilerParams(num_warps=NUM_WARPS, num_stages=1),
        interpret=interpret,
        name=name,
    )(*(array for array, _ in inputs), gain[None], cos_table, sin_table)
