"""Quantization to a size: the least damage to the loss for so many bytes.

With entropy coding it is the step, not the number of bits, that a level costs: halving a weight's step
costs one more bit, whatever the weight. At the least damage for a given size the last bit spent on any
weight helps the loss as much as on any other, so squared step × curvature is the same everywhere. One
number, the precision δ, then sets the step of every row of every matrix,

    step_r = δ / √(rows_r / trace(columns) · mean(pivots))

(see `curvature` and `gptq`), and a search finds the δ that fills the bytes. Weights and error measures stay
on the device between its trials, matrices that are equally wide together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jgolf import rules
from jgolf.config import QuantizeConfig
from jgolf.errors import ArtifactError, JgolfError
from jgolf.quantize.curvature import Curvature
from jgolf.quantize.export import quantize_one
from jgolf.quantize.gptq import LARGEST_LEVEL, Feedback, Stack, feedback
from jgolf.quantize.rows import SMALLEST_SCALE
from jgolf.quantize.stored import StoredTensor
from jgolf.watch import Progress, unwatched

SMALLEST_SHARE = 1e-3  # of the mean: no row counts for less
CLEARING_STEP = 2.5  # × the largest magnitude of a row: rounds all of it to zero
MAX_TRIALS = 12
NEAR = 0.03  # of the budget: near enough above it to learn the faster packer's error from
JITTER = 0.005  # by which the faster packer may be wrong about small artifacts
CLOSE_ENOUGH = 0.999  # of the budget
FINER_THAN_INT8 = 4.0  # than Int8's, a matrix's steps have to be for FP16 to be worth its 5 bits more
LARGEST_MOVE = 2.0  # of log δ at once
SMALLEST_BITS = 4
RATE_WEIGHTS = (1.0, 0.0)  # the two ways of `quantize_to_budget`
TINY = float(np.finfo(np.float32).tiny)

Stored = dict[str, StoredTensor]


@dataclass(frozen=True)
class Budgeted:
    """What a search found.

    Attributes:
      stored: the storage forms.
      artifact: their packed bytes.
      damage: what the curvature says they cost, in nats a token.
      trials: precisions that were tried.
      rate_weight: how much a level's code length counted when it was chosen; see `round_with_feedback`.
    """

    stored: Stored
    artifact: bytes
    damage: float
    trials: int
    rate_weight: float


@dataclass(frozen=True, eq=False)
class _Matrix:
    """What is known about one matrix before it is rounded.

    Attributes:
      weights: float32 [rows, columns], lying as storage forms do.
      unit_steps: [rows], the steps at δ = 1.
      largest, spread: [rows], the largest magnitude and the standard deviation of each.
    """

    path: str
    weights: np.ndarray
    curvature: Curvature
    unit_steps: np.ndarray
    largest: np.ndarray
    spread: np.ndarray

    def lying_as_parameter(self, rows: np.ndarray) -> np.ndarray:
        return rows.T if rules.rule_of(self.path).transposed else rows


@dataclass(frozen=True, eq=False)
class _Batch:
    """Matrices that are equally wide, and the same ready on the device."""

    matrices: tuple[_Matrix, ...]
    stack: Stack


def quantize_to_budget(
    params: Mapping[str, np.ndarray],
    curvatures: Mapping[str, Curvature],
    config: QuantizeConfig,
    budget_bytes: int,
    pack: Callable[[Stored], bytes],
    pack_fast: Callable[[Stored], bytes] | None = None,
    loss: Callable[[Stored], float] | None = None,
    progress: Progress = unwatched,
) -> Budgeted:
    """Storage forms with the least predicted damage that fit into the budget once they are packed.

    Matrices and tables become integers of as many bits as their levels need, or FP16 where Int8 is not fine
    enough. Vectors, scalars and gates have the forms that `config` names.

    Counting the code length of levels saves bytes and shrinks the weights. Which weighs more is not in the
    curvature, a second-order measure: with a `loss`, both ways are followed to the budget and compared by it.

    Args:
      params: path → array.
      curvatures: path → how much the loss minds an error, for every matrix and table.
      config: see above.
      budget_bytes: largest size of the artifact.
      pack: the artifact that holds these storage forms.
      pack_fast: the same sooner, its size another by a factor that hardly changes; `pack` by default.
      loss: of a model with these storage forms; without it, code length counts.
      progress: shows how many trials there have been, of the most that there may be.

    Raises:
      ArtifactError: a parameter is not finite, or too large for its form.
      JgolfError: nothing fits; it names the smallest size.
    """
    params = {path: np.asarray(values, np.float32) for path, values in params.items()}
    for path, values in params.items():
        if not np.isfinite(values).all():
            raise ArtifactError(f"{path}: {np.count_nonzero(~np.isfinite(values))} values are not finite")
    vectors = {path: quantize_one(path, params[path], config) for path in params.keys() - curvatures.keys()}
    batches = _batches(params, curvatures)
    matrices = [matrix for batch in batches for matrix in batch.matrices]

    def with_vectors(rounded: Iterable[StoredTensor]) -> Stored:
        found = vectors | dict(zip((matrix.path for matrix in matrices), rounded, strict=True))
        return {path: found[path] for path in params}

    cleared = with_vectors(map(_cleared, matrices))
    smallest = pack(cleared)
    if len(smallest) > budget_bytes:
        raise JgolfError(
            f"a budget of {budget_bytes:,} bytes for the artifact cannot be met: even with every matrix rounded to "
            f"zero it takes {len(smallest):,}; give more, or shrink its vectors with --quantize.control fp16"
        )
    if budget_bytes >= sum(matrix.weights.size for matrix in matrices):  # FP16 does not pack to less than a byte
        unrounded = with_vectors(map(_unrounded, matrices))
        artifact = pack(unrounded)
        if len(artifact) <= budget_bytes:
            return Budgeted(unrounded, artifact, _total_damage(matrices, unrounded), 0, 0.0)

    def follow(rate_weight: float) -> Budgeted:
        (stored, artifact), trials = _search(
            lambda log_precision: with_vectors(_round(batches, math.exp(log_precision), rate_weight)),
            matrices,
            budget_bytes,
            (cleared, smallest),
            (pack, pack_fast or pack),
            progress,
        )
        return Budgeted(stored, artifact, _total_damage(matrices, stored), trials, rate_weight)

    if loss is None:
        return follow(1.0)
    return min(map(follow, RATE_WEIGHTS), key=lambda found: loss(found.stored))


def _total_damage(matrices: Iterable[_Matrix], stored: Stored) -> float:
    return sum(_damage(matrix, stored[matrix.path]) for matrix in matrices)


# --- the search ------------------------------------------------------------------------------


def _search(
    quantize: Callable[[float], Stored],
    matrices: Sequence[_Matrix],
    budget_bytes: int,
    smallest: tuple[Stored, bytes],
    packers: tuple[Callable[[Stored], bytes], Callable[[Stored], bytes]],
    progress: Progress,
) -> tuple[tuple[Stored, bytes], int]:
    """The finest precision that fits, packed (`smallest` if none does), and the number of those that were tried.

    By the secant method on log δ and the sizes of the faster packer, kept between what fitted and what did not.
    Whatever may fit and is larger than what did, and the first that comes near, is really packed, which tells what the
    faster packer's size has to be.
    """
    pack, pack_fast = packers
    best, smallest_bytes = smallest, len(smallest[1])
    target = budget_bytes  # of the faster packer's size
    guess = _log_precision(matrices, (1 + CLOSE_ENOUGH) / 2 * budget_bytes - smallest_bytes)
    slope = (_level_bytes(matrices, guess + 0.01) - _level_bytes(matrices, guess - 0.01)) / 0.02
    tried: list[tuple[float, int]] = []
    largest, calibrated = 0, False  # the faster packer's size of `best`
    for _ in progress(range(MAX_TRIALS), MAX_TRIALS):
        found = quantize(guess)
        size = len(pack_fast(found))
        if tried and tried[-1][1] != size:
            slope = (size - tried[-1][1]) / (guess - tried[-1][0])
        tried.append((guess, size))
        may_fit = largest < size <= (1 + JITTER) * target
        if may_fit or (not calibrated and size <= (1 + NEAR) * target):
            artifact, calibrated = pack(found), True
            if len(best[1]) < len(artifact) <= budget_bytes:
                best, largest = (found, artifact), size
            if CLOSE_ENOUGH * budget_bytes <= len(artifact) <= budget_bytes:
                break
            target = budget_bytes * size / len(artifact)
        fine = max((known for known, size in tried if size > target), default=guess - 2 * LARGEST_MOVE)
        coarse = min((known for known, size in tried if size <= target), default=guess + 2 * LARGEST_MOVE)
        aim = (1 + CLOSE_ENOUGH) / 2 * target
        guess += min(max((aim - size) / min(slope, -1.0), -LARGEST_MOVE), LARGEST_MOVE)
        if not fine < guess < coarse:
            guess = (fine + coarse) / 2
    return best, len(tried)


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


def _batches(params: Mapping[str, np.ndarray], curvatures: Mapping[str, Curvature]) -> list[_Batch]:
    by_width: dict[int, list[tuple[_Matrix, Feedback]]] = {}
    for path, curvature in curvatures.items():
        how = feedback(curvature.columns)
        matrix = _matrix(path, params[path], curvature, float(how.pivots.mean()))
        by_width.setdefault(len(how.order), []).append((matrix, how))
    batches = []
    for same_width in by_width.values():
        matrices, feedbacks = zip(*same_width, strict=True)
        batches.append(_Batch(matrices, Stack.of([matrix.weights for matrix in matrices], feedbacks)))
    return batches


def _matrix(path: str, values: np.ndarray, curvature: Curvature, mean_pivot: float) -> _Matrix:
    weights = np.ascontiguousarray(values.T) if rules.rule_of(path).transposed else values
    rows = np.maximum(curvature.rows, max(SMALLEST_SHARE * curvature.rows.mean(), TINY))
    unit_steps = np.sqrt(max(np.trace(curvature.columns), TINY) / rows / mean_pivot)
    return _Matrix(path, weights, curvature, unit_steps, np.abs(weights).max(axis=1), weights.std(axis=1))


def _round(batches: Sequence[_Batch], precision: float, rate_weight: float) -> Iterator[StoredTensor]:
    """Every matrix, in the order of the batches."""
    scales = [[_scales(matrix, precision) for matrix in batch.matrices] for batch in batches]
    levels = [  # all of it is on its way before the first is waited for
        batch.stack.round(own, rate_weight) for batch, own in zip(batches, scales, strict=True)
    ]
    for batch, own, parts in zip(batches, scales, levels, strict=True):
        for matrix, steps, rounded in zip(batch.matrices, own, batch.stack.matrices(parts), strict=True):
            yield _unrounded(matrix) if _needs_fp16(matrix, precision) else _integers(matrix, rounded, steps)


def _needs_fp16(matrix: _Matrix, precision: float) -> bool:
    return np.mean(precision * matrix.unit_steps < matrix.largest / LARGEST_LEVEL / FINER_THAN_INT8) > 0.5


def _integers(matrix: _Matrix, levels: np.ndarray, scales: np.ndarray) -> StoredTensor:
    bits = next(bits for bits in range(SMALLEST_BITS, 9) if np.abs(levels).max() < 2 ** (bits - 1))
    return StoredTensor.integers(matrix.path, f"int{bits}", levels, scales)


def _cleared(matrix: _Matrix) -> StoredTensor:
    """All zeros: the least that a matrix can take."""
    zeros = np.zeros(matrix.weights.shape, np.int8)
    return StoredTensor.integers(matrix.path, "int4", zeros, np.ones(len(zeros), np.float16))


def _unrounded(matrix: _Matrix) -> StoredTensor:
    return _floats(matrix.path, "fp16", matrix.lying_as_parameter(matrix.weights))


def _scales(matrix: _Matrix, precision: float) -> np.ndarray:
    steps = np.clip(precision * matrix.unit_steps, matrix.largest / LARGEST_LEVEL, CLEARING_STEP * matrix.largest)
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
