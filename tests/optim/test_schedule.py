import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.config import AverageConfig
from jgolf.optim.schedule import ema_decay, fraction, learning_rate_multiplier, loop_is_on, momentum_schedule
from tests.conftest import RECIPE

BY_STEPS = dataclasses.replace(RECIPE.train, steps=100, warmdown_steps=40, time_cap_s=0.0)
BY_TIME = dataclasses.replace(RECIPE.train, steps=20_000, warmdown_steps=3500, time_cap_s=600.0)


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
def test_no_warmdown_is_full_rate_to_the_end(time_cap_s):
    config = dataclasses.replace(BY_STEPS, warmdown_steps=0, time_cap_s=time_cap_s)
    for step, elapsed_s in ((0, 0.0), (50, 599.99), (99, 700.0), (100, 700.0)):
        assert float(learning_rate_multiplier(config, step, elapsed_s)) == 1.0


def test_the_record_s_decisions(golden):
    """Multiplier, momentum and loop before every step, by a clock that the record's script was given."""
    record = json.loads((golden / "pr1855" / "schedule.json").read_text())
    train = dataclasses.replace(
        RECIPE.train,
        time_cap_s=record["cap_s"] - record["reserve_s"],
        warmdown_steps=0,
        warmdown_fraction=record["warmdown_frac"],
        learning_rate_floor=record["min_lr"],
    )
    momentum = momentum_schedule(
        dataclasses.replace(
            RECIPE.optim.muon,
            momentum=record["muon_momentum"],
            momentum_warmup_start=record["muon_momentum_warmup_start"],
            momentum_warmup_steps=record["muon_momentum_warmup_steps"],
        )
    )
    looping = [one["looping"] for one in record["steps"]]
    assert looping.count(True) > 1 and not looping[0]
    for step, expected in enumerate(record["steps"]):
        elapsed_s = expected["elapsed_s"]
        found = learning_rate_multiplier(train, step, elapsed_s)
        assert float(found) == pytest.approx(expected["scale"], rel=1e-6)
        assert float(momentum(step)) == pytest.approx(expected["momentum"], rel=1e-6)
        assert bool(loop_is_on(fraction(train, step, elapsed_s), record["enable_looping_at"])) == expected["looping"]


def test_warmdown_of_a_fraction_of_the_steps():
    train = dataclasses.replace(BY_STEPS, warmdown_steps=0, warmdown_fraction=0.5, learning_rate_floor=0.2)
    found = [float(learning_rate_multiplier(train, step, 0.0)) for step in (0, 50, 75, 89, 90, 99, 100)]
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.22, 0.2, 0.2, 0.2], rtol=1e-5)


def test_the_floor_holds_for_a_warmdown_in_steps():
    train = dataclasses.replace(BY_STEPS, learning_rate_floor=0.3)
    found = [float(learning_rate_multiplier(train, step, 0.0)) for step in (60, 80, 90)]
    np.testing.assert_allclose(found, [1, 0.5, 0.3], rtol=1e-6)


def test_the_fraction_is_of_steps_or_of_time():
    both = dataclasses.replace(BY_STEPS, time_cap_s=600.0)
    found = [float(fraction(both, *now)) for now in ((0, 0.0), (50, 150.0), (50, 450.0), (100, 1.0), (7, 900.0))]
    np.testing.assert_allclose(found, [0, 0.5, 0.75, 1, 1], rtol=1e-6)
    assert float(fraction(BY_STEPS, 50, 450.0)) == 0.5
    assert float(fraction(dataclasses.replace(BY_STEPS, steps=0), 0, 0.0)) == 0.0


def test_lengths_of_the_warmdown_may_be_traced():
    def multiplier(steps, part):
        train = dataclasses.replace(BY_STEPS, warmdown_steps=steps, warmdown_fraction=part)
        return learning_rate_multiplier(train, 80, 0.0)

    found = jax.jit(jax.vmap(multiplier))(jnp.array([40.0, 0.0, 0.0]), jnp.array([0.0, 0.8, 0.0]))
    np.testing.assert_allclose(found, [0.5, 0.25, 1.0], rtol=1e-6)


def test_momentum_warm_up():
    momentum = momentum_schedule(RECIPE.optim.muon)
    found = [float(momentum(step)) for step in (0, 750, 1500, 9000)]
    np.testing.assert_allclose(found, [0.92, 0.955, 0.99, 0.99], rtol=1e-6)
    assert float(
        momentum_schedule(dataclasses.replace(RECIPE.optim.muon, momentum_warmup_steps=0))(0)
    ) == pytest.approx(0.99)


@pytest.mark.parametrize("share", [0.003, 0.058, 0.2, 12**-0.5])
def test_an_average_by_share_weighs_steps_by_a_power(share):
    """γ by the polynomial in the paper's appendix; the weights' own standard deviation is the share."""
    power = max(np.roots([1, 7, 16 - share**-2, 12 - share**-2]).real)
    average = AverageConfig(ema_share=share)
    for steps in (1, 10, 3000):
        decays = np.asarray(jax.vmap(lambda step: ema_decay(average, step))(jnp.arange(1, steps + 1)), np.float64)
        weights = np.append(np.cumprod(decays[::-1])[::-1][1:], 1.0) * (1 - decays)
        assert decays[0] == 0 and weights.sum() == pytest.approx(1, abs=1e-6)  # nothing of the start is left
    at = np.arange(1, steps + 1)
    integrals = np.diff((np.arange(steps + 1) / steps) ** (power + 1))  # of s^γ over each step
    np.testing.assert_allclose(weights, integrals, atol=2e-3 * weights.max())
    mean = weights @ at
    assert np.sqrt(weights @ (at - mean) ** 2) / steps == pytest.approx(share, rel=0.02)


def test_an_average_without_a_share_has_its_decay():
    assert ema_decay(AverageConfig(ema_decay=0.9965), 7) == 0.9965
