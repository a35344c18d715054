from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf import api
from jgolf import config as configs
from jgolf.model.functional import parameter_shapes
from tests.conftest import NANO, RECIPE, TINY, params_of, relative_distances

SMALL = dataclasses.replace(NANO, vocab_size=64)
CONFIG = dataclasses.replace(
    RECIPE,
    name="small",
    model=SMALL,
    optim=dataclasses.replace(RECIPE.optim, muon=dataclasses.replace(RECIPE.optim.muon, newton_schulz_dtype="float32")),
    train=dataclasses.replace(RECIPE.train, steps=10, warmdown_steps=8, time_cap_s=0.0),
)


@pytest.fixture(scope="module")
def golden_model(golden):
    arrays = np.load(golden / "tiny" / "model.npz")
    return params_of(arrays, "params/"), jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"]), arrays


def random_batch(shape: tuple[int, ...], seed: int = 0) -> api.Batch:
    tokens = np.random.default_rng(seed).integers(0, SMALL.vocab_size, (*shape[:-1], shape[-1] + 1))
    return api.Batch(jnp.asarray(tokens[..., :-1]), jnp.asarray(tokens[..., 1:]))


def test_loss_and_gradient_are_the_references(golden_model):
    params, x, y, arrays = golden_model
    value, grads = jax.jit(jax.value_and_grad(partial(api.loss, TINY)))(params, x, y)
    np.testing.assert_allclose(value, arrays["loss"], rtol=2e-5)
    distances = relative_distances(grads, params_of(arrays, "grads/"))
    assert max(distances.values()) < 2e-4
    token_losses = jax.jit(partial(api.token_losses, TINY))(params, x, y)
    np.testing.assert_allclose(token_losses.mean(), arrays["loss"], rtol=2e-5)


def test_per_example_gradients_average_to_the_batchs(golden_model):
    params, x, y, arrays = golden_model
    per_example = jax.jit(jax.vmap(jax.grad(partial(api.loss, TINY)), in_axes=(None, 0, 0)))(params, x, y)
    mean = {path: value.mean(axis=0) for path, value in per_example.items()}
    assert max(relative_distances(mean, params_of(arrays, "grads/")).values()) < 2e-4


@pytest.fixture(scope="module")
def params() -> api.Params:
    return jax.jit(partial(api.init, SMALL))(jax.random.key(0))


EVERY_PART = dataclasses.replace(
    SMALL,
    activation_slope=0.5,
    gated_smear=True,
    skip_gates=True,
    loop_layers=(0,),
    num_loops=1,
    lanes_from=-1,
    attention_gate=True,
)


def test_the_written_model_can_be_differentiated_twice_and_forwards():
    """A directional derivative, and a Hessian-vector product, in either mode: each way is another program.

    The product is the central difference of gradients, too.
    """
    loss = partial(api.loss, dataclasses.replace(EVERY_PART, kernels="plain"))
    rng = np.random.default_rng(0)
    params, direction = (
        {path: rng.normal(0, scale, shape).astype(np.float32) for path, shape in parameter_shapes(EVERY_PART).items()}
        for scale in (0.1, 1.0)
    )
    batch = random_batch((2, 16))

    def along(params):
        grads = jax.grad(loss)(params, *batch)
        return sum(jnp.vdot(value, direction[path]) for path, value in grads.items())

    @jax.jit
    def forwards(params):
        def value_and_grads(params):
            return jax.value_and_grad(loss)(params, *batch)

        return jax.jvp(value_and_grads, (params,), (direction,))

    def flat(tree: api.Params) -> np.ndarray:
        return np.concatenate([np.ravel(tree[path]) for path in direction]).astype(np.float64)

    slope, product = forwards(params)[1]
    expected_slope, expected_product = jax.jit(jax.value_and_grad(along))(params)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4)
    assert max(relative_distances(product, expected_product).values()) < 1e-3
    size = np.float32(2.5e-4)
    ends = [
        forwards({path: value + sign * size * direction[path] for path, value in params.items()})[0][1]
        for sign in (1, -1)
    ]
    difference = (flat(ends[0]) - flat(ends[1])) / (2 * size)
    assert np.linalg.norm(flat(product) - difference) < 0.05 * np.linalg.norm(difference)


