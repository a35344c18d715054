import dataclasses

import jax
import numpy as np
import pytest

from jgolf.config import MuonConfig, TrainConfig
from jgolf.optim.schedule import learning_rate_multiplier, momentum_schedule

BY_STEPS = TrainConfig(steps=100, warmdown_steps=40, time_cap_s=0.0)
BY_TIME = TrainConfig(steps=20_000, warmdown_steps=3500, time_cap_s=600.0)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1), (59, 1), (60, 1), (61, 39 / 40), (80, 0.5), (99, 1 / 40), (100, 0)]
)
def test_by_steps(step, expected):
    assert float(learning_rate_multiplier(BY_STEPS, step, 0.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "elapsed_s"), [(0, 0.0), (1, 0.12), (1000, 120.0), (2000, 240.0), (4973, 599.9), (5000, 601.0)]
)
def test_under_a_time_cap(step, elapsed_s):
    mean_s = elapsed_s / max(step, 1)
    expected = min(1.0, max(600.0 - elapsed_s, 0.0) / (3500 * mean_s)) if mean_s else 1.0
    assert float(learning_rate_multiplier(BY_TIME, step, elapsed_s)) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_steps_and_cap_together_take_the_lower():
    both = dataclasses.replace(BY_STEPS, time_cap_s=600.0)
    assert float(learning_rate_multiplier(both, 80, 1.0)) == pytest.approx(0.5)
    assert float(learning_rate_multiplier(both, 50, 600.0)) == 0.0


@pytest.mark.parametrize("time_cap_s", [0.0, 600.0])
@pytest.mark.parametrize(
    ("step", "elapsed_s"), [(0, 0.0), (1, 0.12), (99, 11.9), (99, 594.0), (50, 599.9), (99, 600.0), (99, 601.0)]
)
def test_no_warmdown_is_full_rate_to_the_end(time_cap_s, step, elapsed_s):
    config = dataclasses.replace(BY_STEPS, warmdown_steps=0, time_cap_s=time_cap_s)
    assert float(learning_rate_multiplier(config, step, elapsed_s)) == 1.0

    def in_a_sweep(warmdown_steps):  # where it is an argument of the compiled program
        return learning_rate_multiplier(dataclasses.replace(config, warmdown_steps=warmdown_steps), step, elapsed_s)

    assert float(jax.jit(in_a_sweep)(0)) == 1.0


def test_momentum_warm_up():
    momentum = momentum_schedule(MuonConfig())
    found = [float(momentum(step)) for step in (0, 750, 1500, 9000)]
    np.testing.assert_allclose(found, [0.92, 0.955, 0.99, 0.99], rtol=1e-6)
    assert float(momentum_schedule(MuonConfig(momentum_warmup_steps=0))(0)) == pytest.approx(0.99)
