"""Operations with a derivative of their own against autodiff of the plain formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model import attention, blocks, context, network, norm
from jgolf.model.kernels import door, heads, loss, mlp, products, rowwise, tables
from tests.conftest import RECIPE

NUM_ROWS = 1024


def random(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@partial(jax.jit, static_argnums=0)
def values_and_gradients(function: Callable, primals: tuple[jax.Array, ...], results: Any) -> list[jax.Array]:
    values, vjp = jax.vjp(function, *primals)
    return jax.tree.leaves((values, vjp(results)))


def assert_same_vjp(found: Callable, expected: Callable, *primals: jax.Array) -> None:
    """Values and gradients, for random gradients of the results."""
    results = jax.tree.map(lambda value: random(99, *value.shape), jax.eval_shape(expected, *primals))
    both = (values_and_gradients(function, primals, results) for function in (found, expected))
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def both_ways(function: Callable, num_rows: int, **how) -> tuple[Callable, Callable]:
    """The function as a kernel, and as it is; the first `num_rows` arguments are rows."""

    def run(choice):
        return lambda *args: rowwise.rowwise(choice, function, args[:num_rows], args[num_rows:], **how)

    return run("interpret"), run("plain")


@pytest.mark.parametrize("width", [32, pytest.param(128, marks=pytest.mark.slow)])
def test_rowwise_functions_of_the_stream(width):
    x, other, x0 = (random(seed, NUM_ROWS, width) for seed in range(3))
    weights = [random(seed, 1, width) for seed in range(3, 7)]
    assert_same_vjp(*both_ways(network.rms_normalised, 1), x)
    assert_same_vjp(*both_ways(network.rms_normalised_mean, 2), x, other)
    assert_same_vjp(*both_ways(blocks.normalised, 1, second_is_first=True, input_result=0), x)
    for functions, how in ((blocks.ONE_STREAM, {"second_is_first": True}), (blocks.TWO_LANES, {})):
        assert_same_vjp(*both_ways(functions["none"], 2, **how), x, x0, *weights[:2])
        assert_same_vjp(*both_ways(functions["added"], 3, **how), x, other, x0, *weights[:3])
        assert_same_vjp(*both_ways(functions["gated"], 3, **how), x, other, x0, *weights[:4])
        assert_same_vjp(*both_ways(functions["kept"], 2, **how), x, x0, *weights[:2])
        assert_same_vjp(*both_ways(functions["own_added"], 2, **how), x, x0, *weights[:3])
        assert_same_vjp(*both_ways(functions["own_gated"], 2, **how), x, x0, *weights[:4])
        how |= {"window": 12, "handed_on": 1, "input_result": blocks.KEPT}
        assert_same_vjp(*both_ways(functions["kept"], 2, **how), x, x0, *weights[:2])


def test_rowwise_update_of_two_lanes():
    rows, weights = [random(seed, NUM_ROWS, 32) for seed in range(4)], [random(seed, 1, 32) for seed in range(4, 10)]
    assert_same_vjp(*both_ways(blocks.lanes_updated, 4), *rows, *weights)


def test_rowwise_without_own_value():
    y, v, gate = random(0, NUM_ROWS, 32), random(1, NUM_ROWS, 16), random(2, NUM_ROWS, 2)
    assert_same_vjp(*both_ways(attention.without_own_value, 2), y, v)
    assert_same_vjp(*both_ways(attention.gated, 2), y, gate)
    assert_same_vjp(*both_ways(attention.gated_without_own_value, 3), y, v, gate)


def test_rowwise_adds_up_addends():
    x, update = random(0, 4, NUM_ROWS // 4, 32), random(1, 4, NUM_ROWS // 4, 32)

    def run(choice):
        how = {"second_is_first": True, "input_result": 0}
        return lambda x, update: rowwise.rowwise(choice, blocks.normalised, [(x, update)], **how)

    assert_same_vjp(run("interpret"), run("plain"), x, update)
    np.testing.assert_allclose(run("interpret")(x, update)[0], x + update, rtol=1e-6)


def test_rowwise_keeps_a_sum_that_is_a_result_in_place_of_its_addends():
    rows = [random(seed, NUM_ROWS, 32) for seed in range(3)]
    weights = [random(seed, 1, 32) for seed in range(3, 5)]

    def run(choice):
        how = {"second_is_first": True, "input_result": blocks.KEPT}
        function = blocks.ONE_STREAM["kept"]
        return lambda x, update, x0, *whole: rowwise.rowwise(choice, function, [(x, update), x0], whole, **how)

    assert_same_vjp(run("interpret"), run("plain"), *rows, *weights)
    _, derivative = jax.vjp(run("interpret"), *rows, *weights)
    sizes = [leaf.size for leaf in jax.tree.leaves(derivative)]
    assert sizes.count(rows[0].size) == 2  # the sum and x0


def test_split_heads_as_a_kernel():
    config = dataclasses.replace(
        RECIPE.model, model_dim=32, num_heads=4, num_kv_heads=2, rope_dims=4, compute_dtype="float32"
    )
    length = 2 * heads.TILE_ROWS
    qkv, gain = random(0, 2, length, config.model_dim + 2 * config.kv_dim), random(1, config.num_heads)
    scale = jnp.abs(random(2, 2, length, 1)) + 0.1
    rotary = context.rotary_tables(config, length, length)

    def run(choice):
        shape = heads.HeadShape(4, 2, config.head_dim)
        return lambda qkv, gain: heads.split_heads(choice, shape, qkv, scale, gain, *rotary)

    assert_same_vjp(run("interpret"), run("plain"), qkv, gain)


def test_factored_norm_has_the_gradient_of_the_norm():
    x, matrix = random(0, 8, 32), random(1, 32, 16)

    def factored(x):
        inputs, factor = norm.factored_norm(x)
        return factor * (inputs @ matrix)

    assert_same_vjp(
        factored, lambda x: x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1.1920929e-07) @ matrix, x
    )


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_mlp(slope):
    factor = jnp.abs(random(1, 8, 1)) + 0.1
    assert_same_vjp(
        lambda x, up, down: mlp.mlp("interpret", slope, False, x, factor, up, down),
        lambda x, up, down: jax.nn.leaky_relu(factor * (x @ up), slope) ** 2 @ down,
        random(0, 8, 32),
        random(2, 32, 16),
        random(3, 16, 32),
    )


def test_matmul():
    assert_same_vjp(products.matmul, lambda x, kernel: x @ kernel, random(0, 2, 8, 32), random(1, 32, 16))


@pytest.mark.parametrize("index", ["random", "one row", "few rows"])
def test_sums_over_sorted_positions(index):
    n, rows = 1000, 64
    values = random(0, n, 2 * tables.TILE_COLUMNS)
    drawn = np.random.default_rng(1).integers(0, rows, n)
    index = jnp.asarray({"random": drawn, "one row": 0 * drawn + 17, "few rows": np.minimum(drawn, 2)}[index])
    expected = np.zeros((rows, values.shape[1]))
    np.add.at(expected, np.asarray(index), np.asarray(values, np.float64))
    np.testing.assert_allclose(tables.sum_sorted(values, index, rows, interpret=True), expected, rtol=1e-4, atol=1e-4)


def test_lookup():
    index = jnp.asarray([[3, 0, 3], [1, 3, 0]])
    table = random(0, tables.TILE_ROWS, tables.TILE_COLUMNS)
    for choice in ("interpret", "plain"):
        looked_up = partial(tables.lookup, choice)
        assert_same_vjp(lambda table, f=looked_up: f(table, index, jnp.float32), lambda table: table[index], table)


@pytest.mark.parametrize("cap", [0.0, 30.0, 100.0])
def test_losses(cap):
    hidden, kernel = random(0, 2, 128, 16), 4 * random(1, 16, 32)  # positions of a tile: the kernel takes no fewer
    targets = jnp.asarray(np.random.default_rng(2).integers(0, 32, (2, 128)))

    def expected(hidden, kernel):
        logits = hidden @ kernel
        logits = cap * jnp.tanh(logits / cap) if cap else logits
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]

    for choice in ("interpret", "plain"):
        assert_same_vjp(lambda *arrays, c=choice: loss.head_losses(c, cap, *arrays, targets), expected, hidden, kernel)
        assert_same_vjp(
            lambda hidden, kernel, c=choice: loss.logit_losses(c, cap, hidden @ kernel, targets),
            expected,
            hidden,
            kernel,
        )


@pytest.mark.parametrize("part_values", [loss.PART_VALUES, 1 << 11, 1])
def test_mean_loss_part_by_part(monkeypatch, part_values):
    monkeypatch.setattr(loss, "PART_VALUES", part_values)
    hidden, kernel = random(0, 3, 256, 16), 4 * random(1, 16, 32)
    targets = jnp.asarray(np.random.default_rng(2).integers(0, 32, (3, 256)))

    def expected(hidden, kernel):
        logits = 30 * jnp.tanh(hidden @ kernel / 30)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1))

    for choice in ("interpret", "plain"):
        found = partial(loss.mean_head_loss, choice, 30.0)
        assert_same_vjp(lambda *arrays, f=found: f(*arrays, targets), expected, hidden, kernel)


@pytest.mark.parametrize("of_losses", [loss.head_losses, loss.mean_head_loss])
def test_a_head_that_rests_gets_no_gradient(of_losses):
    hidden, kernel, targets = random(0, 1, 256, 16), random(1, 16, 32), jnp.zeros((1, 256), jnp.int32)

    def total(hidden, kernel):
        return jnp.sum(of_losses("interpret", 30.0, hidden, kernel, targets))

    def has_kernel_s_gradient(argument):
        equations = jax.make_jaxpr(jax.grad(total, argument))(hidden, kernel).eqns
        return any(one.primitive.name == "dot_general" and one.outvars[0].aval.shape == (16, 32) for one in equations)

    assert has_kernel_s_gradient(1) and not has_kernel_s_gradient(0)


@pytest.mark.parametrize(
    ("positions", "vocab_size", "lengths"),
    [
        (98_304, 8192, [32_768] * 3),
        (98_304, 1024, [98_304]),
        (65_537, 8192, [21_846] * 2 + [21_845]),
        (4 * 131_071, 2048, [131_072] * 3 + [131_068]),
        (3, 1 << 30, [1] * 3),
    ],
)
def test_parts_of_a_mean_loss_are_few_and_of_whole_tiles(positions, vocab_size, lengths):
    parts = loss._parts(positions, vocab_size)
    assert [part.stop - part.start for part in parts] == lengths
    assert [part.start for part in parts] == [0, *np.cumsum(lengths)[:-1]]


def test_losses_do_not_vanish_far_below_the_cap():
    """Where all of a row's logits are near −cap, their exponentials are tiny, but not 0."""
    logits = jnp.full((1, loss.TILE_VALUES // 8, 8), -1e4, jnp.float32)
    found = loss.logit_losses("interpret", loss.LARGEST_SHIFT, logits, jnp.zeros(logits.shape[:2], jnp.int32))
    np.testing.assert_allclose(found, np.log(8), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_number_s_last_bit_can_be_set(dtype):
    x = jnp.abs(random(0, 4096)) ** 4
    bit = jnp.asarray(np.random.default_rng(1).random(4096) < 0.5)
    found = mlp.with_last_bit(x, bit, dtype)
    np.testing.assert_array_equal(found.astype(dtype).astype(jnp.float32), found)  # the type holds it
    np.testing.assert_array_equal(mlp.last_bit(found, dtype), bit)
    np.testing.assert_allclose(found, x, rtol=float(jnp.finfo(dtype).eps))
    rounded = np.asarray(x.astype(dtype), np.float64).view(np.int64)  # the nearest number has one bit or the other
    np.testing.assert_array_equal(found == x.astype(dtype).astype(jnp.float32), (rounded >> _place(dtype) & 1) == bit)


def _place(dtype):
    """Where the last bit of a number of this type lies among those of the same float64 number."""
    return 52 - jnp.finfo(dtype).nmant


@pytest.mark.parametrize(
    ("kind", "in_mesh", "expected"), [("cpu", True, 3.0), ("other", True, 2.0), ("cpu", False, 2.0)]
)
def test_within_a_mesh_only_the_form_for_its_devices_is_traced(monkeypatch, kind, in_mesh, expected) -> None:
    """A GPU that calls itself "cpu" stands for a process's GPU; the kernel triples, the plain form doubles."""
    monkeypatch.setattr(door, "gpu", lambda: SimpleNamespace(device_kind=kind))
    traced = []

    def form(factor: float) -> Callable:
        def multiplied(x: jax.Array) -> jax.Array:
            traced.append(factor)
            return factor * x

        return multiplied

    def chosen(x: jax.Array) -> jax.Array:
        return door.choose("auto", "multiplied", form(2.0), lambda _, x: form(3.0)(x), None, x)

    if in_mesh:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("devices",))
        rows = jax.sharding.PartitionSpec("devices")
        chosen = jax.shard_map(chosen, mesh=mesh, in_specs=rows, out_specs=rows)
    value, grad = jax.jit(jax.value_and_grad(lambda x: chosen(x)[0]))(jnp.ones(1))
    assert float(value) == float(grad[0]) == expected
    assert set(traced) == ({expected} if in_mesh else {2.0, 3.0})