def test_kernels_have_no_derivative_in_forward_mode(params):
    model = dataclasses.replace(SMALL, kernels="interpret")

    def tangent(params):
        apply = partial(api.apply, model, tokens=jnp.zeros((1, 16), int))
        return jax.jvp(apply, (params,), (params,))[1]

    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jit(tangent).lower(params)


def test_init_many_is_init_for_each_key():
    keys = jax.random.split(jax.random.key(3), 2)
    model = dataclasses.replace(SMALL, orthogonal_init=True)
    many = jax.jit(partial(api.init_many, model))(keys)
    init = jax.jit(partial(api.init, model))
    for index, key in enumerate(keys):
        one = init(key)
        for path, value in one.items():
            np.testing.assert_allclose(many[path][index], value, atol=1e-6)
    assert not np.allclose(many["blocks/0/mlp/up_proj/kernel"][0], many["blocks/0/mlp/up_proj/kernel"][1])


def test_apply_vmaps_over_models():
    keys = jax.random.split(jax.random.key(3), 2)
    many = jax.jit(partial(api.init_many, SMALL))(keys)
    tokens = random_batch((2, 16)).inputs
    apply = partial(api.apply, SMALL)
    logits = jax.jit(jax.vmap(apply, in_axes=(0, None)))(many, tokens)
    assert logits.shape == (2, 2, 16, SMALL.vocab_size)
    np.testing.assert_allclose(logits[1], jax.jit(apply)({p: v[1] for p, v in many.items()}, tokens), atol=1e-5)


def test_train_step_vmaps_over_learning_rates_and_learns(params):
    batch = random_batch((2, 16))
    rates = (0.01, 0.03)

    def step(rate, state):
        return api.train_step(configs.replace(CONFIG, "optim.muon.learning_rate", rate), state, batch)

    one, several = jax.jit(step), jax.jit(jax.vmap(step))
    states = [api.init_state(CONFIG, params) for _ in rates]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    for _ in range(CONFIG.train.steps):
        states, metrics = zip(*(one(rate, state) for rate, state in zip(rates, states, strict=True)), strict=True)
        stacked, stacked_metrics = several(jnp.array(rates), stacked)
    for index, state in enumerate(states):
        found = {path: value[index] for path, value in stacked.params.items()}
        assert max(relative_distances(found, state.params).values()) < 1e-3
        np.testing.assert_allclose(stacked_metrics.loss[index], metrics[index].loss, rtol=1e-4)
    assert metrics[0].loss < 4.0 < np.log(SMALL.vocab_size)
    assert metrics[1].loss != metrics[0].loss


def test_quantize_pack_unpack_dequantize(params):
    rules = dataclasses.replace(RECIPE.quantize, small_size=256)
    stored, metadata = api.unpack(api.pack(api.quantize(params, rules), {"note": [1, "two"]}))
    assert metadata == {"note": [1, "two"]}
    restored = api.dequantize(stored)
    assert {path: value.shape for path, value in restored.items()} == {p: v.shape for p, v in params.items()}
    path = "blocks/0/mlp/up_proj/kernel"
    assert stored[path].form == "int5"
    # Steps of 1/15, the scale's floor: no weight moves by more than half of one, whatever the clip.
    assert 0.01 < np.abs(restored[path] - params[path]).max() <= 1 / 30 + 1e-3
    fake = jax.jit(lambda params: api.fake_quantize(params, rules))(params)
    close = np.isclose(fake[path], restored[path], atol=1e-3)  # but for weights halfway between two levels
    assert close.mean() > 0.999


def test_bits_per_byte():
    assert api.bits_per_byte(np.log(2) * 3, tokens=10, num_bytes=20) == pytest.approx(1.5)
