"""Low-rank additions: the two ways of writing the network, what each adds to, and what is not computed for them."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.config import ModelConfig
from jgolf.config.plan import make_plan
from jgolf.model.functional import apply, loss, parameter_shapes, token_losses
from jgolf.model.lora import HEAD, LowRank, addition_name, addition_names, addition_outputs
from tests.conftest import NANO

KINDS = ("q", "k", "v", "o", "mlp", "head")
LOOPED = ModelConfig(
    vocab_size=32,
    num_layers=4,
    model_dim=32,
    num_heads=2,
    num_kv_heads=1,
    mlp_multiple=1.0,
    activation_slope=0.5,
    tie_embeddings=True,
    gated_smear=True,
    unet_skips=True,
    skip_gates=True,
    loop_layers=(1,),
    num_loops=1,
    lanes_from=3,
    xsa_layers=(0, 1, 2, 3),
    attention_gate=True,
    gate_window=6,
    ln_scale=True,
    q_gain=1.5,
    logit_softcap=30.0,
    compute_dtype="float32",
)
NETWORKS = {"looped": LOOPED, "untied": dataclasses.replace(NANO, vocab_size=32, tie_embeddings=False)}
ROWS, LENGTH, RANK = 2, 12, 3
POSITIONS = np.array([[2, 3, 11], [0, 5, 6]], np.int32)


def randoms(shapes, scale):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(0, scale, shape), jnp.float32) for name, shape in shapes.items()}


def additions_for(config, kinds=KINDS):
    kind_of = {name: kind for kind, names in addition_names(config, kinds).items() for name in names}
    downs = randoms(dict.fromkeys(kind_of, (ROWS, config.model_dim, RANK)), 0.3)
    ups = randoms({name: (ROWS, RANK, addition_outputs(config, kind)) for name, kind in kind_of.items()}, 0.3)
    return {name: LowRank(downs[name], ups[name]) for name in kind_of}


def tokens_and_targets():
    rng = np.random.default_rng(1)
    return rng.integers(2, 32, (ROWS, LENGTH)).astype(np.int32), rng.integers(2, 32, POSITIONS.shape).astype(np.int32)


@pytest.mark.parametrize(("name", "positions"), [("looped", POSITIONS), ("untied", None)])
def test_both_networks_agree(name, positions):
    """Where certain targets are asked for, and where the last ones are."""
    config = NETWORKS[name]
    params, additions = randoms(parameter_shapes(config), 0.3), additions_for(config)
    inputs, targets = tokens_and_targets()

    @jax.jit
    def losses_and_gradients(additions):
        def loss_of(config, additions):
            nats = token_losses(config, params, inputs, targets, positions, additions)
            return jnp.sum(nats), nats

        forms = [dataclasses.replace(config, kernels=kernels) for kernels in ("plain", "interpret")]
        return [jax.value_and_grad(partial(loss_of, form), has_aux=True)(additions) for form in forms]

    plain, modules = losses_and_gradients(additions)
    for expected, found in zip(*map(jax.tree.leaves, (plain, modules)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert all(np.abs(gradient).max() > 0 for gradient in jax.tree.leaves(plain[1]))


@pytest.mark.parametrize("kernels", ["plain", "interpret"])
@pytest.mark.parametrize("kinds", [(), ("q",), ("q", "head")])
def test_the_loss_is_the_mean_of_all_targets(kernels, kinds):
    config = dataclasses.replace(NETWORKS["untied"], kernels=kernels)
    params, (inputs, _) = randoms(parameter_shapes(config), 0.3), tokens_and_targets()
    additions = additions_for(config, kinds)

    def mean(params, additions):
        return jnp.mean(token_losses(config, params, inputs[:, :-1], inputs[:, 1:], additions=additions))

    def whole(params, additions):
        return loss(config, params, inputs[:, :-1], inputs[:, 1:], additions)

    both = [jax.jit(jax.value_and_grad(function, (0, 1)))(params, additions) for function in (mean, whole)]
    for expected, found in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_an_addition_is_what_it_would_be_in_the_matrix():
    """q, k, v and head of the untied network, for one row: the sum of the matrix and the product of the factors."""
    config = dataclasses.replace(NETWORKS["untied"], kernels="plain")
    params, (inputs, targets) = randoms(parameter_shapes(config), 0.3), tokens_and_targets()
    additions = additions_for(config, ("q", "k", "v", "head"))
    losses = jax.jit(partial(token_losses, config))
    found = losses(params, inputs, targets, POSITIONS, additions)
    for row in range(ROWS):
        merged = dict(params)
        for visit in make_plan(config):
            for kind in "qkv":
                pair = additions[addition_name(visit, kind)]
                merged[f"blocks/{visit.layer}/attn/{kind}_proj/kernel"] += pair.down[row] @ pair.up[row]
        merged["head/kernel"] += additions[HEAD].down[row] @ additions[HEAD].up[row]
        alone = losses(merged, inputs, targets, POSITIONS)
        np.testing.assert_allclose(found[row], alone[row], rtol=2e-5)


def test_additions_that_are_zero_change_nothing_and_those_left_out_add_nothing():
    config = dataclasses.replace(NETWORKS["untied"], num_layers=1, xsa_layers=(0,), value_embedding_layers=(0,))
    params, (inputs, targets) = randoms(parameter_shapes(config), 0.3), tokens_and_targets()
    additions = additions_for(config)
    zero = {name: LowRank(pair.down, jnp.zeros_like(pair.up)) for name, pair in additions.items()}
    losses = jax.jit(partial(token_losses, config))
    bare = losses(params, inputs, targets, POSITIONS)
    np.testing.assert_allclose(losses(params, inputs, targets, POSITIONS, zero), bare, rtol=1e-5)
    for kind in KINDS:
        own = {
            name: pair if name.split("/")[-1] == kind else LowRank(pair.down, jnp.zeros_like(pair.up))
            for name, pair in additions.items()
        }
        some = {name: pair for name, pair in own.items() if name.split("/")[-1] == kind}
        found = losses(params, inputs, targets, POSITIONS, own)
        np.testing.assert_allclose(found, losses(params, inputs, targets, POSITIONS, some), rtol=1e-5)
        assert np.abs(found - bare).max() > 1e-3


def test_every_run_of_a_layer_has_its_own():
    names = addition_names(LOOPED, KINDS)
    assert all(len(set(names[kind])) == len(make_plan(LOOPED)) == 5 for kind in KINDS if kind != HEAD)
    assert len(addition_names(LOOPED, ("q",), looped=False)["q"]) == 4


@pytest.mark.parametrize(("of_all_targets", "kinds"), [(False, KINDS), (False, KINDS[:-1]), (True, KINDS[:-1])])
@pytest.mark.parametrize("kernels", ["plain", "interpret"])
def test_weights_that_rest_get_no_gradient(kernels, of_all_targets, kinds):
    """No product over all positions has the shape of a kernel."""
    config = dataclasses.replace(LOOPED, kernels=kernels)
    params, (inputs, targets) = randoms(parameter_shapes(config), 0.3), tokens_and_targets()

    def loss_of(additions, params):
        if of_all_targets:
            return loss(config, params, inputs, inputs, additions)
        return jnp.sum(token_losses(config, params, inputs, targets, POSITIONS, additions))

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.outvars[0].aval.shape
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)

    kernel_shapes = {shape for path, shape in parameter_shapes(config).items() if path.endswith("kernel")}
    kernel_shapes.add((config.model_dim, config.vocab_size))  # of the head, which is tied

    def found(argument):
        jaxpr = jax.make_jaxpr(jax.grad(loss_of, argument))(additions_for(config, kinds), params)
        return kernel_shapes & {shape for shape in products(jaxpr.jaxpr) if len(shape) == 2}

    assert found(1), "the test sees gradients of kernels"
    assert not found(0)


def test_the_rotary_base_of_a_longer_context():
    """Rows that are cut short are rotated as the whole ones are, where the base depends on the length."""
    config = dataclasses.replace(NANO, rope_original_length=4, kernels="plain")
    params, (inputs, _) = randoms(parameter_shapes(config), 0.3), tokens_and_targets()

    @jax.jit
    def logits(params):
        whole, short = apply(config, params, inputs), inputs[:, :8]
        return whole, apply(config, params, short, rotary_length=LENGTH), apply(config, params, short)

    whole, cut, other = logits(params)
    np.testing.assert_allclose(cut, whole[:, :8], rtol=1e-4, atol=1e-4)
    assert np.abs(other - cut).max() > 1e-3
