"""Error feedback against least squares solved column by column."""

import numpy as np
import pytest

from jgolf.quantize.gptq import feedback, round_with_feedback


def correlated(columns, seed=0):
    rng = np.random.default_rng(seed)
    inputs = (
        rng.normal(size=(4 * columns, columns)) @ rng.normal(size=(columns, columns)) * np.exp(rng.normal(size=columns))
    )
    return inputs.T @ inputs / len(inputs)


def cost(weights, levels, steps, measure):
    error = weights - levels * steps[:, None]
    return np.einsum("rc,cd,rd->r", error, measure, error)


def round_by_least_squares(weights, steps, measure):
    """Rounds the column with the largest diagonal, sets the rest to its optimum given all errors so far; repeats."""
    order = np.argsort(-np.diag(measure), kind="stable")
    levels = np.zeros(weights.shape)
    for done, column in enumerate(order):
        fixed, left = order[:done], order[done:]
        errors = weights[:, fixed] - levels[:, fixed] * steps[:, None]
        moved = (
            weights[:, left] + np.linalg.solve(measure[np.ix_(left, left)], measure[np.ix_(left, fixed)] @ errors.T).T
        )
        levels[:, column] = np.rint(moved[:, 0] / steps)
    return levels


@pytest.mark.parametrize("columns", [1, 7, 200])
def test_every_column_takes_up_the_errors_before_it_as_least_squares_would(columns):
    rng = np.random.default_rng(1)
    measure = correlated(columns) + 0.1 * np.eye(columns)
    weights = rng.normal(size=(16, columns)).astype(np.float32)
    steps = rng.uniform(0.05, 0.5, 16).astype(np.float32)
    levels = round_with_feedback(weights, steps, feedback(measure, damping=0.0))
    expected = round_by_least_squares(weights.astype(np.float64), steps.astype(np.float64), measure)
    assert np.mean(levels == expected) > 0.999  # float32 may tip a weight that lies halfway
    assert cost(weights, levels, steps, measure).sum() == pytest.approx(
        cost(weights, expected, steps, measure).sum(), rel=0.01
    )


def test_without_correlations_it_is_plain_rounding():
    weights = np.random.default_rng(2).normal(size=(8, 40)).astype(np.float32)
    steps = np.full(8, 0.1, np.float32)
    levels = round_with_feedback(weights, steps, feedback(np.diag(np.arange(1.0, 41.0))))
    np.testing.assert_array_equal(levels, np.rint(weights / np.float32(0.1)))


def test_the_error_is_that_of_uniform_noise_in_the_pivots():
    measure = correlated(96)
    how = feedback(measure)
    damped = measure + 0.01 * np.trace(measure) / 96 * np.eye(96)
    assert how.pivots.prod() == pytest.approx(np.linalg.det(damped), rel=1e-6)
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
