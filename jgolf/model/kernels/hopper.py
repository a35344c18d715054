"""A matrix product for Hopper GPUs whose tiles pass through an epilogue before they are written.

JAX's Mosaic GPU: on each multiprocessor one warpgroup brings tiles of the operands into shared memory and two
multiply them, side by side. What becomes of a finished tile is an `Epilogue`'s to say; that of the MLP is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jgolf.model.kernels.door import gpu
from jgolf.model.kernels.fp8 import FP8

WARPGROUPS = 2
ROWS, COLUMNS = 128, 128
"""Of the tile of the result that a warpgroup makes. Both take the same rows."""
STAGES = 3
"""Tiles of the operands in shared memory, on their way from memory or being multiplied."""
PART = 64
"""Rows and columns of a finished tile that are dealt with at once."""
PARTS = tuple((row, column) for row in range(0, ROWS, PART) for column in range(0, COLUMNS, PART))
SWIZZLE_BYTES = 128
"""Of a row of a tile of the operands: it multiplies 64 columns of x by 64 rows of the kernel at once, or 128 in FP8."""
MEMORY_REGISTERS = 40


def fits(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> bool:
    """Whether the tiles cut these arrays without a rest."""
    rows, (depth, columns) = x.size // x.shape[-1], kernel.shape
    return x.dtype in (jnp.bfloat16, FP8) and not (
        rows % ROWS or depth % _depth(x.dtype) or columns % (WARPGROUPS * COLUMNS)
    )


def _depth(dtype: jnp.dtype) -> int:
    """Columns of x in a tile."""
    return SWIZZLE_BYTES // dtype.itemsize


class Tile(NamedTuple):
    """Where the ROWS x COLUMNS numbers are that a warpgroup finishes."""

    row: Array
    column: Array
    warpgroup: Array

    def rows(self, part: tuple[int, int]) -> pl.Slice:
        """Those of a part of the tile."""
        return pl.ds(self.row + part[0], PART)

    def columns(self, part: tuple[int, int]) -> pl.Slice:
        """Those of a part of the tile."""
        return pl.ds(self.column + part[1], PART)


class Epilogue:
    """What becomes of the finished tiles of a product, and what it needs for that.

    Static: equal ones share a kernel. Its methods write a kernel's code, for a multiplying warpgroup; `refs` are the
    further arrays given to `product_through`, then the outputs, all in the GPU's memory.
    """

    @property
    def name(self) -> str:
        """Of the kernel in a profile."""
        raise NotImplementedError

    def outputs(self, rows: int, columns: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arrays to write, for a product of this shape."""
        raise NotImplementedError

    def memory(self) -> dict[str, Any]:
        """Shared memory and barriers by name, for both warpgroups: about 80 KiB are left to them."""
        return {}

    def load(self, tile: Tile, refs: Sequence) -> Any:
        """What waits in registers while the tile's product is computed."""

    def fetch(self, tile: Tile, refs: Sequence, memory: dict[str, Any]) -> None:
        """Starts copies into shared memory, early in the tile's product; what `finish` copied out may still leave."""

    def finish(self, tile: Tile, refs: Sequence, memory: dict[str, Any], loaded: Any, total: Array) -> None:
        """Starts the copies of what becomes of `total` [ROWS, COLUMNS], in float32."""
        raise NotImplementedError


def part_memory(dtype: jnp.dtype) -> plgpu.SMEM:
    """Room for every part of both tiles, on its way in or out."""
    return plgpu.SMEM((WARPGROUPS, len(PARTS), PART, PART), dtype, transforms=_layout(dtype))


def part_barriers() -> plgpu.Barrier:
    """For the arrival of every part of both tiles."""
    return plgpu.Barrier(num_barriers=WARPGROUPS * len(PARTS))


def fetch_parts(tile: Tile, ref, parts, part_ready) -> None:
    """Starts the copies of this tile of an array [rows, columns] into `part_memory`."""
    for index, part in enumerate(PARTS):
        here, ready = ref.at[tile.rows(part), tile.columns(part)], part_ready.at[tile.warpgroup * len(PARTS) + index]
        plgpu.copy_gmem_to_smem(here, parts.at[tile.warpgroup, index], ready)


