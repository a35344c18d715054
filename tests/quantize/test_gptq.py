"""Error feedback against least squares solved column by column."""

import jax
import numpy as np
import pytest

from jgolf.quantize import gptq
from jgolf.quantize.gptq import feedback


def correlated(columns, seed=0):
    rng = np.random.default_rng(seed)
    inputs = (
        rng.normal(size=(4 * columns, columns)) @ rng.normal(size=(columns, columns)) * np.exp(rng.normal(size=columns))
    )
    return inputs.T @ inputs / len(inputs)


def cost(weights, levels, steps, measure):
    error = weights - levels * steps[:, None]
    return np.einsum("rc,cd,rd->r", error, measure, error)


def round_with_feedback(weights, steps, how, rate_weight=0.0):
    """One matrix."""
    return np.asarray(
        gptq.round_with_feedback(weights[None], steps[None], np.zeros(1, int), stacked(how), rate_weight)
    )[0]


def stacked(*feedbacks):
    return jax.tree.map(lambda *parts: np.stack(parts), *feedbacks)


def round_by_least_squares(weights, steps, measure, rate_weight=0.0):
    """Rounds the column with the largest diagonal, sets the rest to its optimum given all errors so far; repeats.

    Returns the order, the levels, and what they were rounded from, columns in that order.
    """
    order = np.argsort(-np.diag(measure), kind="stable")
    measure = measure[np.ix_(order, order)]
    weights = weights[:, order].astype(np.float64)
    pivots = np.array([1 / np.linalg.inv(measure[c:, c:])[0, 0] for c in range(len(measure))])
    variances = (weights.std(axis=1) / steps) ** 2 + 1 / 12
    errors, unrounded = np.zeros(weights.shape), np.zeros(weights.shape)
    for c in range(len(measure)):
        moved = weights[:, c] + np.linalg.solve(measure[c:, c:], measure[c:, :c] @ errors[:, :c].T)[0]
        unrounded[:, c] = moved / steps / (1 + rate_weight / (12 * variances * pivots[c] / pivots.mean()))
        errors[:, c] = weights[:, c] - np.rint(unrounded[:, c]) * steps
    return order, np.rint(unrounded), unrounded


@pytest.mark.parametrize("rate_weight", [0.0, 1.0])
@pytest.mark.parametrize("columns", [1, 7, 128, 200])
def test_every_column_takes_up_the_errors_before_it_as_least_squares_would(columns, rate_weight):
    rng = np.random.default_rng(1)
    measure = correlated(columns) + 0.1 * np.eye(columns)
    weights = rng.normal(size=(64, columns)).astype(np.float32)
    steps = rng.uniform(0.05, 0.5, 64).astype(np.float32)
    levels = round_with_feedback(weights, steps, feedback(measure, damping=0.0), rate_weight)
    order, expected, unrounded = round_by_least_squares(weights, steps, measure, rate_weight)
    differ = levels[:, order] != expected
    assert np.mean(differ.any(axis=1)) < 0.1
    for row in np.flatnonzero(differ.any(axis=1)):  # what follows a tipped level takes up another error
        value = unrounded[row, np.argmax(differ[row])]
        assert abs(value % 1 - 0.5) < 1e-4


def test_rows_are_rounded_together_as_they_are_alone():
    rng = np.random.default_rng(5)
    hows = [feedback(correlated(150, seed)) for seed in range(3)]
    weights = rng.normal(size=(3, 20, 150)).astype(np.float32)
    steps = rng.uniform(0.05, 0.5, (3, 20)).astype(np.float32)
    measure_of = np.array([2, 0, 2])
    together = gptq.round_with_feedback(weights, steps, measure_of, stacked(*hows), 1.0)
    for levels, rows, row_steps, measure in zip(together, weights, steps, measure_of, strict=True):
        np.testing.assert_array_equal(levels, round_with_feedback(rows, row_steps, hows[measure], 1.0))


def test_without_correlations_it_is_plain_rounding():
    weights = np.random.default_rng(2).normal(size=(8, 40)).astype(np.float32)
    steps = np.full(8, 0.1, np.float32)
    levels = round_with_feedback(weights, steps, feedback(np.diag(np.arange(1.0, 41.0))))
    np.testing.assert_array_equal(levels, np.rint(weights / np.float32(0.1)))


def test_the_error_is_that_of_uniform_noise_in_the_pivots():
    measure = correlated(96)
    how = feedback(measure)
    damped = measure + 0.01 * np.trace(measure) / 96 * np.eye(96)
    assert np.log(how.pivots).sum() == pytest.approx(np.linalg.slogdet(damped)[1], abs=1e-3)
    weights = np.random.default_rng(3).normal(size=(2000, 96)).astype(np.float32)
    steps = np.full(2000, 0.1, np.float32)
    levels = round_with_feedback(weights, steps, how)
    assert cost(weights, levels, steps, damped).mean() == pytest.approx(0.1**2 / 12 * how.pivots.sum(), rel=0.03)
    plain = cost(weights, np.rint(weights / 0.1), steps, damped).mean()
    assert plain == pytest.approx(0.1**2 / 12 * np.trace(damped), rel=0.03)
    assert how.pivots.sum() < 0.5 * np.trace(damped)


def test_levels_stay_within_int8_and_measures_may_be_singular():
    weights = np.full((2, 5), 100.0, np.float32)
    levels = round_with_feedback(weights, np.full(2, 0.1, np.float32), feedback(np.zeros((5, 5))))
    assert (levels == 127).all()
    rank_one = np.ones((5, 5))
    assert np.isfinite(feedback(rank_one).coefficients).all()


def test_the_rate_term_saves_more_bits_than_its_error_is_worth():
    """At equal entropy, plain rounding with a coarser step makes the larger error."""
    measure = correlated(96)
    how = feedback(measure)
    weights = np.random.default_rng(4).normal(size=(1000, 96)).astype(np.float32)

    def entropy_and_cost(step, rate_weight):
        steps = np.full(1000, step, np.float32)
        levels = round_with_feedback(weights, steps, how, rate_weight)
        counts = np.unique(levels, return_counts=True)[1]
        return -(counts * np.log2(counts / counts.sum())).sum() / counts.sum(), cost(
            weights, levels, steps, measure
        ).sum()

    for step in (0.5, 1.0, 2.0):
        thrifty_bits, thrifty_cost = entropy_and_cost(step, 1.0)
        plain = [entropy_and_cost(step * factor, 0.0) for factor in np.linspace(1, 2, 11)]
        same_bits = np.interp(-thrifty_bits, [-bits for bits, _ in plain], [error for _, error in plain])
        assert thrifty_cost < same_bits
