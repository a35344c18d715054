"""The product with the q, k and v kernels on a Hopper GPU, of which heads come out: normalised, rotated and apart.

What it computes is `jgolf.model.kernels.heads.split_heads` of the product, which itself is never in the GPU's memory.
A part of a tile is a head of some rows. Its rows lie across few threads, so that its norm is a sum within a warp, and
the two dimensions of a rotated pair are in one thread, since their distance is a multiple of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jgolf.model.kernels import door, hopper
from jgolf.model.kernels.heads import HeadShape
from jgolf.model.kernels.hopper import COLUMNS, PART, PARTS, ROWS, Epilogue, Tile, across
from jgolf.model.norm import RMS_EPSILON

TILE_HEADS = COLUMNS // PART
ROTATED_UNIT = 8
"""Columns of a part that a thread has two of, all in the same place in each such group."""
FIRST_JAX = (0, 11)
"""Earlier ones have no `concatenate` in such kernels."""


def fits(shape: HeadShape, x: Float[Array, "B T D"], kernel: Float[Array, "D E"], cos: Float[Array, "T r"]) -> bool:
    """Whether the tiles cut the product without a rest, into whole heads of one kind and rows of one sequence.

    Says so where they would, but for this JAX.
    """
    cut = (
        x.dtype == jnp.bfloat16
        and hopper.fits(x, kernel)
        and shape.head_dim == PART
        and not (shape.num_heads % TILE_HEADS or shape.num_kv_heads % TILE_HEADS)
        and not (x.shape[1] % ROWS or cos.shape[1] % ROTATED_UNIT)
    )
    if cut and jax.__version_info__ < FIRST_JAX:
        first = ".".join(map(str, FIRST_JAX))
        door.note(
            f"projecting to heads: in two passes, since a kernel for both needs JAX {first}, not {jax.__version__}"
        )
        return False
    return cut


def product_heads(
    shape: HeadShape,
    x: Float[Array, "B T D"],
    kernel: Float[Array, "D E"],
    scale: Float[Array, "B T 1"],
    gain: Float[Array, " N"],
    cos: Float[Array, "T r"],
    sin: Float[Array, "T r"],
) -> tuple[Array, Array, Array, Array]:
    """The heads of x @ kernel, which have to fit (`fits`).

    Returns:
      q [B, T, N, H], k and v [B, T, K, H], and `factors` [K, B * T, F] in float32: what each row of a group's query
      heads, then of its key head, was multiplied by to normalise it; the rest is not written.
    """
    arrays = (array.astype(jnp.float32) for array in (scale.reshape(-1), gain, jnp.stack([cos, sin])))
    *heads, factors = hopper.product_through(Heads(shape, x.dtype), x, kernel, *arrays)
    return *(part.reshape(*x.shape[:2], -1, shape.head_dim) for part in heads), factors


class _Loaded(NamedTuple):
    """Of the rows of a part."""

    scale: Float[Array, " PART"]
    cos: Float[Array, "PART r"]
    sin: Float[Array, "PART r"]


@dataclass(frozen=True)
class Heads(Epilogue):
    """Writes q, k, v [rows, heads * PART] and `factors`; reads a number for each row, gains, and cosines and sines."""

    shape: HeadShape
    dtype: jnp.dtype

    @property
    def name(self) -> str:
        return "product_heads"

    def outputs(self, rows: int, columns: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        shape = self.shape
        counts = shape.num_heads, shape.num_kv_heads, shape.num_kv_heads
        heads = (jax.ShapeDtypeStruct((rows, count * PART), self.dtype) for count in counts)
        return *heads, jax.ShapeDtypeStruct((shape.num_kv_heads, rows, shape.num_factors), jnp.float32)

    def memory(self) -> dict[str, Any]:
        return {"parts": hopper.part_memory(self.dtype)}

    def load(self, tile: Tile, refs: Sequence) -> dict[int, _Loaded]:
        scale_ref, _, tables_ref, *_ = refs
        is_value = self._is_value(tile)
        loaded = {}
        for row in range(0, ROWS, PART):
            rows, positions = pl.ds(tile.row + row, PART), pl.ds(tile.row % tables_ref.shape[1] + row, PART)
            scale = _loaded(scale_ref.at[rows], plgpu.Layout.WGMMA.reduce(1))
            cos, sin = (_loaded(tables_ref.at[i, positions], plgpu.Layout.WGMMA) for i in range(2))
            loaded[row] = _Loaded(scale, _where(is_value, 1.0, cos), _where(is_value, 0.0, sin))
        return loaded

    def fetch(self, tile: Tile, refs: Sequence, memory: dict[str, Any]) -> None:
        hopper.copies_have_left()

    def finish(self, tile: Tile, refs: Sequence, memory: dict[str, Any], loaded: Any, total: Array) -> None:
        _, gain_ref, _, *head_refs, factors_ref = refs
        # Behind a barrier, what follows from the column is not computed for all tiles beforehand and kept in registers.
        tile = tile._replace(column=COLUMNS * jax.lax.optimization_barrier(tile.column // COLUMNS))
        parts, is_query, is_value = memory["parts"].at[tile.warpgroup], self._is_query(tile), self._is_value(tile)
        factors = []
        for index, part in enumerate(PARTS):
            (row, column), (scale, cos, sin) = part, loaded[part[0]]
            x = total[row : row + PART, column : column + PART]
            mean_square = jnp.square(scale) * jnp.sum(jnp.square(x), axis=1) / PART
            factors.append(scale * jax.lax.rsqrt(mean_square + RMS_EPSILON))
            gain = jnp.where(is_query, gain_ref[jnp.where(is_query, _head(tile, part), 0)], 1.0)
            x = across(_where(is_value, scale, gain * factors[-1])) * x
            parts[index] = _rotated(x, cos, sin).astype(self.dtype)
        plgpu.commit_smem()
        _send(tile, parts, head_refs)
        pl.when(~is_value)(lambda: self._keep(tile, factors, factors_ref))

    def _keep(self, tile: Tile, factors: Sequence[Array], factors_ref) -> None:
        """Writes the factors of every part, of which all are of query or all of key heads."""
        shape, is_query = self.shape, self._is_query(tile)
        group_size = shape.num_heads // shape.num_kv_heads
        for part, factor in zip(PARTS, factors, strict=True):
            head = _head(tile, part)
            group = jnp.where(is_query, head // group_size, head - shape.num_heads)
            place = jnp.where(is_query, head % group_size, group_size)
            factors_ref[group, tile.rows(part), place] = factor

    def _is_query(self, tile: Tile) -> Array:
        """Whether its heads are multiplied by gains."""
        return tile.column < self.shape.num_heads * PART

    def _is_value(self, tile: Tile) -> Array:
        """Whether its heads are neither normalised nor rotated."""
        return tile.column >= (self.shape.num_heads + self.shape.num_kv_heads) * PART


def _send(tile: Tile, parts, head_refs: Sequence) -> None:
    """Copies every part to that array, of those whose heads follow each other in the product, which it belongs to."""
    for ref in head_refs:
        width = ref.shape[1]

        @pl.when((tile.column >= 0) & (tile.column < width))
        def _copy(tile=tile, ref=ref):
            for index, part in enumerate(PARTS):
                plgpu.copy_smem_to_gmem(parts.at[index], ref.at[tile.rows(part), tile.columns(part)])

        tile = tile._replace(column=tile.column - width)


def _head(tile: Tile, part: tuple[int, int]) -> Array:
    """The number of a part's head, as they follow each other in the product."""
    return (tile.column + part[1]) // PART


def _loaded(ref, layout: Any) -> Array:
    return plgpu.layout_cast(plgpu.load(ref, optimized=False), layout)


def _where(condition: Array, yes: Array | float, no: Array) -> Array:
    """One of the arrays as a whole."""
    return jnp.where(jnp.broadcast_to(condition, no.shape), jnp.broadcast_to(yes, no.shape), no)


def _rotated(x: Float[Array, "PART PART"], cos: Float[Array, "PART r"], sin: Float[Array, "PART r"]) -> Array:
    """`jgolf.model.kernels.heads.rotated` of a part."""
    r = cos.shape[1]
    a, b = x[:, :r], x[:, r : 2 * r]
    turned = [a * cos + b * sin, b * cos - a * sin]
    return jnp.concatenate(turned + [x[:, 2 * r :]] if 2 * r < PART else turned, axis=1)
