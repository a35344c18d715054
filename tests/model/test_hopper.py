"""The kernel for Hopper GPUs: it can be compiled on any machine, and run on such a GPU only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model.kernels import hopper, mlp

ROWS, DEPTH, COLUMNS = 2 * hopper.ROWS, 2 * hopper.DEPTH, 3 * hopper.WARPGROUPS * hopper.COLUMNS
FUNCTIONS = {
    "forward": (mlp._relu_squared, 0),
    "backward": (mlp._relu_squared_derivative, 1),
    "leaky forward": (mlp._leaky_squared(0.5, jnp.bfloat16), 0),
    "leaky backward": (mlp._leaky_squared_derivative(0.5, jnp.bfloat16), 1),
}


def arguments(others: int) -> list[jax.Array]:
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(2, ROWS // 2, DEPTH)), generator.normal(size=(DEPTH, COLUMNS))
    hidden = np.square(generator.normal(size=(others, 2, ROWS // 2, COLUMNS)))
    factor = jnp.asarray(generator.uniform(0.5, 1.5, (2, ROWS // 2, 1)), jnp.float32)
    return [jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32), factor, *jnp.asarray(hidden, jnp.bfloat16)]


def on_hopper() -> bool:
    return mlp._hopper_kernel() is not None


@pytest.mark.parametrize("direction", FUNCTIONS)
def test_lowers_for_a_gpu(direction, monkeypatch):
    monkeypatch.setattr(hopper, "_num_multiprocessors", lambda: 132)
    function, others = FUNCTIONS[direction]
    traced = jax.jit(lambda *args: hopper.product_then(function, *args)).trace(*arguments(others))
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_fits_what_its_tiles_cut_without_a_rest():
    x, kernel = arguments(0)[:2]
    assert hopper.fits(x, kernel)
    assert not hopper.fits(x.astype(jnp.float32), kernel)
    assert not hopper.fits(x[:, :-1], kernel) and not hopper.fits(x, kernel[:, : hopper.COLUMNS])


@pytest.mark.skipif("not on_hopper()")
@pytest.mark.parametrize("direction", FUNCTIONS)
def test_agrees_with_the_function_after_the_product(direction):
    function, others = FUNCTIONS[direction]
    x, kernel, factor, *hidden = arguments(others)
    assert hopper.fits(x, kernel)
    found = hopper.product_then(function, x, kernel, factor, *hidden)
    product = np.einsum("btd,df->btf", np.asarray(x, np.float64), np.asarray(kernel.astype(jnp.bfloat16), np.float64))
    expected = function(jnp.asarray(product), factor, *(array.astype(jnp.float32) for array in hidden))
    assert np.linalg.norm(np.asarray(found - expected)) < 4e-3 * np.linalg.norm(np.asarray(expected))  # bfloat16


@pytest.mark.skipif("not on_hopper()")
def test_is_not_batched_itself():
    x, kernel, factor = arguments(0)
    batched = jax.vmap(lambda x, factor: mlp.product_then(mlp._relu_squared, x, kernel, factor))(x, factor)
    single = mlp.product_then(mlp._relu_squared, x, kernel, factor)
    np.testing.assert_allclose(np.asarray(batched, np.float32), np.asarray(single, np.float32), rtol=2e-2, atol=1e-3)
