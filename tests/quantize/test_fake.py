"""Fake quantization against the PyTorch reference's numbers, and what reaches the gradient."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.quantize.fake import fake_quantize, fake_quantize_kernel
from tests.conftest import RECIPE

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("bits", [5, 6])
def test_values_are_the_reference_s_to_the_bit(size, bits):
    golden = np.load(GOLDEN / size / "quantize.npz")
    kernel, expected = jnp.asarray(golden["w"].T), golden[f"fake_int{bits}"].T
    np.testing.assert_array_equal(fake_quantize_kernel(kernel, bits), expected)
    jitted = jax.jit(fake_quantize_kernel, static_argnums=1)
    np.testing.assert_array_equal(jitted(kernel, bits), expected)
    batched = jax.jit(jax.vmap(lambda one: fake_quantize_kernel(one, bits)))
    np.testing.assert_array_equal(batched(jnp.stack([kernel, kernel[::-1]])), [expected, expected[::-1]])


def test_without_the_floor_each_output_has_its_own_step():
    kernel = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32) * [1e-3, 1e-2, 1, 10, 0]
    found = np.asarray(fake_quantize_kernel(jnp.asarray(kernel, jnp.float32), 6, scale_floor=False))
    step = np.abs(kernel).max(axis=0) / 31
    assert (np.abs(found - kernel) <= step * 0.5001).all()
    levels = found[:, :4] / step[:4]
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)


def test_takes_the_matrices_of_the_muon_group_at_their_bits_and_passes_the_rest_on():
    rng = np.random.default_rng(1)
    shapes = {
        "blocks/0/mlp/up_proj/kernel": (8, 24),
        "blocks/0/attn/q_proj/kernel": (8, 8),
        "bigram/proj/kernel": (4, 8),
        "embed/embedding": (32, 8),
        "bigram/embedding": (16, 4),
        "smear/gate": (8,),
    }
    params = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    found = fake_quantize(params, dataclasses.replace(RECIPE.quantize, mlp="int4", attention="int6"))
    bits = {"blocks/0/mlp/up_proj/kernel": 4, "blocks/0/attn/q_proj/kernel": 6, "bigram/proj/kernel": 6}
    for path, values in params.items():
        expected = fake_quantize_kernel(values, bits[path]) if path in bits else values
        np.testing.assert_array_equal(found[path], expected)
    unchanged = fake_quantize(params, dataclasses.replace(RECIPE.quantize, mlp="fp16", attention="int6"))
    assert unchanged["blocks/0/mlp/up_proj/kernel"] is params["blocks/0/mlp/up_proj/kernel"]


def test_the_gradient_at_the_rounded_weights_passes_straight_through():
    path = "blocks/0/mlp/up_proj/kernel"
    params = {path: jnp.asarray(np.random.default_rng(2).normal(size=(8, 24)), jnp.float32)}
    rounded = fake_quantize(params, RECIPE.quantize)
    gradients = jax.grad(lambda p: jnp.sum(p[path] ** 3))(rounded)
    np.testing.assert_allclose(gradients[path], 3 * np.asarray(rounded[path]) ** 2, rtol=1e-6)
