"""The kernel of Hopper GPUs that multiplies and splits heads: it can be compiled on any machine, and run there only."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model.kernels import door, heads, hopper, hopper_heads
from jgolf.model.kernels.fp8 import FP8
from jgolf.model.kernels.products import matmul
from tests.model.hopper_checks import BFLOAT16, assert_near, interpreted, pretend_a_gpu

SHAPE = heads.HeadShape(num_heads=4, num_kv_heads=2, head_dim=hopper.PART)
"""Of its product, one tile is of queries, the other's halves are of keys and values."""
WIDTH = (SHAPE.num_heads + 2 * SHAPE.num_kv_heads) * SHAPE.head_dim
BATCH, LENGTH, DEPTH = 2, 2 * hopper.ROWS, hopper.SWIZZLE_BYTES

concatenates = pytest.mark.skipif("jax.__version_info__ < hopper_heads.FIRST_JAX")


def arguments(rotated_pairs: int) -> list[jax.Array]:
    """x, kernel, scale, gain, cos and sin."""
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(BATCH, LENGTH, DEPTH)), generator.normal(size=(DEPTH, WIDTH))
    scale, gain = generator.uniform(0.5, 1.5, (BATCH, LENGTH, 1)), generator.uniform(0.5, 5.0, SHAPE.num_heads)
    angles = generator.uniform(-np.pi, np.pi, (LENGTH, rotated_pairs))
    floats = (jnp.asarray(array, jnp.float32) for array in (kernel, scale, gain, np.cos(angles), np.sin(angles)))
    return [jnp.asarray(x, jnp.bfloat16), *floats]


def expected_heads(x, kernel, scale, gain, cos, sin) -> list[np.ndarray]:
    """q, k and v in NumPy and float64, a pair of rotated dimensions as one complex number."""
    kernel = kernel.astype(x.dtype)
    x, kernel, scale, gain, cos, sin = (np.asarray(a, np.float64) for a in (x, kernel, scale, gain, cos, sin))
    all_heads = (scale * (x @ kernel)).reshape(BATCH, LENGTH, -1, SHAPE.head_dim)
    q, k, v = np.split(all_heads, [SHAPE.num_heads, SHAPE.num_heads + SHAPE.num_kv_heads], axis=2)
    r, turn = cos.shape[1], (cos - 1j * sin)[:, None, :]

    def turned(head):
        head = head / np.sqrt(np.mean(head**2, axis=-1, keepdims=True) + 1.1920929e-07)
        pairs = turn * (head[..., :r] + 1j * head[..., r : 2 * r])
        return np.concatenate([pairs.real, pairs.imag, head[..., 2 * r :]], axis=-1)

    return [gain[:, None] * turned(q), turned(k), v]


def as_float32(arrays) -> list[jax.Array]:
    """With the operands of the product rounded as they are in the kernel."""
    return [array.astype(jnp.float32) for array in (arrays[0], arrays[1].astype(jnp.bfloat16), *arrays[2:])]


