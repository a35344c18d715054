"""Wall time in steady state: warm-up, many runs, the median and its spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

WARMUP_CALLS = 2
SAMPLE_S = 0.3
"""A run makes so many calls, one after the other without waiting, that it lasts about this long."""
MAX_CALLS = 50


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call.

    Attributes:
      median_ms: over all runs.
      low_ms: a tenth of the runs were faster.
      high_ms: a tenth of the runs were slower.
      runs: how often it was measured.
      calls: calls that each run made without waiting in between.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    calls: int = 1

    @classmethod
    def of(cls, samples_ms: Sequence[float], calls: int = 1) -> Timing:
        """Of one or more samples; quantiles between two samples are interpolated."""
        low, median, high = np.quantile(samples_ms, [0.1, 0.5, 0.9]).tolist()
        return cls(median, low, high, len(samples_ms), calls)


Wait = Callable[[Any], Any]
"""Returns when the work is done of the call that gave its argument."""


def measure(run: Callable[[], Any], runs: int, wait: Wait = jax.block_until_ready) -> Timing:
    """Times `run`; see `measure_in_turn`."""
    return measure_in_turn({"": run}, runs, wait)[""]


def measure_in_turn(
    programs: Mapping[str, Callable[[], Any]], runs: int, wait: Wait = jax.block_until_ready, calls: int = 0
) -> dict[str, Timing]:
    """Times programs run by run in turn, after calls to warm up: a device whose clock drifts slows all alike.

    Devices work through calls one after the other while the host is already starting the next, so single
    calls say little: a run starts several and waits for the last one's result.

    Args:
      programs: each starts its work once, and returns what `wait` can wait for.
      runs: how often to measure each.
      wait: see `Wait`.
      calls: calls of a run; 0 for as many as make it last `SAMPLE_S`. Processes that take part in one another's
        programs must all make the same.
    """
    calls_of, samples_ms = dict.fromkeys(programs, calls), {name: [] for name in programs}
    for name, run in programs.items():
        _elapsed_s(run, WARMUP_CALLS, wait)
        if not calls:
            calls_of[name] = min(MAX_CALLS, max(1, math.ceil(SAMPLE_S / max(_elapsed_s(run, 1, wait), 1e-9))))
    for _ in range(runs):
        for name, run in programs.items():
            samples_ms[name].append(1000 * _elapsed_s(run, calls_of[name], wait) / calls_of[name])
    return {name: Timing.of(samples_ms[name], calls_of[name]) for name in programs}


def _elapsed_s(run: Callable[[], Any], calls: int, wait: Wait) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        result = run()
    wait(result)
    return time.perf_counter() - began


def measure_once(run: Callable[[], Any], runs: int) -> tuple[Timing, Any]:
    """Times work on the host that takes seconds, without a warm-up; also returns the last result."""
    samples_ms = []
    for _ in range(runs):
        began = time.perf_counter()
        result = run()
        samples_ms.append(1000 * (time.perf_counter() - began))
    return Timing.of(samples_ms), result
