"""Two sides of a comparison: their losses in one unit, and the test that their seeds allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jgolf.compare.ttest import Sample, TTest, paired_test, welch_test
from jgolf.compare.unit import Unit, unit_of
from jgolf.history import History

MARGIN = 0.005
"""Nats a token by which the challenge asks of a record to be better."""
SIGNIFICANCE = 0.01
"""Largest p with which it counts."""


class Comparison(NamedTuple):
    """A against B."""

    sides: Sequence[Sequence[History]]
    """Runs of A and of B; in the order of their seeds where the test is paired."""
    unit: Unit
    a: Sample
    b: Sample
    is_paired: bool
    test: TTest

    def is_record(self, margin: float = MARGIN, significance: float = SIGNIFICANCE) -> bool:
        """Whether A is better by the margin, and the test says so."""
        return self.test.difference >= margin and self.test.p_value < significance


def compare_sides(sides: Sequence[Sequence[History]], name: str, margin: float = MARGIN) -> Comparison:
    """The test of: mean of B − mean of A > margin, paired where both sides have the same seeds, else Welch's.

    Args:
      sides: runs of A and of B, at least two of each.
      name: which of their scores.
      margin: in nats a token of B.

    Raises:
      JgolfError: the runs were scored on other texts, or their losses do not vary.
    """
    unit = unit_of(sides, name)
    is_paired = _have_same_seeds(sides)
    if is_paired:
        sides = [sorted(runs, key=seed_of) for runs in sides]
    a, b = (Sample(tuple(unit.nats(run) for run in runs)) for runs in sides)
    return Comparison(sides, unit, a, b, is_paired, (paired_test if is_paired else welch_test)(a, b, margin))


def seed_of(run: History) -> int | None:
    """The run's seed; None where it is not known, as of a log."""
    return run.config.get("train.seed")


def _have_same_seeds(sides: Sequence[Sequence[History]]) -> bool:
    """Whether every run of a side has its counterpart of the same seed on the other."""
    a, b = ([seed_of(run) for run in runs] for runs in sides)
    return None not in a and len(set(a)) == len(a) == len(b) and set(a) == set(b)
