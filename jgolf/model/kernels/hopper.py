"""A matrix product for Hopper GPUs whose tiles pass through a function before they are written.

JAX's Mosaic GPU: on each multiprocessor one warpgroup brings tiles of the operands into shared memory and two
multiply them, side by side; the result leaves the registers, in parts, through shared memory. A tile of the
function's other argument is fetched into that same memory while the product is still being computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
"""Rows and columns of a finished tile that pass through the function at once."""
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


# jit: products of the same shapes share one kernel, which is traced and compiled once.
@partial(jax.jit, static_argnums=(0, 1))
def product_then(
    function: Callable[..., Array],
    dtype: jnp.dtype,
    x: Float[Array, "... i"],
    kernel: Float[Array, "i o"],
    factor: Float[Array, "... 1"],
    other: Float[Array, "... o"] | None = None,
) -> Float[Array, "... o"]:
    """function(x @ kernel, factor, other), or without other: `jgolf.model.kernels.mlp.product_then` as a kernel.

    Args:
      function: works on tiles.
      dtype: of the result.
      x, kernel, factor, other: as there; in FP8 the kernel is FP8, too.
    """
    columns = kernel.shape[1]
    kernel = kernel.T if x.dtype == FP8 else kernel.astype(x.dtype)  # 8-bit tiles cannot be read across
    arrays = [x.reshape(-1, x.shape[-1]), kernel, factor.reshape(-1)]
    arrays += [] if other is None else [other.reshape(-1, columns)]
    rows = arrays[0].shape[0]

    def kernel_of_function(*refs):
        _kernel(function, *refs)

    kernel_of_function.__name__ = f"product_then{function.__name__}"  # as it is called in a profile
    multiply = plgpu.kernel(
        kernel_of_function,
        out_type=jax.ShapeDtypeStruct((rows, columns), dtype),
        grid=(_num_multiprocessors(),),
        grid_names=("multiprocessor",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
    )
    return multiply(*arrays).reshape(*x.shape[:-1], columns)


def _num_multiprocessors() -> int:
    return gpu().core_count


def _layout(dtype: jnp.dtype) -> tuple[plgpu.Transform, ...]:
    return plgpu.TilingTransform((8, _depth(dtype))), plgpu.SwizzleTransform(SWIZZLE_BYTES)


def _kernel(function, x_ref, kernel_ref, factor_ref, *more_refs):
    *other_refs, out_ref = more_refs
    (num_rows, depth), num_columns = x_ref.shape, out_ref.shape[1]
    width, depth_at_once, transposed = WARPGROUPS * COLUMNS, _depth(x_ref.dtype), x_ref.dtype == FP8

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

    def run(operands, parts, part_ready, factors, factor_ready):
        me = jax.lax.axis_index("warpgroup")

        @plgpu.nd_loop((num_rows // ROWS, num_columns // width), collective_axes="multiprocessor")
        def _for_each_tile(loop):
            first_row, first_column = loop.index[0] * ROWS, loop.index[1] * width
            own_column = first_column + me * COLUMNS

            def here(ref, row, column):
                return ref.at[pl.ds(first_row + row, PART), pl.ds(own_column + column, PART)]

            def fetch():
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the tile before has left
                plgpu.copy_gmem_to_smem(factor_ref.at[pl.ds(first_row, ROWS)], factors.at[me], factor_ready.at[me])
                for other_ref in other_refs:
                    for index, (row, column) in enumerate(PARTS):
                        ready = part_ready.at[me * len(PARTS) + index]
                        plgpu.copy_gmem_to_smem(here(other_ref, row, column), parts.at[me, index], ready)

            def multiply(indices, x_tile, kernel_tile, total):
                own = kernel_tile.at[of_kernel(slice(None), pl.ds(me * COLUMNS, COLUMNS))]
                plgpu.wgmma(total, x_tile, plgpu.transpose_ref(own, (1, 0)) if transposed else own)
                pl.when(indices[0] == min(1, depth // depth_at_once - 1))(fetch)
                plgpu.wgmma_wait(0)
                return total

            def finish(total):
                plgpu.barrier_wait(factor_ready.at[me])
                for index, (row, column) in enumerate(PARTS):
                    factor = plgpu.layout_cast(factors[me, pl.ds(row, PART)], plgpu.Layout.WGMMA.reduce(1))
                    arguments = [jax.lax.broadcast_in_dim(factor, (PART, PART), (0,))]
                    for _ in other_refs:
                        plgpu.barrier_wait(part_ready.at[me * len(PARTS) + index])
                        other = plgpu.layout_cast(parts[me, index], plgpu.Layout.WGMMA)
                        arguments.append(other.astype(jnp.float32))
                    result = function(total[row : row + PART, column : column + PART], *arguments)
                    parts[me, index] = result.astype(out_ref.dtype)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(parts.at[me, index], here(out_ref, row, column))

            def around(run_pipeline):
                @partial(pl.run_scoped, total=plgpu.ACC((ROWS, COLUMNS), jnp.float32))
                def _with_accumulator(total):
                    run_pipeline(total)
                    finish(total[...])

            rows, columns = pl.ds(first_row, ROWS), pl.ds(first_column, width)
            operand_refs = x_ref.at[rows, :], kernel_ref.at[of_kernel(slice(None), columns)]
            pipeline(multiply, around)(*operand_refs, allocations=operands)

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def nothing(*args):
        pass

    pl.run_scoped(
        run,
        operands=pipeline(nothing, nothing).get_allocations(x_ref, kernel_ref),
        parts=plgpu.SMEM((WARPGROUPS, len(PARTS), PART, PART), out_ref.dtype, transforms=_layout(out_ref.dtype)),
        part_ready=plgpu.Barrier(num_barriers=WARPGROUPS * len(PARTS)),
        factors=plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
        factor_ready=plgpu.Barrier(num_barriers=WARPGROUPS),
        collective_axes="warpgroup",
    )
