"""Corrections of rounded matrices: what rounding changed most, as a product of two small factors.

LQER (Zhang et al. 2024). The error E [rows, columns] of a matrix is approximated by its largest singular components,
left [rows, rank] @ right [rank, columns], which are rounded themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jgolf.config import LqerConfig
from jgolf.quantize.rows import largest_level
from jgolf.quantize.stored import Correction, Factor

LEFT_LEVELS = (-2, 1)
"""Of the asymmetric form's left factor; its largest magnitude is one and a half steps."""


def corrections(errors: Mapping[str, np.ndarray], config: LqerConfig) -> dict[str, Correction]:
    """Corrections of the matrices whose errors have the largest norms, of equal ones those that come first.

    Args:
      errors: name → weights − level × step, float32 [rows, columns].
      config: how many, of what rank and form.
    """
    norms = {name: float(np.square(error, dtype=np.float64).sum()) for name, error in errors.items()}
    largest = sorted(norms, key=lambda name: -norms[name])[: config.top if config.rank else 0]
    return {name: correction(*factors(errors[name], config.rank), config) for name in largest}


def factors(error: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """left [rows, r] @ right [r, columns], the best of that rank for `error`; r is at most either of its sizes.

    The rows of `right` are orthonormal, and of each component the largest magnitude of `left` is negative. From the
    eigenvectors of the smaller of error errorᵀ and errorᵀ error, in float64.
    """
    error = error.astype(np.float64)
    rank = min(rank, *error.shape)
    if error.shape[0] < error.shape[1]:
        _, vectors = np.linalg.eigh(error @ error.T)
        scaled = vectors[:, : -rank - 1 : -1].T @ error
        norms = np.linalg.norm(scaled, axis=1, keepdims=True)
        right = np.divide(scaled, norms, out=np.zeros_like(scaled), where=norms > 0)
    else:
        _, vectors = np.linalg.eigh(error.T @ error)
        right = vectors[:, : -rank - 1 : -1].T
    left = error @ right.T
    peaks = left[np.abs(left).argmax(axis=0), np.arange(rank)]
    signs = np.where(peaks > 0, -1.0, 1.0)
    return (left * signs).astype(np.float32), (right * signs[:, None]).astype(np.float32)


def correction(left: np.ndarray, right: np.ndarray, config: LqerConfig) -> Correction:
    """Both factors in the form that `config` names."""
    if config.asymmetric and right.size % config.group == 0:
        half = 2 ** (config.bits - 1)
        return Correction(
            _factor(left, 1, 1.5, LEFT_LEVELS),
            _factor(right, right.size // config.group, half - 0.5, (-half, half - 1)),
        )
    c = largest_level(config.bits)
    return Correction(*(_factor(part, len(part), c, (-c, c)) for part in (left, right)))


def _factor(values: np.ndarray, runs: int, steps_to_largest: float, levels: tuple[int, int]) -> Factor:
    """One step for each of so many equally long runs, that many of them to the run's largest magnitude."""
    by_run = values.reshape(runs, -1)
    scales = (np.abs(by_run).max(axis=1) / np.float32(steps_to_largest)).astype(np.float16)
    steps = scales.astype(np.float32)[:, None]
    ratio = np.divide(by_run, steps, out=np.zeros(by_run.shape, np.float32), where=steps > 0)
    return Factor(np.clip(np.rint(ratio), *levels).astype(np.int8).reshape(values.shape), scales)
