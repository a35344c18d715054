"""Rounding with error feedback: each column's rounding error is made up for by the columns that follow.

GPTQ (Frantar et al. 2023). For an error measure eᵀ H e of each row e of the error, the columns are rounded
one after the other, those with the largest H_cc first, and each takes up what rounding did to those before it
as far as H allows. With H = U D Uᵀ, U upper triangular with ones on its diagonal and D diagonal,

    eᵀ H e = Σ_c D_c (e_c + Σ_{b<c} e_b U_bc)²,

so column c is rounded from weight_c + Σ_{b<c} e_b U_bc (Chee et al. 2023, the same levels without an inverse
of H). With a step s the remaining error is s²/12 · Σ_c D_c on average, where D, the pivots, are at most H_cc.
GPTQ's own H is Σ x xᵀ over the inputs x of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8

DAMPING = 0.01
BLOCK_COLUMNS = 128  # columns whose effect on the later ones is applied at once
PART_ROWS = 256  # rows that are rounded at once
LARGEST_LEVEL = 127
SMALLEST_MEAN = 1e-30  # of a measure's diagonal: float32 can still tell the pivots from zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Feedback:
    """A factored error measure.

    Attributes:
      order: int32 [columns], in which order columns are rounded.
      coefficients: float32 [columns, columns] in that order, U: what each later column takes up of a unit error.
      pivots: float32 [columns] in that order, D: the weight of each column's own squared error.
    """

    order: Int[Array, " columns"]
    coefficients: Float[Array, "columns columns"]
    pivots: Float[Array, " columns"]


def feedback(measure: np.ndarray, damping: float = DAMPING) -> Feedback:
    """Factors a positive semidefinite `measure` [columns, columns], its diagonal raised by `damping` × its mean."""
    mean = max(float(np.trace(measure)) / len(measure), SMALLEST_MEAN)
    order = np.argsort(-np.diag(measure), kind="stable")
    damped = measure[np.ix_(order, order)] + damping * mean * np.eye(len(measure))
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # from the last column on
    diagonal = np.diag(upper)
    coefficients = (upper / diagonal).astype(np.float32)
    return Feedback(order.astype(np.int32), coefficients, np.square(diagonal).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Stack:
    """Matrices that are equally wide, ready on the device to be rounded together, with any steps.

    Attributes:
      heights: rows of each matrix.
      weights: their rows, those of each filled up with zeros to whole parts.
      measure_of: which matrix a part belongs to.
      feedback: of each matrix.
    """

    heights: tuple[int, ...]
    weights: Float[Array, "parts rows columns"]
    measure_of: Int[Array, " parts"]
    feedback: Feedback

    @classmethod
    def of(cls, matrices: Sequence[np.ndarray], feedbacks: Sequence[Feedback]) -> Stack:
        """Float32 matrices [rows, columns] and their factored error measures."""
        parts = [_in_parts(rows, 0.0) for rows in matrices]
        measure_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        stacked = jax.tree.map(lambda *one_each: np.stack(one_each), *feedbacks)
        return cls(tuple(map(len, matrices)), *jax.device_put((np.concatenate(parts), measure_of, stacked)))

    def round(
        self, scales: Sequence[np.ndarray], rate_weight: float = 0.0, largest: Sequence[int] | None = None
    ) -> Int8[Array, "parts rows columns"]:
        """Begins to round; `matrices` takes the result apart. `scales`: of each matrix's rows, none 0.

        `largest` is the largest level of each matrix, LARGEST_LEVEL by default.
        """
        steps = np.concatenate([_in_parts(rows.astype(np.float32), 1.0) for rows in scales])
        of_parts = LARGEST_LEVEL if largest is None else np.asarray(largest, np.float32)[np.asarray(self.measure_of)]
        return round_with_feedback(self.weights, steps, self.measure_of, self.feedback, rate_weight, of_parts)

    def matrices(self, levels: Int8[Array, "parts rows columns"]) -> Iterator[np.ndarray]:
        """The levels of each matrix, int8 [rows, columns]."""
        parts, measure_of = np.asarray(levels), np.asarray(self.measure_of)
        for i, height in enumerate(self.heights):
            yield np.concatenate(parts[measure_of == i])[:height]


class Unrounded(NamedTuple):
    """A matrix that `gptq` is to round.

    Attributes:
      weights: float32 [rows, columns].
      scales: float16 [rows]; rows whose step is 0 get levels of 0.
      largest: levels are from −largest to largest.
      moments: [columns, columns], Σ x xᵀ over its inputs x.
    """

    weights: np.ndarray
    scales: np.ndarray
    largest: int
    moments: np.ndarray


def gptq(matrices: Mapping[str, Unrounded]) -> dict[str, np.ndarray]:
    """Levels, int8 [rows, columns], of matrices by name, those that are equally wide together on the device.

    Columns that no input reaches (H_cc = 0) count with H_cc = 1 in the damping, and are rounded to 0.
    """
    by_width: dict[int, list[str]] = {}
    for name, matrix in matrices.items():
        by_width.setdefault(matrix.weights.shape[1], []).append(name)
    stacks, running = [], []
    for names in by_width.values():
        same_width = [matrices[name] for name in names]
        stack = Stack.of(*zip(*map(_prepared, same_width), strict=True))
        scales = [np.where(matrix.scales > 0, matrix.scales, np.float16(1)) for matrix in same_width]
        stacks.append(stack)  # all of it is on its way before the first is waited for
        running.append(stack.round(scales, largest=[matrix.largest for matrix in same_width]))
    found = {}
    for names, stack, levels in zip(by_width.values(), stacks, running, strict=True):
        found |= dict(zip(names, stack.matrices(levels), strict=True))
    return {name: found[name] for name in matrices}


def _prepared(matrix: Unrounded) -> tuple[np.ndarray, Feedback]:
    dead = np.diag(matrix.moments) == 0
    measure = matrix.moments.astype(np.float64)
    measure[dead, dead] = 1
    rows = matrix.scales > 0
    return np.where(rows[:, None] & ~dead, matrix.weights, np.float32(0)), feedback(measure)


def _in_parts(rows: np.ndarray, filling: float) -> np.ndarray:
    """[rows, …] as [parts, PART_ROWS, …], filled up."""
    more = [(0, -len(rows) % PART_ROWS)] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(rows, more, constant_values=filling).reshape(-1, PART_ROWS, *rows.shape[1:])


@jax.jit
def round_with_feedback(
    weights: Float[Array, "parts rows columns"],
    steps: Float[Array, "parts rows"],
    measure_of: Int[Array, " parts"],
    how: Feedback,
    rate_weight: float = 0.0,
    largest: Float[Array, " parts"] | float = LARGEST_LEVEL,
) -> Int8[Array, "parts rows columns"]:
    """Levels of runs of rows of matrices that are equally wide, one step a row.

    A level q of a row whose levels have the variance v costs q² / (2 v ln 2) bits more than 0 does, were they
    Gaussian. Where a bit is worth the error 2 ln 2 · step² / 12 that it saves elsewhere, the cheapest level for
    x = weight / step is the one that minimizes w (x − q)² + q² / (12 v), w being the pivot over the mean one:
    q = round(x / (1 + κ)) with κ = 1 / (12 v w).

    Args:
      weights: the rows, each depending on none but itself.
      steps: of the rows.
      measure_of: which of the error measures is that of a part.
      how: the error measures, stacked.
      rate_weight: factor before κ; 0 rounds to the nearest level, 1 makes the trade above.
      largest: levels of a part are from −largest to largest.
    """
    at_once = 1 if jax.default_backend() == "cpu" else len(weights)  # a processor's cache holds one

    def round_part(part):
        rows, row_steps, measure, limit = part
        return _round_rows(rows, row_steps, jax.tree.map(lambda stacked: stacked[measure], how), rate_weight, limit)

    of_parts = weights, steps, measure_of, jnp.broadcast_to(jnp.float32(largest), measure_of.shape)
    return jax.lax.map(round_part, of_parts, batch_size=at_once)


def _round_rows(
    weights: Float[Array, "rows columns"],
    steps: Float[Array, " rows"],
    how: Feedback,
    rate_weight: float,
    largest: Float[Array, ""],
) -> Int8[Array, "rows columns"]:
    """Block after block of columns; those that fill up the last block are zero and stay so."""
    rows, columns = weights.shape
    block = min(BLOCK_COLUMNS, columns)
    blocks = -(-columns // block)
    more = blocks * block - columns
    targets = jnp.pad(weights.T[how.order], ((0, more), (0, 0)))  # a column lies in one piece
    coefficients = jnp.pad(how.coefficients, ((0, more), (0, more)))
    variances = jnp.square(jnp.std(weights, axis=1) / steps) + 1 / 12
    shares = jnp.pad(how.pivots / jnp.mean(how.pivots), (0, more), constant_values=1.0)

    def round_block(errors, start):
        cut = lambda values: jax.lax.dynamic_slice_in_dim(values, start, block)  # noqa: E731
        by_column = cut(coefficients.T)
        from_before = jnp.matmul(by_column, errors, precision=jax.lax.Precision.HIGHEST)  # later ones are still zero
        within = jax.lax.dynamic_slice_in_dim(by_column, start, block, axis=1)

        def round_column(block_errors, column):
            index, weight, before, taken, share = column
            x = weight + before + jnp.matmul(taken, block_errors, precision=jax.lax.Precision.HIGHEST)
            shrunk = x / (steps * (1 + rate_weight / (12 * share * variances)))
            levels = jnp.clip(jnp.rint(shrunk), -largest, largest)
            return block_errors.at[index].set(weight - levels * steps), levels.astype(jnp.int8)

        of_columns = jnp.arange(block), cut(targets), from_before, within, cut(shares)
        block_errors, levels = jax.lax.scan(round_column, jnp.zeros((block, rows)), of_columns)
        return jax.lax.dynamic_update_slice_in_dim(errors, block_errors, start, 0), levels

    _, levels = jax.lax.scan(round_block, jnp.zeros_like(targets), block * jnp.arange(blocks))
    return levels.reshape(blocks * block, rows)[jnp.argsort(how.order)].T
