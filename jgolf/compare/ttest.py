"""The t-tests of a comparison: Welch's, and the paired one; how many further seeds they would need."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

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
    interval: tuple[float, float]
    """In which the true difference is with a chance of CONFIDENCE, in nats."""
    statistic: float
    degrees_of_freedom: float
    p_value: float


def welch_test(a: Sample, b: Sample, margin: float) -> TTest:
    """Welch's t-test (B. L. Welch, Biometrika 34, 1947), one-sided.

    Raises:
      JgolfError: the losses of neither side vary at all, so that there is no noise to measure against.
    """
    if a.deviation == b.deviation == 0:
        raise JgolfError(
            "the losses do not vary on either side: expected runs of different seeds (train.seed), found the same "
            f"loss {len(a.losses)} times in A and {len(b.losses)} times in B"
        )
    from scipy import stats  # takes a second to import, which --help need not wait for

    return _told(partial(stats.ttest_ind, equal_var=False), a, b, margin)


def paired_test(a: Sample, b: Sample, margin: float) -> TTest:
    """The paired t-test, one-sided.

    Args:
      a, b: losses of the same seeds in the same order.
      margin: of the test.

    Raises:
      JgolfError: the differences do not vary, so that there is no noise to measure against.
    """
    differences = _differences(a, b)
    if differences.deviation == 0:
        raise JgolfError(
            "the losses do not vary from seed to seed: expected runs of different seeds (train.seed), found a "
            f"difference of {differences.mean:g} nats {len(differences.losses)} times"
        )
    from scipy import stats

    return _told(stats.ttest_rel, a, b, margin)


def _told(test: Callable[..., Any], a: Sample, b: Sample, margin: float) -> TTest:
    """What a test of SciPy's finds."""
    with warnings.catch_warnings(action="ignore"):  # of a side that does not vary
        found = test(np.subtract(b.losses, margin), a.losses, alternative="greater")
        interval = test(b.losses, a.losses).confidence_interval(CONFIDENCE)
    return TTest(
        b.mean - a.mean,
        (float(interval.low), float(interval.high)),
        float(found.statistic),
        float(found.df),
        float(found.pvalue),
    )


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
        of_b = (mean_b - margin, deviation_b, len(b.losses) + both * count)
        of_a = (mean_a, deviation_a, len(a.losses) + count)
        tests = stats.ttest_ind_from_stats(*of_b, *of_a, equal_var=False, alternative="greater")
        return np.mean(tests.pvalue < significance) >= power

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
