"""Looking up rows of a table, with a gradient that does not queue up.

The gradient of a look-up adds every position's gradient to its row. As atomic additions those wait for
each other wherever many positions share a row, as they do in text. Here positions are sorted by row, so
that each program adds up the positions of its own few rows, as a product with their one-hot vectors.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from jgolf.model.kernels.door import Choice, choose, triton

TILE_ROWS = 16
"""Rows of the table that one program sums, of TILE_COLUMNS columns."""
TILE_COLUMNS = 128
CHUNK = 128
"""Positions that a program takes at once."""
SPLITS = 8
"""Programs that share the positions of the same rows, in case many positions have them."""


def lookup(
    choice: Choice, table: Float[Array, "rows dim"], index: Int[Array, ...], dtype: jnp.dtype
) -> Float[Array, "... dim"]:
    """The rows of a table at `index`, in `dtype`; its gradient is summed in float32."""
    rows, dim = table.shape
    obstacle = None
    if rows % TILE_ROWS or dim % TILE_COLUMNS:
        obstacle = (
            f"a table has to have a multiple of {TILE_ROWS} rows and of {TILE_COLUMNS} columns, not {rows} × {dim}"
        )
    elif triton() is None:
        obstacle = "this JAX has no Triton backend for Pallas"
    return choose(
        choice,
        "embedding lookup",
        lambda table, index: table[index].astype(dtype),
        lambda interpret, table, index: _lookup(table, index, rows, dtype, interpret),
        obstacle,
        table,
        index,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lookup(table: Array, index: Array, rows: int, dtype: jnp.dtype, interpret: bool) -> Array:
    return table.astype(dtype)[index]


def _lookup_forward(table, index, rows, dtype, interpret):
    return _lookup(table, index, rows, dtype, interpret), index


def _lookup_backward(rows, dtype, interpret, index, gradient):
    return sum_sorted(gradient.reshape(-1, gradient.shape[-1]), index.reshape(-1), rows, interpret), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def sum_sorted(
    values: Float[Array, "n dim"], index: Int[Array, " n"], rows: int, interpret: bool = False
) -> Float[Array, "rows dim"]:
    """Adds each value to the row of its index, in float32, for `rows` and `dim` that the tiles divide."""
    order = jnp.argsort(index).astype(jnp.int32)
    edges = jnp.arange(0, rows + 1, TILE_ROWS)
    bounds = jnp.sum(index[:, None] < edges, axis=0, dtype=jnp.int32)
    last = len(index) - 1

    def kernel(values_ref, order_ref, sorted_ref, bounds_ref, out_ref):
        tile, column, split = pl.program_id(0), pl.program_id(1) * TILE_COLUMNS, pl.program_id(2)
        start, end = bounds_ref[tile], bounds_ref[tile + 1]
        chunks = (end - start + CHUNK - 1) // CHUNK
        own_rows = tile * TILE_ROWS + jax.lax.broadcasted_iota(jnp.int32, (TILE_ROWS, CHUNK), 0)

        def add_chunk(chunk, total):
            place = start + (split + chunk * SPLITS) * CHUNK + jax.lax.iota(jnp.int32, CHUNK)
            clipped = jnp.minimum(place, last)
            row = jnp.where(place < end, sorted_ref[clipped], -1)
            one_hot = (row[None, :] == own_rows).astype(values_ref.dtype)
            chunk_values = values_ref[order_ref[clipped], pl.ds(column, TILE_COLUMNS)]
            return total + jnp.dot(one_hot, chunk_values, preferred_element_type=jnp.float32)

        zeros = jnp.zeros((TILE_ROWS, TILE_COLUMNS), jnp.float32)
        out_ref[...] = jax.lax.fori_loop(0, (chunks - split + SPLITS - 1) // SPLITS, add_chunk, zeros)

    parts = pl.pallas_call(
        kernel,
        grid=(rows // TILE_ROWS, values.shape[1] // TILE_COLUMNS, SPLITS),
        out_specs=pl.BlockSpec((None, TILE_ROWS, TILE_COLUMNS), lambda i, j, split: (split, i, j)),
        out_shape=jax.ShapeDtypeStruct((SPLITS, rows, values.shape[1]), jnp.float32),
        compiler_params=triton().CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="sum_sorted",
    )(values, order, index[order].astype(jnp.int32), bounds)
    return jnp.sum(parts, axis=0)
