"""Rounding with error feedback: each column's rounding error is made up for by the columns that follow.

GPTQ (Frantar et al. 2023). For an error measure eᵀ H e of each row e of the error, the columns are rounded
one after the other, those with the largest H_cc first, and what rounding did to one is taken out of the
rest as far as H allows. With a step s the remaining error is s²/12 · Σ_c pivots_c on average, where
the pivots, those of the elimination of H from its last column on, are at most the H_cc.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DAMPING = 0.01
BLOCK_COLUMNS = 128  # columns whose effect on the later ones is applied at once
LARGEST_LEVEL = 127


@dataclass(frozen=True, eq=False)
class Feedback:
    """A factored error measure.

    Attributes:
      order: [columns], in which order columns are rounded.
      coefficients: float32 [columns, columns] in that order, upper triangular with ones on the diagonal: what
        a unit error of one column takes from each later one.
      pivots: [columns] in that order: the weight of each column's own squared error.
    """

    order: np.ndarray
    coefficients: np.ndarray
    pivots: np.ndarray


def feedback(measure: np.ndarray, damping: float = DAMPING) -> Feedback:
    """Factors a positive semidefinite `measure` [columns, columns], its diagonal raised by `damping` × its mean."""
    mean = max(float(np.trace(measure)) / len(measure), np.finfo(np.float32).tiny)
    order = np.argsort(-np.diag(measure), kind="stable")
    damped = measure[np.ix_(order, order)] + damping * mean * np.eye(len(measure))
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    upper = np.linalg.inv(lower)[::-1, ::-1]
    diagonal = np.diag(upper)
    return Feedback(order, (upper / diagonal[:, None]).astype(np.float32), diagonal**-2)


def round_with_feedback(weights: np.ndarray, steps: np.ndarray, how: Feedback, rate_weight: float = 0.0) -> np.ndarray:
    """Levels from −127 to 127 of float32 `weights` [rows, columns], one step a row: int8 [rows, columns].

    A level q of a row whose levels have the variance v costs q² / (2 v ln 2) bits more than 0 does, were they
    Gaussian. Where a bit is worth the error 2 ln 2 · step² / 12 that it saves elsewhere, the cheapest level for
    x = weight / step is the one that minimizes w (x − q)² + q² / (12 v), w being the pivot over the mean one:
    q = round(x / (1 + κ)) with κ = 1 / (12 v w).

    Args:
      weights: the matrix.
      steps: [rows], float32.
      how: the error measure.
      rate_weight: factor before κ; 0 rounds to the nearest level, 1 makes the trade above.
    """
    left = np.ascontiguousarray(weights.T[how.order])  # a column lies in one piece
    levels = np.empty(left.shape, np.int8)
    variances = np.square(weights.std(axis=1) / steps) + np.float32(1 / 12)
    shares = how.pivots / how.pivots.mean()
    for start in range(0, len(left), BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, len(left))
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for column in range(start, end):
            shrunk = left[column] / (steps * (1 + np.float32(rate_weight / (12 * shares[column])) / variances))
            rounded = np.clip(np.rint(shrunk), -LARGEST_LEVEL, LARGEST_LEVEL)
            levels[how.order[column]] = rounded
            errors[column - start] = left[column] - rounded * steps
            within = how.coefficients[column, column + 1 : end, None]
            left[column + 1 : end] -= within * errors[column - start]
        left[end:] -= how.coefficients[start:end, end:].T @ errors
    return np.ascontiguousarray(levels.T)
