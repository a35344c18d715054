"""The kernel for Hopper GPUs: it can be compiled on any machine, and run on such a GPU only."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model.kernels import hopper, mlp
from jgolf.model.kernels.fp8 import FP8, rounded
from tests.model.hopper_checks import interpreted, pretend_a_gpu

ROWS, DEPTH, COLUMNS = 2 * hopper.ROWS, 2 * hopper.SWIZZLE_BYTES, 3 * hopper.WARPGROUPS * hopper.COLUMNS
FUNCTIONS = {
    "forward": (mlp._relu_squared, 0),
    "backward": (mlp._relu_squared_derivative, 1),
    "leaky forward": (mlp._activation(0.5, jnp.bfloat16), 0),
    "leaky backward": (mlp._derivative(0.5, jnp.bfloat16), 1),
}


def arguments(others: int) -> list[jax.Array]:
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(2, ROWS // 2, DEPTH)), generator.normal(size=(DEPTH, COLUMNS))
    hidden = np.square(generator.normal(size=(others, 2, ROWS // 2, COLUMNS)))
    factor = jnp.asarray(generator.uniform(0.5, 1.5, (2, ROWS // 2, 1)), jnp.float32)
    return [jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32), factor, *jnp.asarray(hidden, jnp.bfloat16)]


def assert_function_of_product(found, function, x, kernel, factor, *hidden):
    kernel = kernel if x.dtype == FP8 else kernel.astype(x.dtype)
    product = np.einsum("btd,df->btf", *(np.asarray(array.astype(jnp.float32), np.float64) for array in (x, kernel)))
    expected = function(jnp.asarray(product), factor, *(array.astype(jnp.float32) for array in hidden))
    assert np.linalg.norm(np.asarray(found - expected)) < 4e-3 * np.linalg.norm(np.asarray(expected))  # bfloat16


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("direction", FUNCTIONS)
def test_lowers_for_a_gpu(direction, fp8, monkeypatch):
    pretend_a_gpu(monkeypatch)
    function, others = FUNCTIONS[direction]
    traced = jax.jit(partial(mlp.product_then, function, fp8)).trace(*arguments(others))
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_fits_what_its_tiles_cut_without_a_rest():
    x, kernel = arguments(0)[:2]
    assert hopper.fits(x, kernel)
    assert not hopper.fits(x.astype(jnp.float32), kernel)
    assert not hopper.fits(x[:, :-1], kernel) and not hopper.fits(x, kernel[:, : hopper.COLUMNS])
    assert hopper.fits(x[..., :192], kernel[:192]) and not hopper.fits(x[..., :192].astype(FP8), kernel[:192])


def test_the_interpreter_finds_what_the_function_makes_of_the_product(monkeypatch):
    function, others = FUNCTIONS["leaky backward"]
    x, kernel, factor, hidden = arguments(others)
    columns = slice(hopper.WARPGROUPS * hopper.COLUMNS)
    own = x, kernel[:, columns], factor, hidden[..., columns]
    with interpreted(monkeypatch):
        found = hopper.product_then(function, x.dtype, *own)
    assert_function_of_product(found, function, *own)


@pytest.mark.usefixtures("hopper_gpu")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("direction", FUNCTIONS)
def test_agrees_with_the_function_after_the_product(direction, fp8):
    function, others = FUNCTIONS[direction]
    x, kernel, factor, *hidden = arguments(others)
    assert hopper.fits(x.astype(FP8), kernel)
    found = mlp.product_then(function, fp8, x, kernel, factor, *hidden)
    if fp8:
        (x, row_scale), (kernel, scale) = rounded(x, axis=-1), rounded(kernel)
        factor = factor * (row_scale * scale)
    assert_function_of_product(found, function, x, kernel, factor, *hidden)


@pytest.mark.usefixtures("hopper_gpu")
def test_is_not_batched_itself():
    x, kernel, factor = arguments(0)
    batched = jax.vmap(lambda x, factor: mlp.product_then(mlp._relu_squared, False, x, kernel, factor))(x, factor)
    single = mlp.product_then(mlp._relu_squared, False, x, kernel, factor)
    np.testing.assert_allclose(np.asarray(batched, np.float32), np.asarray(single, np.float32), rtol=2e-2, atol=1e-3)