def projected(choice: door.Choice, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """q, k, and v twice."""
    return heads.projected_heads(choice, SHAPE, *arrays, 2)


def given_gradients() -> tuple[jax.Array, ...]:
    """Of q, k, and of v twice."""
    generator, counts = np.random.default_rng(1), (SHAPE.num_heads, *[SHAPE.num_kv_heads] * 3)
    shapes = [(BATCH, LENGTH, count, SHAPE.head_dim) for count in counts]
    return tuple(jnp.asarray(generator.normal(size=shape), jnp.bfloat16) for shape in shapes)


def expected_gradients(arrays, gradients) -> tuple[jax.Array, ...]:
    """Of the arguments in float32, by autodiff of the plain form."""
    _, derivative = jax.vjp(partial(projected, "plain"), *as_float32(arrays))
    return derivative(tuple(gradient.astype(jnp.float32) for gradient in gradients))


def test_fits_whole_heads_and_sequences(monkeypatch):
    monkeypatch.setattr(hopper_heads, "FIRST_JAX", (0,))
    x, kernel, _, _, cos, _ = arguments(8)
    assert hopper_heads.fits(SHAPE, x, kernel, cos)
    assert not hopper_heads.fits(SHAPE._replace(head_dim=32), x, kernel, cos)
    assert not hopper_heads.fits(SHAPE._replace(num_heads=6, num_kv_heads=1), x, kernel, cos)
    assert not hopper_heads.fits(SHAPE, x.reshape(2 * BATCH, -1, DEPTH)[:, : hopper.ROWS // 2], kernel, cos)
    assert not hopper_heads.fits(SHAPE, x, kernel, cos[:, :4])
    assert not hopper_heads.fits(SHAPE, x.astype(jnp.float32), kernel, cos)
    assert not hopper_heads.fits(SHAPE, x.astype(FP8), kernel, cos)


def test_says_where_jax_is_too_old(monkeypatch, caplog):
    monkeypatch.setattr(hopper_heads, "FIRST_JAX", (99, 1))
    door.note.cache_clear()
    x, kernel, _, _, cos, _ = arguments(8)
    assert not hopper_heads.fits(SHAPE, x, kernel, cos[:, :4]) and not caplog.messages  # no JAX would do
    assert not hopper_heads.fits(SHAPE, x, kernel, cos)
    reason = f"in two passes, since a kernel for both needs JAX 99.1, not {jax.__version__}"
    assert caplog.messages == [f"projecting to heads: {reason}"]


@concatenates
@pytest.mark.parametrize("rotated_pairs", [8, 32])
def test_lowers_for_a_gpu(rotated_pairs, monkeypatch):
    pretend_a_gpu(monkeypatch)
    traced = jax.jit(partial(projected, "auto")).trace(*arguments(rotated_pairs))
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("rotated_pairs", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_the_interpreter_finds_the_heads_and_what_their_gradient_needs(rotated_pairs, monkeypatch):
    monkeypatch.setattr(hopper.plgpu, "load", lambda ref, optimized: ref[...])
    x, kernel, *more = arrays = arguments(rotated_pairs)
    with interpreted(monkeypatch):
        q, k, v, factors = hopper_heads.product_heads(SHAPE, *arrays)
    assert_near((q, k, v), expected_heads(*arrays), BFLOAT16)
    gradients = given_gradients()
    qkv_gradient, _, gain_gradient, *_ = heads._backward(True, SHAPE, 2, (q, k, factors, *more), gradients)
    found = qkv_gradient.astype(jnp.float32) @ kernel.astype(jnp.bfloat16).T.astype(jnp.float32), gain_gradient
    expected = expected_gradients(arrays, gradients)
    assert_near(found, (expected[0], expected[3]), 2 * BFLOAT16)


def test_the_derivative_starts_from_what_the_kernel_writes(monkeypatch):
    """With passes over rows in the kernel's place; with and without a gradient of the weights, and batched."""

    def product_heads(shape, x, kernel, *more):
        found, (_, _, factors, *_) = heads._forward(True, shape, 1, matmul(x, kernel), *more)
        return *found, factors

    monkeypatch.setattr(heads, "hopper_module", lambda name: SimpleNamespace(product_heads=product_heads))
    from_product = partial(heads._projected_heads, True, SHAPE, 2)
    x, kernel, *more = arrays = arguments(8)
    gradients = given_gradients()
    (q, k, v, same_v), derivative = jax.vjp(from_product, *arrays)
    np.testing.assert_array_equal(v, same_v)
    assert_near((q, k, v), expected_heads(*arrays), 2 * BFLOAT16)
    found, expected = derivative(gradients), expected_gradients(arrays, gradients)
    assert_near([found[i] for i in (0, 1, 3)], [expected[i] for i in (0, 1, 3)], 2 * BFLOAT16)

    def x_gradient(x, scale, gradients):
        return jax.vjp(lambda x: from_product(x, kernel, scale, *more[1:]), x)[1](gradients)[0]

    assert_near([x_gradient(x, more[0], gradients)], expected[:1], 2 * BFLOAT16)
    one_each = tuple(gradient[:, None] for gradient in gradients)
    batched = jax.vmap(x_gradient)(x[:, None], more[0][:, None], one_each)
    assert_near([batched[:, 0]], expected[:1], 2 * BFLOAT16)


@pytest.mark.usefixtures("hopper_gpu")
@pytest.mark.parametrize("rotated_pairs", [8, 32])
def test_agrees_with_the_heads_after_the_product(rotated_pairs):
    x, kernel, *more = arrays = arguments(rotated_pairs)
    assert hopper_heads.fits(SHAPE, x, kernel, more[-1])
    gradients = given_gradients()
    (q, k, v, same_v), derivative = jax.vjp(partial(projected, "auto"), *arrays)
    np.testing.assert_array_equal(v, same_v)
    assert_near((q, k, v), expected_heads(*arrays), BFLOAT16)
    found, expected = (
        (x, kernel, gain) for x, kernel, _, gain, *_ in (derivative(gradients), expected_gradients(arrays, gradients))
    )
    assert_near(found, expected, 2 * BFLOAT16)


@pytest.mark.usefixtures("hopper_gpu")
def test_is_not_batched_itself():
    x, kernel, *more = arguments(8)

    def heads_and_gradient(x, scale, gradients):
        found, derivative = jax.vjp(lambda x: projected("auto", x, kernel, scale, *more[1:]), x)
        return *found, *derivative(gradients)

    one_each = tuple(gradient[:, None] for gradient in given_gradients())
    batched = jax.vmap(heads_and_gradient)(x[:, None], more[0][:, None], one_each)
    single = heads_and_gradient(x, more[0], given_gradients())
    assert_near([array[:, 0] for array in batched], single, 2 * BFLOAT16)