def fetched_part(tile: Tile, index: int, parts, part_ready) -> Float[Array, "PART PART"]:
    """One of these parts in float32, as soon as it is there."""
    plgpu.barrier_wait(part_ready.at[tile.warpgroup * len(PARTS) + index])
    return plgpu.layout_cast(parts[tile.warpgroup, index], plgpu.Layout.WGMMA).astype(jnp.float32)


def send_part(tile: Tile, index: int, values: Float[Array, "PART PART"], parts, ref) -> None:
    """Starts the copy of a part of the result into an array [rows, columns], through `part_memory`."""
    part = PARTS[index]
    parts[tile.warpgroup, index] = values.astype(parts.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(parts.at[tile.warpgroup, index], ref.at[tile.rows(part), tile.columns(part)])


def _layout(dtype: jnp.dtype) -> tuple[plgpu.Transform, ...]:
    return plgpu.TilingTransform((8, _depth(dtype))), plgpu.SwizzleTransform(SWIZZLE_BYTES)


def across(row_values: Float[Array, " PART"]) -> Float[Array, "PART PART"]:
    """One number for each row of a part, for every column."""
    row_values = plgpu.layout_cast(row_values, plgpu.Layout.WGMMA.reduce(1))
    return jax.lax.broadcast_in_dim(row_values, (PART, PART), (0,))


def copies_have_left() -> None:
    """Waits until what this warpgroup copied out has left shared memory."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


@dataclass(frozen=True)
class Elementwise(Epilogue):
    """function(product, factor, *other) in `dtype`, with a factor for each row and at most one array besides."""

    function: Callable[..., Array]
    dtype: jnp.dtype

    @property
    def name(self) -> str:
        return f"product_then{self.function.__name__}"

    def outputs(self, rows: int, columns: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((rows, columns), self.dtype),)

    def memory(self) -> dict[str, Any]:
        return {
            "parts": part_memory(self.dtype),  # of the other array, then of the result
            "part_ready": part_barriers(),
            "factors": plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            "factor_ready": plgpu.Barrier(num_barriers=WARPGROUPS),
        }

    def fetch(self, tile, refs, memory):
        factor_ref, *other_refs, _ = refs
        copies_have_left()
        factors, factor_ready = (memory[name].at[tile.warpgroup] for name in ("factors", "factor_ready"))
        plgpu.copy_gmem_to_smem(factor_ref.at[pl.ds(tile.row, ROWS)], factors, factor_ready)
        for other_ref in other_refs:
            fetch_parts(tile, other_ref, memory["parts"], memory["part_ready"])

    def finish(self, tile, refs, memory, loaded, total):
        _, *other_refs, out_ref = refs
        plgpu.barrier_wait(memory["factor_ready"].at[tile.warpgroup])
        for index, (row, column) in enumerate(PARTS):
            factor = across(memory["factors"][tile.warpgroup, pl.ds(row, PART)])
            others = (fetched_part(tile, index, memory["parts"], memory["part_ready"]) for _ in other_refs)
            result = self.function(total[row : row + PART, column : column + PART], factor, *others)
            send_part(tile, index, result, memory["parts"], out_ref)


def product_then(
    function: Callable[..., Array],
    dtype: jnp.dtype,
    x: Float[Array, "... i"],
    kernel: Float[Array, "i o"],
    factor: Float[Array, "... 1"],
    *other: Float[Array, "... o"],
) -> Float[Array, "... o"]:
    """function(x @ kernel, factor, *other): `jgolf.model.kernels.mlp.product_then` as a kernel.

    Args:
      function: works on tiles.
      dtype: of the result.
      x, kernel, factor, other: as there; in FP8 the kernel is FP8, too.
    """
    columns = kernel.shape[1]
    arrays = factor.reshape(-1), *(array.reshape(-1, columns) for array in other)
    (result,) = product_through(Elementwise(function, dtype), x, kernel, *arrays)
    return result.reshape(*x.shape[:-1], columns)


# jit: products of the same shapes share one kernel, which is traced and compiled once.
@partial(jax.jit, static_argnums=0)
def product_through(
    epilogue: Epilogue, x: Float[Array, "... i"], kernel: Float[Array, "i o"], *arrays: Array
) -> tuple[Array, ...]:
    """What the epilogue makes of x @ kernel and further arrays; x and the kernel have to fit (`fits`)."""
    x = x.reshape(-1, x.shape[-1])
    outputs = epilogue.outputs(len(x), kernel.shape[1])
    kernel = kernel.T if x.dtype == FP8 else kernel.astype(x.dtype)  # 8-bit tiles cannot be read across

    def kernel_of_epilogue(*refs):
        _kernel(epilogue, *refs)

    kernel_of_epilogue.__name__ = epilogue.name
    multiply = plgpu.kernel(
        kernel_of_epilogue,
        out_type=outputs,
        grid=(_num_multiprocessors(),),
        grid_names=("multiprocessor",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
    )
    return multiply(x, kernel, *arrays)


def _num_multiprocessors() -> int:
    return gpu().core_count


def _kernel(epilogue, x_ref, kernel_ref, *refs):
    num_rows, depth = x_ref.shape
    width, depth_at_once, transposed = WARPGROUPS * COLUMNS, _depth(x_ref.dtype), x_ref.dtype == FP8
    num_columns = kernel_ref.shape[0 if transposed else 1]

    def of_kernel(depth, columns):
        """A shape, place or part of the kernel, in the order of its axes here."""
        return (columns, depth) if transposed else (depth, columns)

    def pipeline(multiply, around):
        """Runs `multiply` on every pair of operand tiles of one result tile, inside `around`."""
        blocks = (
            ((ROWS, depth_at_once), lambda step: (0, step)),
            (of_kernel(depth_at_once, width), lambda step: of_kernel(step, 0)),
        )
        how = {"transforms": _layout(x_ref.dtype), "memory_space": plgpu.SMEM}
        return plgpu.emit_pipeline_warp_specialized(
            multiply,
            grid=(depth // depth_at_once,),
            in_specs=[plgpu.BlockSpec(*block, **how) for block in blocks],
            memory_registers=MEMORY_REGISTERS,
            wg_axis="warpgroup",
            num_compute_wgs=WARPGROUPS,
            max_concurrent_steps=STAGES,
            compute_context=around,
        )

    def run(operands, memory):
        me = jax.lax.axis_index("warpgroup")

        @plgpu.nd_loop((num_rows // ROWS, num_columns // width), collective_axes="multiprocessor")
        def _for_each_tile(loop):
            first_row, first_column = loop.index[0] * ROWS, loop.index[1] * width
            tile = Tile(first_row, first_column + me * COLUMNS, me)

            def multiply(indices, x_tile, kernel_tile, total):
                own = kernel_tile.at[of_kernel(slice(None), pl.ds(me * COLUMNS, COLUMNS))]
                plgpu.wgmma(total, x_tile, plgpu.transpose_ref(own, (1, 0)) if transposed else own)
                fetch = partial(epilogue.fetch, tile, refs, memory)
                pl.when(indices[0] == min(1, depth // depth_at_once - 1))(fetch)
                plgpu.wgmma_wait(0)
                return total

            def around(run_pipeline):
                loaded = epilogue.load(tile, refs)

                @partial(pl.run_scoped, total=plgpu.ACC((ROWS, COLUMNS), jnp.float32))
                def _with_accumulator(total):
                    run_pipeline(total)
                    epilogue.finish(tile, refs, memory, loaded, total[...])

            rows, columns = pl.ds(first_row, ROWS), pl.ds(first_column, width)
            operand_refs = x_ref.at[rows, :], kernel_ref.at[of_kernel(slice(None), columns)]
            pipeline(multiply, around)(*operand_refs, allocations=operands)

        copies_have_left()

    def nothing(*args):
        pass

    pl.run_scoped(
        run,
        operands=pipeline(nothing, nothing).get_allocations(x_ref, kernel_ref),
        memory=epilogue.memory(),
        collective_axes="warpgroup",
    )
