"""The t-tests of a comparison: Welch's, and the paired one; how many further seeds they would need."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from jgolf.errors import JgolfError

MOST_FURTHER_SEEDS = 1000
SIMULATIONS = 20_000
CONFIDENCE = 0.95
"""Of the interval that is told."""


@dataclass(frozen=True)
class Sample:
    """Losses of one side, in nats."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, with n − 1."""
        return float(np.std(self.losses, ddof=1))


@dataclass(frozen=True)
class TTest:
    """A one-sided t-test of: mean of B − mean of A > margin."""

    difference: float
    """Mean of B − mean of A: how much better A is, in nats."""
    error: float
    """Standard error of the difference."""
    statistic: float
    degrees_of_freedom: float
    p_value: float

    @classmethod
    def of(cls, difference: float, error: float, freedom: float, margin: float) -> TTest:
        """t = (difference − margin) / error."""
        from scipy import stats  # takes a second to import, which --help need not wait for

        statistic = float((difference - margin) / error)
        return cls(difference, float(error), statistic, float(freedom), float(stats.t.sf(statistic, freedom)))

    @property
    def interval(self) -> tuple[float, float]:
        """In which the true difference is with a chance of CONFIDENCE, in nats."""
        from scipy import stats

        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.degrees_of_freedom)) * self.error
        return self.difference - half, self.difference + half


def welch_test(a: Sample, b: Sample, margin: float) -> TTest:
    """t = (mean B − mean A − margin) / √(s²_A/n_A + s²_B/n_B), one-sided.

    The degrees of freedom are Welch and Satterthwaite's (B. L. Welch, Biometrika 34, 1947).

    Raises:
      JgolfError: the losses of neither side vary at all, so that there is no noise to measure against.
    """
    error, freedom = _standard_error(a.deviation, len(a.losses), b.deviation, len(b.losses))
    if error == 0:
        raise JgolfError(
            "the losses do not vary on either side: expected runs of different seeds (train.seed), found the same "
            f"loss {len(a.losses)} times in A and {len(b.losses)} times in B"
        )
    return TTest.of(b.mean - a.mean, float(error), float(freedom), margin)


def paired_test(a: Sample, b: Sample, margin: float) -> TTest:
    """t = (mean d − margin) / (s_d / √n) with d = B − A of each seed, one-sided, with n − 1 degrees of freedom.

    Args:
      a, b: losses of the same seeds in the same order.
      margin: of the test.

    Raises:
      JgolfError: the differences do not vary, so that there is no noise to measure against.
    """
    differences = _differences(a, b)
    count = len(differences.losses)
    if differences.deviation == 0:
        raise JgolfError(
            "the losses do not vary from seed to seed: expected runs of different seeds (train.seed), found a "
            f"difference of {differences.mean:g} nats {count} times"
        )
    return TTest.of(differences.mean, differences.deviation / math.sqrt(count), count - 1, margin)


def _differences(a: Sample, b: Sample) -> Sample:
    return Sample(tuple(theirs - ours for ours, theirs in zip(a.losses, b.losses, strict=True)))


def further_seeds(
    a: Sample, b: Sample, margin: float, significance: float, power: float, both: bool = False
) -> int | None:
    """Runs to add so that the test succeeds with the given chance; the losses that are there stay as they are.

    Further losses are taken to be normal, with the measured means and deviations. The chance is the share
    of SIMULATIONS draws of them with which the test succeeds.

    Args:
      a, b: the sides.
      margin, significance: of the test.
      power: the chance wanted.
      both: add as many to B as to A; otherwise to A alone.

    Returns:
      The number, at least 1; None where MOST_FURTHER_SEEDS are not enough.
    """
    from scipy import stats

    def is_enough(count: int) -> bool:
        rng = np.random.default_rng(0)
        mean_a, deviation_a = _with_further(a, count, rng)
        mean_b, deviation_b = _with_further(b, both * count, rng)
        error, freedom = _standard_error(deviation_a, len(a.losses) + count, deviation_b, len(b.losses) + both * count)
        p_values = stats.t.sf((mean_b - mean_a - margin) / error, freedom)
        return np.mean(p_values < significance) >= power

    return _smallest(is_enough)


def further_pairs(a: Sample, b: Sample, margin: float, significance: float, power: float) -> int | None:
    """Seeds to add on both sides so that the paired test succeeds with the given chance; see `further_seeds`."""
    from scipy import stats

    differences = _differences(a, b)

    def is_enough(count: int) -> bool:
        total = len(differences.losses) + count
        mean, deviation = _with_further(differences, count, np.random.default_rng(0))
        p_values = stats.t.sf((mean - margin) / (deviation / math.sqrt(total)), total - 1)
        return np.mean(p_values < significance) >= power

    return _smallest(is_enough)


def _smallest(is_enough: Callable[[int], bool]) -> int | None:
    """The smallest count, from 1 to MOST_FURTHER_SEEDS, that is enough; None where none is."""
    enough = 1
    while not is_enough(enough):  # with B as it is, even a perfectly known A can be too little
        if enough == MOST_FURTHER_SEEDS:
            return None
        enough = min(2 * enough, MOST_FURTHER_SEEDS)
    counts = range(enough // 2 + 1, enough)
    return enough // 2 + 1 + bisect.bisect_left(counts, True, key=is_enough)


def _with_further(
    sample: Sample, count: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Means and deviations of the losses and `count` more, in SIMULATIONS draws of these."""
    known, mean, deviation = len(sample.losses), sample.mean, sample.deviation
    if count == 0:
        return np.full(SIMULATIONS, mean), np.full(SIMULATIONS, deviation)
    # A normal sample's mean and its sum of squares are independent: no need to draw every loss.
    off = rng.normal(0.0, deviation / math.sqrt(count), SIMULATIONS)
    squares = deviation**2 * rng.chisquare(count - 1, SIMULATIONS) if count > 1 else 0.0
    total = known + count
    squares = squares + deviation**2 * (known - 1) + off**2 * known * count / total
    return mean + off * count / total, np.sqrt(squares / (total - 1))


def _standard_error(
    deviation_a: ArrayLike, count_a: int, deviation_b: ArrayLike, count_b: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the difference of the means; and Welch and Satterthwaite's degrees of freedom, NaN where it is 0."""
    square_a, square_b = np.square(deviation_a) / count_a, np.square(deviation_b) / count_b
    total = square_a + square_b
    with np.errstate(invalid="ignore"):
        return np.sqrt(total), total**2 / (square_a**2 / (count_a - 1) + square_b**2 / (count_b - 1))
