"""The kernel of Hopper GPUs that adds a product to the stream: compiled on any machine, and run there only."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model.kernels import hopper, hopper_residual, residual
from jgolf.model.kernels.fp8 import FP8
from tests.model.hopper_checks import BFLOAT16, assert_near, interpreted, pretend_a_gpu

LENGTH, DEPTH, WIDTH = hopper.ROWS, hopper.SWIZZLE_BYTES, hopper.WARPGROUPS * hopper.COLUMNS
FLOAT32 = 1e-5


def arguments(batch: int = 4) -> list[jax.Array]:
    """The stream, y and the kernel; both addends are of one size, which varies from row to row."""
    generator = np.random.default_rng(0)
    size = np.exp(generator.normal(size=(batch, LENGTH, 1)))
    stream, y = (size * generator.normal(size=(batch, LENGTH, width)) for width in (WIDTH, DEPTH))
    kernel = jnp.asarray(generator.normal(size=(DEPTH, WIDTH)) / np.sqrt(DEPTH), jnp.float32)
    return [jnp.asarray(stream, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16), kernel]


def given_gradients(batch: int = 4) -> tuple[jax.Array, ...]:
    """Of the sum for the stream, of the same for a layer, and of the norm, which is a constant."""
    generator = np.random.default_rng(1)
    of_sum = (jnp.asarray(generator.normal(size=(batch, LENGTH, WIDTH)), jnp.bfloat16) for _ in range(2))
    return *of_sum, jnp.zeros((batch, LENGTH, 1), jnp.float32)


def as_float64(arrays) -> list[np.ndarray]:
    """With the kernel rounded as the product has it."""
    stream, y, kernel = arrays
    return [np.asarray(array, np.float64) for array in (stream, y, kernel.astype(jnp.bfloat16))]


def expected_sum(arrays) -> tuple[np.ndarray, np.ndarray]:
    """The sum and its norm's factor."""
    stream, y, kernel = as_float64(arrays)
    x = stream + y @ kernel
    return x, 1 / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1.1920929e-07)


def expected_gradients(arrays, gradients) -> list[np.ndarray]:
    """Of x for the stream and norm · x / |norm| for the layer, with |norm| a constant, and so of the arguments."""
    _, y, kernel = as_float64(arrays)
    of_stream, of_layer, _ = (np.asarray(gradient, np.float64) for gradient in gradients)
    x, norm = expected_sum(arrays)
    gradient = of_stream + of_layer - x * norm**2 * np.mean(x * of_layer, axis=-1, keepdims=True)
    return [gradient, gradient @ kernel.T, np.einsum("bti,btd->id", y, gradient)]


def values_and_gradients(arrays, gradients) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Of the operation, with its kernel where there is such a GPU."""
    values, derivative = jax.vjp(partial(residual.normalised_sum, "auto"), *arrays)
    return values, derivative(gradients)


def test_fits_what_its_tiles_cut_without_a_rest():
    stream, y, kernel = arguments()
    assert hopper_residual.fits(stream, y, kernel)
    assert not hopper_residual.fits(stream[:, 1:], y[:, 1:], kernel)
    assert not hopper_residual.fits(stream.astype(jnp.float32), y.astype(jnp.float32), kernel)
    assert not hopper_residual.fits(stream, y.astype(FP8), kernel)


def test_lowers_for_a_gpu(monkeypatch):
    pretend_a_gpu(monkeypatch)
    traced = jax.jit(partial(residual.normalised_sum, "auto")).trace(*arguments())
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_interpreter_finds_the_sum_and_its_norm(monkeypatch):
    arrays = arguments(batch=2)  # a shape of its own: what is traced here is not found by the other tests
    with interpreted(monkeypatch):
        found = hopper_residual.product_added(*arrays)
    assert_near(found, expected_sum(arrays), BFLOAT16, FLOAT32)


def test_gradients_are_those_of_the_formula(monkeypatch):
    """In ordinary JAX, by a pass over rows, and as they follow from what the kernel writes."""
    arrays, gradients = arguments(batch=1), given_gradients(batch=1)
    monkeypatch.setattr(residual, "_product_added", lambda *arrays: residual._apart("plain", *arrays)[::2])
    from_sum = partial(residual._normalised_sum, True)
    for form in (partial(residual._apart, "plain"), partial(residual._apart, "interpret"), from_sum):
        (x, same_x, norm), derivative = jax.vjp(form, *arrays)
        np.testing.assert_array_equal(x, same_x)
        assert_near((x, norm), expected_sum(arrays), 2 * BFLOAT16, 2 * BFLOAT16)
        assert_near(derivative(gradients), expected_gradients(arrays, gradients), *[2 * BFLOAT16] * 3)
    _, derivative = jax.vjp(lambda stream, y: from_sum(stream, y, arrays[2]), *arrays[:2])
    assert_near(derivative(gradients), expected_gradients(arrays, gradients)[:2], *[2 * BFLOAT16] * 2)


@pytest.mark.usefixtures("hopper_gpu")
def test_agrees_with_the_sum_and_its_gradients():
    arrays, gradients = arguments(), given_gradients()
    assert hopper_residual.fits(*arrays)
    (x, same_x, norm), found = values_and_gradients(arrays, gradients)
    np.testing.assert_array_equal(x, same_x)
    assert_near((x, norm), expected_sum(arrays), BFLOAT16, FLOAT32)
    assert_near(found, expected_gradients(arrays, gradients), *[2 * BFLOAT16] * 3)


@pytest.mark.usefixtures("hopper_gpu")
def test_is_not_batched_itself():
    """But done in its plain form, which rounds the product before it is added, so the norm is another one, too."""
    stream, y, kernel = arguments()

    def one(stream, y, gradients):
        values, gradients = values_and_gradients((stream, y, kernel), gradients)
        return *values, *gradients[:2]

    gradients = given_gradients()
    batched = jax.jit(jax.vmap(one))(stream, y, gradients)
    assert_near(batched, one(stream, y, gradients), *[BFLOAT16] * 3, *[2 * BFLOAT16] * 2)
