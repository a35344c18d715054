"""Statistics of timings, on a clock that only the measured programs move."""

from __future__ import annotations

import pytest

from jgolf.bench import timing
from jgolf.bench.timing import MAX_CALLS, WARMUP_CALLS, Timing, measure_in_turn, measure_once


class Clock:
    """Stands for the module `time`; work takes effect on the clock when it is waited for."""

    def __init__(self):
        self.now_s, self.pending_s = 0.0, 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def start(self, seconds: float) -> None:
        self.pending_s += seconds

    def wait(self, result: object) -> None:
        self.now_s, self.pending_s = self.now_s + self.pending_s, 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_median_and_spread() -> None:
    # Eleven samples: the quantiles 0.1, 0.5 and 0.9 are the second, the sixth and the tenth.
    assert Timing.of([5, 1, 9, 3, 2, 100, 8, 7, 6, 4, 10]) == Timing(6, 2, 10, 11)
    assert Timing.of([2.0, 4.0]) == Timing(3.0, pytest.approx(2.2), pytest.approx(3.8), 2)


def test_a_run_makes_calls_that_last_long_enough(clock: Clock) -> None:
    order = []

    def program(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            clock.start(seconds)

        return run

    found = measure_in_turn({"step": program("step", 0.125), "tiny": program("tiny", 1e-4)}, 4, clock.wait)
    assert found["step"] == Timing(*[pytest.approx(125.0)] * 3, runs=4, calls=3)
    assert found["tiny"] == Timing(*[pytest.approx(0.1)] * 3, runs=4, calls=MAX_CALLS)
    warm_up = ["step"] * (WARMUP_CALLS + 1) + ["tiny"] * (WARMUP_CALLS + 1)
    assert order == warm_up + 4 * (["step"] * 3 + ["tiny"] * MAX_CALLS)


def test_work_on_the_host(clock: Clock) -> None:
    seconds = iter([1.0, 3.0, 2.0])

    def work() -> float:
        duration_s = next(seconds)
        clock.now_s += duration_s
        return duration_s

    found, last = measure_once(work, 3)
    assert (found.median_ms, found.runs, last) == (2000.0, 3, 2.0)
