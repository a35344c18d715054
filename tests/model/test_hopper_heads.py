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

SHAPE = heads.HeadShape(num_heads=4, num_kv_heads=2, head_dim=hopper.PART)
"""Of its product, one tile is of queries, the other's halves are of keys and values."""
WIDTH = (SHAPE.num_heads + 2 * SHAPE.num_kv_heads) * SHAPE.head_dim
BATCH, LENGTH, DEPTH = 2, 2 * hopper.ROWS, hopper.SWIZZLE_BYTES
BFLOAT16 = 4e-3
"""Error of results that were rounded to it once, as a share of their norm."""

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


def assert_near(found, expected, tolerance: float) -> None:
    """Every array, as a whole."""
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        assert np.linalg.norm(one - other) < tolerance * np.linalg.norm(other)


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


@concatenates
@pytest.mark.parametrize("rotated_pairs", [8, 32])
def test_lowers_for_a_gpu(rotated_pairs, monkeypatch):
    monkeypatch.setattr(door, "gpu", lambda: SimpleNamespace(device_kind="", compute_capability="9.0"))
    monkeypatch.setattr(hopper, "_num_multiprocessors", lambda: 132)
    traced = jax.jit(partial(projected, "auto")).trace(*arguments(rotated_pairs))
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("rotated_pairs", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_the_interpreter_finds_the_heads_and_what_their_gradient_needs(rotated_pairs, monkeypatch):
    interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
    monkeypatch.setattr(hopper, "_num_multiprocessors", lambda: 1)
    monkeypatch.setattr(hopper.plgpu, "layout_cast", lambda x, layout: x)  # it has no registers to lay out
    monkeypatch.setattr(hopper.plgpu, "load", lambda ref, optimized: ref[...])
    x, kernel, *more = arrays = arguments(rotated_pairs)
    with interpreter.force_gpu_interpret_mode():
        q, k, v, factors = hopper_heads.product_heads(SHAPE, *arrays)
    assert_near((q, k, v), expected_heads(*arrays), BFLOAT16)
    gradients = given_gradients()
    qkv_gradient, _, gain_gradient, *_ = heads._backward(True, SHAPE, 2, (q, k, factors, *more), gradients)
    found = qkv_gradient.astype(jnp.float32) @ kernel.astype(jnp.bfloat16).T.astype(jnp.float32), gain_gradient
    expected = expected_gradients(arrays, gradients)
    assert_near(found, (expected[0], expected[3]), 2 * BFLOAT16)


@pytest.mark.skipif("not door.is_hopper()")
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


@pytest.mark.skipif("not door.is_hopper()")
def test_is_not_batched_itself():
    x, kernel, *more = arguments(8)

    def heads_and_gradient(x, scale, gradients):
        found, derivative = jax.vjp(lambda x: projected("auto", x, kernel, scale, *more[1:]), x)
        return *found, *derivative(gradients)

    one_each = tuple(gradient[:, None] for gradient in given_gradients())
    batched = jax.vmap(heads_and_gradient)(x[:, None], more[0][:, None], one_each)
    single = heads_and_gradient(x, more[0], given_gradients())
    assert_near([array[:, 0] for array in batched], single, 2 * BFLOAT16)
