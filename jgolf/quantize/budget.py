"""Quantization to a size: the least damage to the loss for so many bytes.

With entropy coding it is the step, not the number of bits, that a level costs: halving a weight's step
costs one more bit, whatever the weight. At the least damage for a given size the last bit spent on any
weight helps the loss as much as on any other, so squared step × curvature is the same everywhere. One
number, the precision δ, then sets the step of every row of every matrix,

    step_r = δ / √(rows_r / trace(columns) · mean(pivots))

(see `curvature` and `gptq`), and a search finds the δ that fills the bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from jgolf import rules
from jgolf.config import QuantizeConfig
from jgolf.errors import ArtifactError, JgolfError
from jgolf.quantize.curvature import Curvature
from jgolf.quantize.gptq import LARGEST_LEVEL, Feedback, feedback, round_with_feedback
from jgolf.quantize.rows import SMALLEST_SCALE
from jgolf.quantize.stored import StoredTensor

SMALLEST_SHARE = 1e-3  # of the mean: no row counts for less
CLEARING_STEP = 2.5  # × the largest magnitude of a row: rounds all of it to zero
MAX_TRIALS = 12
CLOSE_ENOUGH = 0.9995  # of the budget
FINER_THAN_INT8 = 4.0  # than Int8's, a matrix's steps have to be for FP16 to be worth its 5 bits more
LARGEST_MOVE = 2.0  # of log δ at once
SMALLEST_BITS = 4
TINY = float(np.finfo(np.float32).tiny)

Stored = dict[str, StoredTensor]


@dataclass(frozen=True)
class Budgeted:
    """What a search found.

    Attributes:
      stored: the storage forms.
      damage: what the curvature says they cost, in nats a token.
      trials: precisions that were tried.
    """

    stored: Stored
    damage: float
    trials: int


@dataclass(frozen=True, eq=False)
class _Matrix:
    """One matrix, ready to be rounded at any precision.

    Attributes:
      weights: float32 [rows, columns], lying as storage forms do.
      unit_steps: [rows], the steps at δ = 1.
      largest, spread: [rows], the largest magnitude and the standard deviation of each.
    """

    path: str
    weights: np.ndarray
    curvature: Curvature
    feedback: Feedback
    unit_steps: np.ndarray
    largest: np.ndarray
    spread: np.ndarray

    def lying_as_parameter(self, rows: np.ndarray) -> np.ndarray:
        return rows.T if rules.rule_of(self.path).transposed else rows


def quantize_to_budget(
    params: Mapping[str, np.ndarray],
    curvatures: Mapping[str, Curvature],
    config: QuantizeConfig,
    budget_bytes: int,
    packed_bytes: Callable[[Stored], int],
) -> Budgeted:
    """Storage forms with the least predicted damage whose `packed_bytes` fit into the budget.

    Matrices and tables become integers of as many bits as their levels need, or FP16 where Int8 is not fine
    enough. Vectors and scalars have the form that `config.control` names.

    Args:
      params: path → array.
      curvatures: path → how much the loss minds an error, for every matrix and table.
      config: see above.
      budget_bytes: largest size of the artifact.
      packed_bytes: size of an artifact that holds these storage forms.

    Raises:
      ArtifactError: a parameter is not finite, or too large for its form.
      JgolfError: nothing fits; it names the smallest size.
    """
    params = {path: np.asarray(values, np.float32) for path, values in params.items()}
    for path, values in params.items():
        if not np.isfinite(values).all():
            raise ArtifactError(f"{path}: {np.count_nonzero(~np.isfinite(values))} values are not finite")
    vectors = {path: _floats(path, config.control, params[path]) for path in params.keys() - curvatures.keys()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        matrices = list(pool.map(lambda path: _prepare(path, params[path], curvatures[path]), curvatures))

        def quantize(round_one: Callable[[_Matrix], StoredTensor]) -> Stored:
            rounded = dict(zip(curvatures, pool.map(round_one, matrices), strict=True))
            return {path: rounded[path] if path in rounded else vectors[path] for path in params}

        stored, trials = _search(quantize, matrices, budget_bytes, packed_bytes)
    return Budgeted(stored, sum(_damage(matrix, stored[matrix.path]) for matrix in matrices), trials)


# --- the search ------------------------------------------------------------------------------


def _search(
    quantize: Callable[[Callable[[_Matrix], StoredTensor]], Stored],
    matrices: Sequence[_Matrix],
    budget_bytes: int,
    packed_bytes: Callable[[Stored], int],
) -> tuple[Stored, int]:
    """The finest precision that fits, by the secant method on log δ, kept between what fitted and what did not."""
    best = quantize(_cleared)
    smallest_bytes = packed_bytes(best)
    if smallest_bytes > budget_bytes:
        raise JgolfError(
            f"a budget of {budget_bytes:,} bytes for the artifact cannot be met: even with every matrix rounded to "
            f"zero it takes {smallest_bytes:,}; give more, or shrink its vectors with --quantize.control fp16"
        )
    if budget_bytes >= sum(matrix.weights.size for matrix in matrices):  # FP16 does not pack to less than a byte
        unrounded = quantize(_unrounded)
        if packed_bytes(unrounded) <= budget_bytes:
            return unrounded, 1
    aim_bytes = (1 + CLOSE_ENOUGH) / 2 * budget_bytes
    guess = _log_precision(matrices, aim_bytes - smallest_bytes)
    slope = (_level_bytes(matrices, guess + 0.01) - _level_bytes(matrices, guess - 0.01)) / 0.02
    fine, coarse = -math.inf, math.inf
    tried: list[tuple[float, int]] = []
    while len(tried) < MAX_TRIALS:
        found = quantize(partial(_round, precision=math.exp(guess)))
        size = packed_bytes(found)
        if size > budget_bytes:
            fine = guess
        else:
            best, coarse = found, guess
            if size >= CLOSE_ENOUGH * budget_bytes:
                break
        if tried and tried[-1][1] != size:
            slope = (size - tried[-1][1]) / (guess - tried[-1][0])
        tried.append((guess, size))
        guess += min(max((aim_bytes - size) / min(slope, -1.0), -LARGEST_MOVE), LARGEST_MOVE)
        if not fine < guess < coarse:
            guess = (fine + coarse) / 2
    return best, len(tried) + 1


def _level_bytes(matrices: Iterable[_Matrix], log_precision: float) -> float:
    """About what the levels take: ½ log₂(1 + 2πe (σ / step)²) bits each, in a row of spread σ."""
    total_bits = 0.0
    for matrix in matrices:
        ratio = matrix.spread / (math.exp(log_precision) * matrix.unit_steps)
        total_bits += 0.5 * np.log2(1 + 2 * math.pi * math.e * ratio**2).sum() * matrix.weights.shape[1]
    return total_bits / 8


def _log_precision(matrices: Sequence[_Matrix], level_bytes: float) -> float:
    """Where `_level_bytes` is `level_bytes`, by bisection."""
    fine, coarse = -60.0, 60.0
    while coarse - fine > 1e-3:
        middle = (fine + coarse) / 2
        fine, coarse = (middle, coarse) if _level_bytes(matrices, middle) > level_bytes else (fine, middle)
    return fine


# --- one matrix ------------------------------------------------------------------------------


def _prepare(path: str, values: np.ndarray, curvature: Curvature) -> _Matrix:
    weights = np.ascontiguousarray(values.T) if rules.rule_of(path).transposed else values
    how = feedback(curvature.columns)
    rows = np.maximum(curvature.rows, max(SMALLEST_SHARE * curvature.rows.mean(), TINY))
    unit_steps = np.sqrt(max(np.trace(curvature.columns), TINY) / rows / how.pivots.mean())
    return _Matrix(path, weights, curvature, how, unit_steps, np.abs(weights).max(axis=1), weights.std(axis=1))


def _round(matrix: _Matrix, precision: float) -> StoredTensor:
    finest = matrix.largest / LARGEST_LEVEL
    steps = precision * matrix.unit_steps
    if np.mean(steps < finest / FINER_THAN_INT8) > 0.5:
        return _unrounded(matrix)
    scales = _scales(matrix, np.clip(steps, finest, CLEARING_STEP * matrix.largest))
    levels = round_with_feedback(matrix.weights, scales.astype(np.float32), matrix.feedback, rate_weight=1.0)
    bits = next(bits for bits in range(SMALLEST_BITS, 9) if np.abs(levels).max() < 2 ** (bits - 1))
    return StoredTensor.integers(matrix.path, f"int{bits}", levels, scales)


def _cleared(matrix: _Matrix) -> StoredTensor:
    """All zeros: the least that a matrix can take."""
    zeros = np.zeros(matrix.weights.shape, np.int8)
    return StoredTensor.integers(matrix.path, "int4", zeros, np.ones(len(zeros), np.float16))


def _unrounded(matrix: _Matrix) -> StoredTensor:
    return _floats(matrix.path, "fp16", matrix.lying_as_parameter(matrix.weights))


def _scales(matrix: _Matrix, steps: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        scales = np.maximum(steps, SMALLEST_SCALE).astype(np.float16)
    _check_finite(matrix.path, scales, matrix.weights)
    return scales


def _floats(path: str, form: str, values: np.ndarray) -> StoredTensor:
    with np.errstate(over="ignore"):
        tensor = StoredTensor.floats(form, values)
    _check_finite(path, tensor.values, values)
    return tensor


def _check_finite(path: str, stored: np.ndarray, values: np.ndarray) -> None:
    if not np.isfinite(stored).all():
        raise ArtifactError(
            f"{path}: largest magnitude {np.abs(values).max():.4g} is past what a budgeted artifact can hold, 65504: "
            "leave --budget out and choose fp32 for it"
        )


def _damage(matrix: _Matrix, tensor: StoredTensor) -> float:
    return matrix.curvature.damage(matrix.lying_as_parameter(tensor.dequantize()) - matrix.weights)
