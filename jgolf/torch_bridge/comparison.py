"""Differences between the two sides, with what may be expected of each arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerances:
    """Largest differences that a correct pair of implementations shows."""

    values: float
    """Of logits and block outputs, of the largest magnitude among them; the mean, of the mean magnitude."""
    loss: float
    """Of the loss, relative."""
    bits_per_byte: float
    """Of bits per byte, absolute."""
    train_loss: float
    """Of the loss while training, relative."""
    distance: float
    """Of all parameters after a step: norm of the difference, relative to the distance covered since the start."""


TOLERANCES = {
    # Rounding in another order: a few units in the last of 24 bits, through some dozen layers.
    "float32": Tolerances(values=2e-5, loss=2e-5, bits_per_byte=1e-5, train_loss=2e-5, distance=1e-3),
    # 8 bits: everything is rounded to 2^-9 of itself, and the two sides round in other places, jgolf the
    # residual stream, PyTorch's autocast the matrix products alone: about 1 % of the logits and, through
    # the orthogonalization, which keeps no size, about 10 % of an update.
    "bfloat16": Tolerances(values=5e-2, loss=5e-3, bits_per_byte=2e-2, train_loss=1e-2, distance=3e-1),
}


@dataclass(frozen=True)
class Check:
    """One figure on both sides."""

    name: str
    difference: float
    tolerance: float
    reference: float | None = None
    jgolf: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the tolerance."""
        return self.difference <= self.tolerance


def largest(name: str, reference: np.ndarray, jgolf: np.ndarray, tolerance: float) -> Check:
    """The largest difference, relative to the largest magnitude in the reference."""
    scale = float(np.abs(reference).max())
    return Check(name, float(np.abs(reference - jgolf).max()) / max(scale, 1e-30), tolerance)


def mean(name: str, reference: np.ndarray, jgolf: np.ndarray, tolerance: float) -> Check:
    """The mean difference, relative to the mean magnitude in the reference."""
    scale = float(np.abs(reference).mean())
    return Check(name, float(np.abs(reference - jgolf).mean()) / max(scale, 1e-30), tolerance)


def relative(name: str, reference: float, jgolf: float, tolerance: float) -> Check:
    """Two numbers and their difference, relative to the reference's."""
    return Check(name, abs(reference - jgolf) / max(abs(reference), 1e-30), tolerance, reference, jgolf)


def absolute(name: str, reference: float, jgolf: float, tolerance: float) -> Check:
    """Two numbers and their difference."""
    return Check(name, abs(reference - jgolf), tolerance, reference, jgolf)


def by_layer(
    reference: Mapping[str, np.ndarray], jgolf: Mapping[str, np.ndarray], tolerance: float
) -> tuple[list[Check], str | None]:
    """The largest difference of each intermediate result, and the name of the first that departs, if one does.

    The results of a block's parts ("attention of block 3") only serve to say where a departure begins: what a script's
    module for such a part returns is the script's affair. They are left out where nothing else departs, and where the
    block as a whole agrees although its part does not.
    """
    shared = {name: np.asarray(jgolf[name], np.float32) for name in reference if name in jgolf}
    shared = {name: value for name, value in shared.items() if value.shape == reference[name].shape}
    checks = {name: largest(name, reference[name], value, tolerance) for name, value in shared.items()}
    parts = {name: name.partition(" of ") for name in checks if " of " in name}
    otherwise = {
        kind
        for name, (kind, _, block) in parts.items()
        if block in checks and checks[block].passed and not checks[name].passed
    }
    departs = any(not check.passed for name, check in checks.items() if name not in parts)
    left_out = {name for name, (kind, _, _) in parts.items() if kind in otherwise or not departs}
    kept = [check for name, check in checks.items() if name not in left_out]
    return kept, next((check.name for check in kept if not check.passed), None)


def norm(parts: Iterable[float]) -> float:
    """The norm of a whole from the norms of its parts."""
    return math.sqrt(sum(part * part for part in parts))
