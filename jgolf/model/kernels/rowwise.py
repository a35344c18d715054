"""Row-wise functions of activations, each run in one pass over memory, forward and backward.

The matrix units do most of the arithmetic but the clock is spent on memory: normalising, mixing and
rotating read and write the activations many times over if the compiler cuts them at every reduction.
Here a program takes a few rows, computes the function or, by tracing `jax.vjp` inside the kernel, its
derivative, and writes the results. The function itself is ordinary JAX on float32 arrays, and is called
as it is where there is no suitable GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jgolf.model.kernels.door import Choice, choose, triton

Rows = Array | tuple[Array, ...]
"""[..., width], or addends of that shape: they are added up as they are read."""

TILE_VALUES = 512
"""Values of a row argument that a program holds at once: rows × width."""
TILES_PER_SUM = 32
"""Tiles that a program takes one after the other where it sums over rows: fewer partial sums to write."""
NUM_WARPS = 2


class _Call(NamedTuple):
    """What is static about a call."""

    interpret: bool
    function: Callable
    tile: int
    num_addends: tuple[int, ...]
    second_is_first: bool
    input_result: int | None
    window: int
    handed_on: int | None


def rowwise(
    choice: Choice,
    function: Callable,
    rows: Sequence[Rows],
    whole: Sequence[Array] = (),
    *,
    second_is_first: bool = False,
    input_result: int | None = None,
    window: int = 0,
    handed_on: int | None = None,
) -> tuple[Array, ...]:
    """function(*rows, *whole), where a row of the results depends on the same row of `rows` and on all of `whole`.

    Args:
      choice: which forms are allowed.
      function: takes and returns float32 arrays, [n, width] for `rows`, [1, width] for `whole`. Results
        wider than 1 are rounded to the type of the first row argument.
      rows: arrays [..., width], or tuples of addends.
      whole: arrays [1, width].
      second_is_first: the first two results are equal and differ in their gradients: written once.
      input_result: the number of a result that is the first row argument, or the sum of its addends: it is what is kept
        for the backward pass, in their place.
      window: so many columns of the second result are returned once more; their gradient is added to the rest's as
        it is read.
      handed_on: the number of a row argument that is returned once more, last. Who reads it next reads that: the
        gradients of all who do are then added up from one to the next, in passes over memory that are made anyway.
    """
    rows = tuple(row if isinstance(row, tuple) else (row,) for row in rows)
    leading, dtype = rows[0][0].shape[:-1], rows[0][0].dtype
    flat = tuple(tuple(part.reshape(-1, part.shape[-1]) for part in row) for row in rows)

    def plain(rows: tuple, whole: tuple) -> tuple[Array, ...]:
        totals = (sum(part.astype(jnp.float32) for part in row) for row in rows)
        results = function(*totals, *(array.astype(jnp.float32) for array in whole))
        results = tuple(result.astype(_result_dtype(result, dtype)) for result in results)
        return _with_copies(results, rows, window, handed_on)

    def kernel(interpret: bool, rows: tuple, whole: tuple) -> tuple[Array, ...]:
        tile, _ = _tile_rows(rows, whole)
        num_addends = tuple(map(len, rows))
        call = _Call(interpret, function, tile, num_addends, second_is_first, input_result, window, handed_on)
        return _rowwise(call, rows, whole)

    _, obstacle = _tile_rows(flat, whole)
    if choice != "interpret" and dtype != jnp.bfloat16:
        obstacle = f"it is made for bfloat16, not for {dtype}"
    results = choose(choice, function.__name__, plain, kernel, obstacle, flat, tuple(whole))
    return tuple(result.reshape(*leading, result.shape[-1]) for result in results)


def has_kernel(x: Array) -> bool:
    """Whether there is a kernel for rows like those of x [..., width]."""
    return x.dtype == jnp.bfloat16 and _tile_rows(((x.reshape(-1, x.shape[-1]),),), ())[1] is None


def row_gradient(interpret: bool, function: Callable, x: Array, gradients: Sequence[Array]) -> Array:
    """The derivative of function(x) as `rowwise` has it, where its results are known already and x `has_kernel`.

    Args:
      interpret: whether to run the kernel in an interpreter.
      function: as there, of one row argument.
      x: [..., width].
      gradients: of the function's results.
    """
    rows, *flat = (array.reshape(-1, array.shape[-1]) for array in (x, *gradients))
    tile, _ = _tile_rows(((rows,),), ())
    call = _Call(interpret, function, tile, (1,), False, None, 0, None)
    ((gradient,),), _ = _backward(call, (((rows,),), ()), tuple(flat))
    return gradient.reshape(x.shape)


def _with_copies(results: tuple, rows: tuple, window: int, handed_on: int | None) -> tuple[Array, ...]:
    """The function's results, and behind them those that `rowwise` returns once more."""
    if window:
        results = (*results, results[1][:, :window])
    return results if handed_on is None else (*results, *rows[handed_on])


