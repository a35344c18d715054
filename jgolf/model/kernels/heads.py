"""From the product with the q, k and v kernels to normalised, rotated heads, as one kernel each way.

What it computes is `plain_split_heads`; the kernel does it in one pass over memory. A head's
normalising needs a reduction, its rotation the neighbouring half of the rotated dimensions, and cuDNN
three separate arrays: cut up by the compiler, that is five passes forward and more backward.

On a Hopper GPU the forward pass needs no pass of its own: the product's kernel writes the heads (`hopper_heads.py`).

The backward pass starts from the results, which attention keeps anyway, so the product itself is not kept:
a rotation can be undone, and one number for each head is all that else the norm's derivative needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jgolf.model.kernels.door import Choice, choose, hopper_module, triton, unless_batched
from jgolf.model.kernels.products import instantiated, matmul, matmul_gradients
from jgolf.model.norm import RMS_EPSILON, rms_norm

TILE_ROWS = 8
NUM_WARPS = 1


class HeadShape(NamedTuple):
    """Static sizes; a row of the product holds the heads of q, then k, then v."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def num_factors(self) -> int:
        """Of the heads of q and k that a program handles, rounded up to a power of two."""
        return 1 << (self.num_heads // self.num_kv_heads).bit_length()


def projected_heads(
    choice: Choice,
    shape: HeadShape,
    x: Float[Array, "B T D"],
    kernel: Float[Array, "D E"],
    scale: Float[Array, "B T 1"],
    gain: Float[Array, " N"],
    cos: Float[Array, "T r"],
    sin: Float[Array, "T r"],
    value_uses: int = 1,
) -> tuple[Array, ...]:
    """`split_heads` of x @ kernel; on a Hopper GPU the two are one kernel forward, if its tiles fit."""

    def apart(choice, x, kernel, *arrays):
        return split_heads(choice, shape, matmul(x, kernel), *arrays, value_uses)

    hopper = hopper_module("hopper_heads") if choice == "auto" and triton() else None
    if hopper is None or not hopper.fits(shape, x, kernel, cos):
        return apart(choice, x, kernel, scale, gain, cos, sin)
    return choose(
        choice,
        "projecting to heads",
        partial(apart, "plain"),
        lambda interpret, *arrays: _projected_heads(interpret, shape, value_uses, *arrays),
        None,
        *(x, kernel, scale, gain, cos, sin),
    )


def split_heads(
    choice: Choice,
    shape: HeadShape,
    qkv: Float[Array, "B T E"],
    scale: Float[Array, "B T 1"],
    gain: Float[Array, " N"],
    cos: Float[Array, "T r"],
    sin: Float[Array, "T r"],
    value_uses: int = 1,
) -> tuple[Array, ...]:
    """q, k and v of `scale · qkv` for a constant scale: q and k normalised per head and rotated, q times `gain`.

    Returns:
      q [B, T, N, H], k [B, T, K, H], and v [B, T, K, H] `value_uses` times, for as many uses: their gradients are
      added up as they are read.
    """
    return choose(
        choice,
        "splitting heads",
        partial(plain_split_heads, shape, value_uses),
        lambda interpret, *arrays: _split_heads(interpret, shape, value_uses, *arrays),
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


def plain_split_heads(
    shape: HeadShape, value_uses: int, qkv: Array, scale: Array, gain: Array, cos: Array, sin: Array
) -> tuple:
    """`split_heads` in ordinary JAX."""
    x = (jax.lax.stop_gradient(scale) * qkv).reshape(*qkv.shape[:2], -1, shape.head_dim)
    q, k, v = jnp.split(x, [shape.num_heads, shape.num_heads + shape.num_kv_heads], axis=2)
    q, k = (rotated(rms_norm(part), cos, sin) for part in (q, k))
    return (gain[:, None] * q).astype(qkv.dtype), k.astype(qkv.dtype), *[v.astype(qkv.dtype)] * value_uses


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _split_heads(interpret: bool, shape: HeadShape, value_uses: int, qkv, scale, gain, cos, sin) -> tuple[Array, ...]:
    return _forward(interpret, shape, value_uses, qkv, scale, gain, cos, sin)[0]


# jit: layers of one shape share one kernel, which is traced and compiled once.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(interpret, shape, value_uses, qkv, scale, gain, cos, sin):
    def kernel(qkv_ref, scale_ref, gain_ref, cos_ref, sin_ref, q_ref, k_ref, v_ref, factors_ref):
        group, scale = pl.program_id(1), scale_ref[...]
        factors = []

        def normalise(out_ref, out_head, head, gain=1.0):
            x = _load(qkv_ref, head, shape)
            factors.append(scale * jax.lax.rsqrt(jnp.mean((scale * x) ** 2, axis=-1, keepdims=True) + RMS_EPSILON))
            factor = gain * factors[-1]
            _store(out_ref, out_head, shape, factor * x, first=2 * cos.shape[-1])
            for pair in _rotated_pairs(cos.shape[-1]):
                a, b = _load_pair(qkv_ref, head, pair, shape)
                cos_part, sin_part = cos_ref[:, pair.columns], sin_ref[:, pair.columns]
                rotated = factor * (a * cos_part + b * sin_part), factor * (b * cos_part - a * sin_part)
                _store_pair(out_ref, out_head, pair, shape, rotated)

        for head in _query_heads(group, shape):
            normalise(q_ref, head, head, gain_ref[0, head])
        normalise(k_ref, group, shape.num_heads + group)
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
    return (q, k, *[v] * value_uses), (q, k, factors, scale, gain, cos, sin)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(interpret, shape, value_uses, residuals, gradients):
    q, k, factors, scale, gain, cos, sin = residuals

    def kernel(scale_ref, q_ref, k_ref, dq_ref, dk_ref, *refs):
        dv_refs, (factors_ref, gain_ref, cos_ref, sin_ref, dqkv_ref, dgain_ref) = refs[:value_uses], refs[value_uses:]
        group = pl.program_id(1)

        def unnormalise(ref, gradient_ref, head, index, out_head, gain=None):
            if gain is None:
                gain = inverse_gain = 1.0
            else:
                # A gain of exactly 0 leaves nothing of the heads to start from: it is taken to have no gradient.
                inverse_gain = jnp.where(gain == 0, 0.0, 1 / gain)
            rotated, gradient = _load(ref, head, shape), _load(gradient_ref, head, shape)
            along = jnp.sum(gradient * rotated, axis=-1, keepdims=True)  # the same before and after the rotation
            factor = factors_ref[:, pl.ds(index, 1)]
            own_share = inverse_gain * along / shape.head_dim
            _store(dqkv_ref, out_head, shape, factor * (gain * gradient - own_share * rotated), 2 * cos.shape[-1])
            for pair in _rotated_pairs(cos.shape[-1]):
                parts = zip(
                    _load_pair(gradient_ref, head, pair, shape), _load_pair(ref, head, pair, shape), strict=True
                )
                a, b = (factor * (gain * gradient - own_share * rotated) for gradient, rotated in parts)
                cos_part, sin_part = cos_ref[:, pair.columns], sin_ref[:, pair.columns]
                unrotated = a * cos_part - b * sin_part, b * cos_part + a * sin_part
                _store_pair(dqkv_ref, out_head, pair, shape, unrotated)
            return inverse_gain * jnp.sum(along)

        query_heads = _query_heads(group, shape)
        for index, head in enumerate(query_heads):
            dgain_ref[0, head] = unnormalise(q_ref, dq_ref, head, index, head, gain_ref[0, head])
        unnormalise(k_ref, dk_ref, group, len(query_heads), shape.num_heads + group)
        value = shape.num_heads + shape.num_kv_heads + group
        _store(dqkv_ref, value, shape, scale_ref[...] * sum(_load(ref, group, shape) for ref in dv_refs))

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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _projected_heads(interpret: bool, shape: HeadShape, value_uses: int, *arrays: Array) -> tuple[Array, ...]:
    q, k, v, _ = _project(interpret, shape, *arrays)
    return q, k, *[v] * value_uses


def _project(interpret, shape, *arrays):
    """q, k, v and the factors."""

    def apart(x, kernel, *more):
        heads, (_, _, factors, *_) = _forward(interpret, shape, 1, matmul(x, kernel), *more)
        return *heads, factors

    return unless_batched(partial(hopper_module("hopper_heads").product_heads, shape), apart)(*arrays)


def _projected_forward(interpret, shape, value_uses, *primals):
    x, kernel, *more = (primal.value for primal in primals)
    q, k, v, factors = _project(interpret, shape, x, kernel, *more)
    # As in `matmul`: x is for the kernel's gradient only.
    kept = x if primals[1].perturbed else None
    return (q, k, *[v] * value_uses), (kept, kernel, (q, k, factors, *more))


def _projected_backward(interpret, shape, value_uses, residuals, gradients):
    x, kernel, of_heads = residuals
    gradients = tuple(instantiated(gradient) for gradient in gradients)
    qkv_gradient, *more = _backward(interpret, shape, value_uses, of_heads, gradients)
    return *matmul_gradients(x, kernel, qkv_gradient), *more


_projected_heads.defvjp(_projected_forward, _projected_backward, symbolic_zeros=True)


def _query_heads(group: Array, shape: HeadShape) -> list[Array]:
    size = shape.num_heads // shape.num_kv_heads
    return [group * size + i for i in range(size)]


class _Pair(NamedTuple):
    """Neighbouring dimensions of a head and those that they are rotated with: powers of two, as tiles have to be."""

    first: int
    second: int
    size: int

    @property
    def columns(self) -> pl.Slice:
        """Those of the tables of cosines and sines."""
        return pl.ds(self.first, self.size)


def _rotated_pairs(r: int) -> Iterator[_Pair]:
    """Dimensions i and i + r for every i below r."""
    first = 0
    while first < r:
        size = 1 << (r - first).bit_length() - 1
        yield _Pair(first, first + r, size)
        first += size


def _load(ref, head: Array, shape: HeadShape) -> Array:
    return ref[:, pl.ds(head * shape.head_dim, shape.head_dim)].astype(jnp.float32)


def _load_pair(ref, head: Array, pair: _Pair, shape: HeadShape) -> list[Array]:
    starts = (head * shape.head_dim + first for first in (pair.first, pair.second))
    return [ref[:, pl.ds(start, pair.size)].astype(jnp.float32) for start in starts]


def _store(ref, head: Array, shape: HeadShape, values: Array, first: int = 0) -> None:
    """Writes a head's dimensions from `first` on."""
    here = ref.at[:, pl.ds(head * shape.head_dim, shape.head_dim)]
    column = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    triton().store(here, values.astype(ref.dtype), mask=column >= first if first else None)


def _store_pair(ref, head: Array, pair: _Pair, shape: HeadShape, values: tuple[Array, Array]) -> None:
    for first, part in zip((pair.first, pair.second), values, strict=True):
        ref[:, pl.ds(head * shape.head_dim + first, pair.size)] = part.astype(ref.dtype)


def _call(interpret, kernel, name, shape, rows, out, inputs, gain, cos, sin):
    """Runs a kernel on every tile of rows, once for each key/value head; `gain` and the tables follow the inputs."""
    tiles_each = len(cos) // TILE_ROWS
    table = pl.BlockSpec((TILE_ROWS, cos.shape[-1]), lambda i, group: (i % tiles_each, 0))
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
    )(*(array for array, _ in inputs), gain[None], cos, sin)
