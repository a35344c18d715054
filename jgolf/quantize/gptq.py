"""Rounding with error feedback: each column's rounding error is made up for by the columns that follow.

GPTQ (Frantar et al. 2023). For an error measure eᵀ H e of each row e of the error, the columns are rounded
one after the other, those with the largest H_cc first, and each takes up what rounding did to those before it
as far as H allows. With H = U D Uᵀ, U upper triangular with ones on its diagonal and D diagonal,

    eᵀ H e = Σ_c D_c (e_c + Σ_{b<c} e_b U_bc)²,

so column c is rounded from weight_c + Σ_{b<c} e_b U_bc (Chee et al. 2023, the same levels without an inverse
of H). With a step s the remaining error is s²/12 · Σ_c D_c on average, where D, the pivots, are at most H_cc.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8

DAMPING = 0.01
BLOCK_COLUMNS = 128  # columns whose effect on the later ones is applied at once
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


@jax.jit
def round_with_feedback(
    weights: Float[Array, "parts rows columns"],
    steps: Float[Array, "parts rows"],
    measure_of: Int[Array, " parts"],
    how: Feedback,
    rate_weight: float = 0.0,
) -> Int8[Array, "parts rows columns"]:
    """Levels from −127 to 127 of runs of rows of matrices that are equally wide, one step a row.

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
    """
    at_once = 1 if jax.default_backend() == "cpu" else len(weights)  # a processor's cache holds one

    def round_part(part):
        rows, row_steps, measure = part
        return _round_rows(rows, row_steps, jax.tree.map(lambda stacked: stacked[measure], how), rate_weight)

    return jax.lax.map(round_part, (weights, steps, measure_of), batch_size=at_once)


def _round_rows(
    weights: Float[Array, "rows columns"], steps: Float[Array, " rows"], how: Feedback, rate_weight: float
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
            levels = jnp.clip(jnp.rint(shrunk), -LARGEST_LEVEL, LARGEST_LEVEL)
            return block_errors.at[index].set(weight - levels * steps), levels.astype(jnp.int8)

        of_columns = jnp.arange(block), cut(targets), from_before, within, cut(shares)
        block_errors, levels = jax.lax.scan(round_column, jnp.zeros((block, rows)), of_columns)
        return jax.lax.dynamic_update_slice_in_dim(errors, block_errors, start, 0), levels

    _, levels = jax.lax.scan(round_block, jnp.zeros_like(targets), block * jnp.arange(blocks))
    return levels.reshape(blocks * block, rows)[jnp.argsort(how.order)].T
