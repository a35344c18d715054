"""Products whose operands are rounded to eight bits, against NumPy with numbers of that form looked up in a list."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model.functional import loss
from jgolf.model.kernels import fp8
from jgolf.model.kernels.mlp import mlp
from jgolf.train.step import init_state, train_step
from tests.conftest import RECIPE
from tests.model.test_variants import CONFIG, random_params, random_tokens

EXPONENTS, MANTISSAS = np.arange(1, 16)[:, None], np.arange(8)
NORMAL = 2.0 ** (EXPONENTS - 7) * (1 + MANTISSAS / 8)
POSITIVE = np.append(2.0**-6 * MANTISSAS / 8, NORMAL.ravel()[:-1])  # the last pattern is no number
NUMBERS = np.append(-POSITIVE[:0:-1], POSITIVE)


def nearest(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Rounded to the numbers of the form, scaled so that the largest magnitude is the largest of them."""
    scale = np.abs(x).max(axis, keepdims=True) / NUMBERS[-1]
    return NUMBERS[np.abs(x[..., None] / scale[..., None] - NUMBERS).argmin(-1)] * scale


def random(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * np.exp(rng.normal(size=(*shape[:-1], 1)))).astype(np.float32)


@pytest.mark.parametrize("axis", [None, -1])
def test_numbers_are_rounded_to_the_nearest(axis):
    x = random(0, 64, 48)
    eight_bits, scale = fp8.rounded(jnp.asarray(x), axis)
    assert eight_bits.dtype == jnp.float8_e4m3fn
    found, expected = np.asarray(eight_bits.astype(jnp.float32) * scale), nearest(x, axis)
    np.testing.assert_allclose(np.abs(found - x), np.abs(expected - x), atol=1e-6 * np.abs(x).max())  # ties aside
    assert (found != 0).mean() > 0.99


def test_zeros_stay_zeros():
    eight_bits, scale = fp8.rounded(jnp.zeros((2, 8)), axis=-1)
    assert not np.asarray(eight_bits.astype(jnp.float32) * scale).any()


@pytest.mark.parametrize("choice", ["plain", "interpret"])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_mlp(choice, slope):
    x, up, down, gradient = random(0, 24, 32), random(1, 32, 48), random(2, 48, 32), random(3, 24, 32)
    factor = np.abs(random(4, 24, 1)) + 0.1
    function = partial(mlp, choice, slope, True)
    found, vjp = jax.vjp(lambda x, up, down: function(x, factor, up, down), *map(jnp.asarray, (x, up, down)))

    inner = factor * (nearest(x, -1) @ nearest(up))
    leaky, derivative = np.where(inner > 0, inner, slope * inner), np.where(inner > 0, 1, slope)
    hidden = leaky**2
    up_gradient = factor * 2 * leaky * derivative * (nearest(gradient, -1) @ nearest(down).T)
    expected = hidden @ down, up_gradient @ up.T, x.T @ up_gradient, hidden.T @ gradient
    for one, other in zip((found, *vjp(jnp.asarray(gradient))), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_both_forms_of_the_network_agree_as_far_as_eight_bits_do(slope):
    config = dataclasses.replace(CONFIG, activation_slope=slope)
    params, tokens = random_params(config), random_tokens(config, (2, 30))

    def found(kernels, **how):
        gradient = jax.jit(jax.value_and_grad(partial(loss, dataclasses.replace(config, kernels=kernels), **how)))
        value, grads = gradient(params, *tokens)
        return float(value), np.concatenate([np.ravel(grads[path]) for path in sorted(grads)])

    def distance(one, other):
        return np.linalg.norm(one - other) / np.linalg.norm(other)

    exact, own, written = found("plain"), found("interpret", fp8=True), found("plain", fp8=True)
    assert abs(own[0] - written[0]) < 5e-3 * exact[0] and 1e-6 < abs(written[0] - exact[0]) < 0.02 * exact[0]
    assert distance(own[1], written[1]) < 0.1 and 1e-3 < distance(written[1], exact[1]) < 0.2


def test_a_training_step_has_it_where_the_setting_says_so():
    train = dataclasses.replace(RECIPE.train, fp8=True)
    config = dataclasses.replace(RECIPE, model=CONFIG, train=train)
    params, (inputs, targets) = random_params(CONFIG), random_tokens(CONFIG, (2, 30))
    step = jax.jit(partial(train_step, config))
    _, metrics = step(init_state(config, params), inputs[None], targets[None])
    expected = jax.jit(partial(loss, CONFIG, fp8=True))(params, inputs, targets)
    assert float(metrics.loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics.loss) != pytest.approx(float(loss(CONFIG, params, inputs, targets)), rel=1e-6)
