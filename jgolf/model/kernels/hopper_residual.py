"""A product that is added to the residual stream on its way to memory, on a Hopper GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jgolf.model.kernels import hopper
from jgolf.model.kernels.hopper import COLUMNS, PART, PARTS, Epilogue, Tile
from jgolf.model.norm import RMS_EPSILON


def fits(stream: Float[Array, "... D"], y: Float[Array, "... i"], kernel: Float[Array, "i D"]) -> bool:
    """Whether the tiles cut these arrays without a rest."""
    return stream.dtype == y.dtype == jnp.bfloat16 and hopper.fits(y, kernel)


def product_added(
    stream: Float[Array, "... D"], y: Float[Array, "... i"], kernel: Float[Array, "i D"]
) -> tuple[Float[Array, "... D"], Float[Array, "... 1"]]:
    """stream + y @ kernel, which have to fit (`fits`), and `jgolf.model.norm.inverse_rms` of it.

    The squares are those of the sum in float32, before it is rounded to the type of the stream.
    """
    width = stream.shape[-1]
    x, squares = hopper.product_through(Added(stream.dtype), y, kernel, stream.reshape(-1, width))
    norm = jax.lax.rsqrt(jnp.sum(squares, axis=0) / width + RMS_EPSILON)
    return x.reshape(stream.shape), norm.reshape(*stream.shape[:-1], 1)


@dataclass(frozen=True)
class Added(Epilogue):
    """Writes stream + product [rows, columns] in `dtype`, and each row's sum of squares [columns / COLUMNS, rows]."""

    dtype: jnp.dtype

    @property
    def name(self) -> str:
        return "product_added"

    def outputs(self, rows: int, columns: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        squares = jax.ShapeDtypeStruct((columns // COLUMNS, rows), jnp.float32)
        return jax.ShapeDtypeStruct((rows, columns), self.dtype), squares

    def memory(self) -> dict[str, Any]:
        # The parts are of the stream, then of the sum.
        return {"parts": hopper.part_memory(self.dtype), "part_ready": hopper.part_barriers()}

    def fetch(self, tile: Tile, refs: Sequence, memory: dict[str, Any]) -> None:
        stream_ref, _, _ = refs
        hopper.copies_have_left()
        hopper.fetch_parts(tile, stream_ref, **memory)

    def finish(self, tile: Tile, refs: Sequence, memory: dict[str, Any], loaded: Any, total: Array) -> None:
        _, x_ref, squares_ref = refs
        squares: dict[int, Array | float] = {}
        for index, (row, column) in enumerate(PARTS):
            x = total[row : row + PART, column : column + PART] + hopper.fetched_part(tile, index, **memory)
            hopper.send_part(tile, index, x, memory["parts"], x_ref)
            squares[row] = squares.get(row, 0.0) + jnp.sum(jnp.square(x), axis=1)
        for row, row_squares in squares.items():
            squares_ref[tile.column // COLUMNS, tile.rows((row, 0))] = row_squares
