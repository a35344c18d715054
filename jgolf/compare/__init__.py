"""Is it a record? The challenge's test, from the results of runs."""

from jgolf.compare.cli import CompareOptions, compare
from jgolf.compare.ttest import Sample, TTest, further_pairs, further_seeds, paired_test, welch_test

__all__ = [
    "CompareOptions",
    "Sample",
    "TTest",
    "compare",
    "further_pairs",
    "further_seeds",
    "paired_test",
    "welch_test",
]