def _result_dtype(result: Array, dtype: jnp.dtype) -> jnp.dtype:
    return dtype if result.shape[-1] > 1 else jnp.float32


def _tile_rows(rows: tuple[tuple[Array, ...], ...], whole: Sequence[Array]) -> tuple[int, str | None]:
    """Rows that are taken at once, or what keeps a kernel from these shapes."""
    if triton() is None:
        return 0, "this JAX has no Triton backend for Pallas"
    widths = {part.shape[1] for row in rows for part in row} | {array.shape[1] for array in whole}
    uneven = [width for width in widths if width & (width - 1)]
    if uneven:
        return 0, f"widths have to be powers of two, not {max(uneven)}"
    tile, count = max(1, TILE_VALUES // max(widths)), rows[0][0].shape[0]
    if count % (tile * TILES_PER_SUM):
        return 0, f"the number of tokens has to be a multiple of {tile * TILES_PER_SUM}, not {count}"
    return tile, None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rowwise(call: _Call, rows: tuple, whole: tuple) -> tuple[Array, ...]:
    return _forward(call, rows, whole)[0]


# jit: calls of the same shapes share one kernel, which is traced and compiled once.
@partial(jax.jit, static_argnums=0)
def _forward(call, rows, whole):
    def compute(*tiles):
        results = call.function(*tiles)
        return (results[0], *results[2:]) if call.second_is_first else results

    def tile_of(array):
        return jax.ShapeDtypeStruct((call.tile, array.shape[1]), jnp.float32)

    shapes = jax.eval_shape(compute, *(tile_of(row[0]) for row in rows), *whole)
    dtypes = [_result_dtype(shape, rows[0][0].dtype) for shape in shapes]
    out = [(len(rows[0][0]), shape.shape[1], dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    results, _ = _run(lambda inputs: (compute(*inputs), ()), call, "forward", rows, whole, (), out, [])
    results = (results[0], *results) if call.second_is_first else tuple(results)
    kept = rows if call.input_result is None else ((results[call.input_result],), *rows[1:])
    return _with_copies(results, rows, call.window, call.handed_on), (kept, whole)


@partial(jax.jit, static_argnums=0)
def _backward(call, residuals, gradients):
    rows, whole = residuals
    handed_on = [] if call.handed_on is None else [(gradients[-1],)]
    gradients = gradients[: len(gradients) - len(handed_on)]
    if call.window:
        *gradients, of_window = gradients
        gradients[1] = gradients[1], of_window
    gradients = [gradient if isinstance(gradient, tuple) else (gradient,) for gradient in gradients]

    def differentiate(inputs):
        count = len(rows) + len(whole)
        _, vjp = jax.vjp(lambda *primals: tuple(call.function(*primals)), *inputs[:count])
        found = list(vjp(tuple(inputs[count : count + len(gradients)])))
        for gradient in inputs[count + len(gradients) :]:
            found[call.handed_on] = found[call.handed_on] + gradient
        return found[: len(rows)], found[len(rows) :]

    out = [(*row[0].shape, row[0].dtype) for row in rows]
    widths = [array.shape[1] for array in whole]
    results, sums = _run(differentiate, call, "backward", rows, whole, (*gradients, *handed_on), out, widths)
    gradients = tuple((result,) * count for result, count in zip(results, call.num_addends, strict=True))
    return gradients, tuple(sums)


_rowwise.defvjp(_forward, _backward)


def _run(compute, call, direction, rows, whole, more_rows, out_rows, out_sums) -> tuple[list[Array], list[Array]]:
    """compute(inputs) → (row results, sums over rows) on every tile of rows; the sums are totalled."""
    row_parts, more_parts = ([part for row in group for part in row] for group in (rows, more_rows))
    tiles = TILES_PER_SUM if out_sums else 1
    block = call.tile * tiles

    def kernel(*refs):
        inputs_refs, outputs = refs[: len(row_parts + [*whole] + more_parts)], refs[-len(out_rows + out_sums) :]

        def run_tile(i, sums):
            here = pl.ds(i * call.tile, call.tile)
            rest = list(inputs_refs)

            def total(row):
                return sum(_load(rest.pop(0), here, row[0].shape[1]) for _ in row)

            inputs = [*map(total, rows), *(rest.pop(0)[...] for _ in whole), *map(total, more_rows)]
            results, new_sums = compute(inputs)
            for ref, result in zip(outputs, results, strict=False):
                ref[here, :] = result.astype(ref.dtype)
            return tuple(total + new for total, new in zip(sums, new_sums, strict=True))

        zeros = tuple(jnp.zeros((1, width), jnp.float32) for width in out_sums)
        sums = jax.lax.fori_loop(0, tiles, run_tile, zeros) if out_sums else run_tile(0, zeros)
        for ref, total in zip(outputs[len(out_rows) :], sums, strict=True):
            ref[...] = total

    def tiled(array):
        return pl.BlockSpec((block, array.shape[1]), lambda i: (i, 0))

    num_blocks = out_rows[0][0] // block
    out_shapes = [jax.ShapeDtypeStruct((length, width), dtype) for length, width, dtype in out_rows]
    results = pl.pallas_call(
        kernel,
        grid=(num_blocks,),
        in_specs=[
            *map(tiled, row_parts),
            *(pl.BlockSpec(array.shape, lambda i: (0, 0)) for array in whole),
            *map(tiled, more_parts),
        ],
        out_specs=[*map(tiled, out_shapes), *(pl.BlockSpec((1, width), lambda i: (i, 0)) for width in out_sums)],
        out_shape=out_shapes + [jax.ShapeDtypeStruct((num_blocks, width), jnp.float32) for width in out_sums],
        compiler_params=triton().CompilerParams(num_warps=NUM_WARPS, num_stages=1),
        interpret=call.interpret,
        name=f"{call.function.__name__}_{direction}",
    )(*row_parts, *whole, *more_parts)
    sums = [jnp.sum(partial_sums, axis=0, keepdims=True) for partial_sums in results[len(out_rows) :]]
    return results[: len(out_rows)], sums


def _load(ref, rows: pl.Slice, width: int) -> Array:
    """Rows of an array of this width; a narrower one is filled up with zeros."""
    if ref.shape[1] == width:
        return ref[rows, :].astype(jnp.float32)
    from jax.experimental.pallas import triton as backend  # a kernel is being traced: it is there

    row, column = (jax.lax.broadcasted_iota(jnp.int32, (rows.size, width), axis) for axis in (0, 1))
    here = ref.at[rows.start + row, jnp.minimum(column, ref.shape[1] - 1)]
    return backend.load(here, mask=column < ref.shape[1], other=0.0).astype(jnp.float32)
