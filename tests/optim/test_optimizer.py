"""Six full steps of the PyTorch reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jgolf.config import AdamWConfig, MuonConfig, OptimConfig
from jgolf.model.functional import loss
from jgolf.optim.optimizer import UpdateRule, clip_by_global_norm, global_norm, make_optimizer, update_rule
from tests.conftest import RECIPE, params_of, relative_distances

EMA_DECAY = 0.997


def six_steps(golden, model, arrays, dtype):
    # The golden run warms its momentum up over four steps.
    muon = dataclasses.replace(RECIPE.optim.muon, momentum_warmup_steps=4, newton_schulz_dtype=dtype)
    optimizer = make_optimizer(dataclasses.replace(RECIPE.optim, muon=muon))
    params = params_of(np.load(golden / "tiny" / "model.npz"), "params/")
    state, ema = optimizer.init(params), params

    @jax.jit
    def step(params, state, ema, x, y, multiplier):
        value, grads = jax.value_and_grad(loss, argnums=1)(model, params, x, y)
        updates, state = optimizer.update(grads, state, params, learning_rate_multiplier=multiplier)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: EMA_DECAY * e + (1 - EMA_DECAY) * p, ema, params)
        return params, state, ema, value, global_norm(grads)

    for i, multiplier in enumerate(arrays["scales"]):
        params, state, ema, value, norm = step(params, state, ema, arrays[f"x{i}"], arrays[f"y{i}"], multiplier)
        yield params, ema, float(value), float(norm)


def test_float32_steps(golden, tiny):
    arrays = np.load(golden / "tiny" / "optimizer_f32.npz")
    results = list(six_steps(golden, tiny, arrays, "float32"))
    np.testing.assert_allclose([r[2] for r in results], arrays["losses"], rtol=2e-5)
    np.testing.assert_allclose([r[3] for r in results], arrays["grad_norms"], rtol=2e-4)
    assert max(relative_distances(results[0][0], params_of(arrays, "after1/")).values()) < 1e-4
    assert max(relative_distances(results[-1][0], params_of(arrays, "after6/")).values()) < 1e-4
    assert max(relative_distances(results[-1][1], params_of(arrays, "ema/")).values()) < 1e-4


def test_bfloat16_steps_within_the_type_s_error(golden, tiny):
    """The reference's own bfloat16 run departs from its float32 run; ours departs from it no further."""
    arrays = np.load(golden / "tiny" / "optimizer_bf16.npz")
    exact = np.load(golden / "tiny" / "optimizer_f32.npz")
    *_, (params, ema, value, _) = six_steps(golden, tiny, arrays, "bfloat16")
    for found, prefix in ((params, "after6/"), (ema, "ema/")):
        allowed = relative_distances(params_of(arrays, prefix), params_of(exact, prefix))
        distances = relative_distances(found, params_of(arrays, prefix))
        assert max(distances.values()) < 1.5 * max(allowed.values())
    np.testing.assert_allclose(value, arrays["losses"][-1], rtol=1e-3)


@pytest.mark.parametrize("max_norm", [0.0, 0.3, 100.0])
def test_clipping_is_pytorch_s(max_norm):
    grads = {"a": jnp.arange(4.0), "b": jnp.full((2, 2), -3.0)}
    norm = np.sqrt(0 + 1 + 4 + 9 + 4 * 9)
    factor = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    clipped, _ = clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    np.testing.assert_allclose(clipped["a"], factor * np.arange(4.0), rtol=1e-6)


def test_adamw_groups_match_a_numpy_derivation():
    """Every group's learning rate and weight decay, and the multipliers of a parameter's own."""
    matrix = "blocks/0/mlp/up_proj/kernel"
    adamw = dataclasses.replace(
        RECIPE.optim.adamw,
        scalar_learning_rate=0.02,
        head_learning_rate=0.01,
        token_weight_decay=0.3,
        scalar_weight_decay=0.2,
        head_weight_decay=0.5,
        matrix_weight_decay=0.4,
    )
    settings = {
        "embed/embedding": (adamw.token_learning_rate, 0.3),
        "smear/gate": (0.02 * 0.5, 0.2 * 3.0),
        "skip_weights": (0.02, 0.2),
        "head/kernel": (0.01, 0.5),
        matrix: (adamw.matrix_learning_rate, 0.4),
    }

    def rule(path):
        return update_rule(path)._replace(learning_rate=0.5, weight_decay=3.0) if "gate" in path else update_rule(path)

    config = dataclasses.replace(RECIPE.optim, adamw=adamw, grad_clip=0.0, matrices="adamw")
    optimizer = make_optimizer(config, rule=rule)
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.normal(size=(3, 2)), jnp.float32) for path in settings}
    state = optimizer.init(params)
    expected = {path: np.asarray(value, np.float64) for path, value in params.items()}
    moments = {path: (np.zeros_like(v), np.zeros_like(v)) for path, v in expected.items()}
    for t in range(1, 5):
        grads = {path: rng.normal(size=value.shape) for path, value in expected.items()}
        updates, state = optimizer.update(
            jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads), state, params, learning_rate_multiplier=0.7
        )
        params = optax.apply_updates(params, updates)
        for path, g in grads.items():
            m = adamw.beta1 * moments[path][0] + (1 - adamw.beta1) * g
            v = adamw.beta2 * moments[path][1] + (1 - adamw.beta2) * g**2
            moments[path] = m, v
            rate, weight_decay = 0.7 * settings[path][0], settings[path][1]
            step = m / (1 - adamw.beta1**t) / (np.sqrt(v / (1 - adamw.beta2**t)) + adamw.epsilon)
            expected[path] = expected[path] * (1 - rate * weight_decay) - rate * step
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, rtol=2e-5, atol=1e-6)


def test_multipliers_of_a_matrix_s_own():
    """With its multipliers a matrix takes the step of a group of that learning rate and weight decay."""
    rng = np.random.default_rng(0)
    path = "blocks/0/mlp/up_proj/kernel"
    params, grads = ({path: jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)} for _ in range(2))

    def updated(muon, rule):
        optimizer = make_optimizer(dataclasses.replace(RECIPE.optim, muon=muon), rule=rule)
        return optimizer.update(grads, optimizer.init(params), params)[0][path]

    found = updated(RECIPE.optim.muon, lambda path: UpdateRule("muon", 0.5, 3.0))
    expected = updated(dataclasses.replace(RECIPE.optim.muon, learning_rate=0.0125, weight_decay=0.12), update_rule)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_record_s_adamw_step(golden):
    """One step of its two AdamW groups, from the mean of two ranks' clipped gradients."""
    arrays, start = np.load(golden / "pr1855" / "two_ranks.npz"), np.load(golden / "pr1855" / "model.npz")
    names = [name.removeprefix("mean_grad/") for name in arrays if name.startswith("mean_grad/")]
    params = {name: jnp.asarray(start[f"params/{name}"]) for name in names}
    grads = {name: jnp.asarray(arrays[f"mean_grad/{name}"]) for name in names}
    adamw = dataclasses.replace(
        RECIPE.optim.adamw,
        token_learning_rate=0.03,
        token_weight_decay=0.085,
        scalar_learning_rate=0.02,
        scalar_weight_decay=0.02,
        beta2=0.99,
    )
    optimizer = make_optimizer(
        dataclasses.replace(RECIPE.optim, adamw=adamw, clip="rank"),
        rule=lambda name: UpdateRule("adamw_token" if name == "tok_emb.weight" else "adamw_scalar"),
    )
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    found = optax.apply_updates(params, updates)
    for name in names:
        expected = arrays[f"after1/{name}"]
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
        moved, wanted = found[name] - params[name], expected - params[name]
        assert np.linalg.norm(moved - wanted) < 2e-3 * np.linalg.norm(wanted)


def test_bfloat16_parameters_are_skipped_where_gradients_are_not_finite():
    params = {path: jnp.ones((2, 2), jnp.bfloat16) for path in ("embed/embedding", "blocks/0/attn/q_proj/kernel")}
    guarded = optax.apply_if_finite(make_optimizer(RECIPE.optim), 3)
    update = jax.jit(guarded.update)
    state = guarded.init(params)
    updates, state = update(params, state, params, learning_rate_multiplier=jnp.float32(0.5))
    assert all(value.dtype == jnp.bfloat16 and value.all() for value in updates.values())
    updates, _ = update({path: p * jnp.nan for path, p in params.items()}, state, params, learning_rate_multiplier=1.0)
    assert not any(value.any() for value in updates.values())


def test_the_state_s_layout_is_that_of_earlier_checkpoints():
    """Orbax restores a checkpoint into a state of the same paths and numbers of parts only."""
    params = {path: jnp.ones((2, 2)) for path in ("embed/embedding", "blocks/0/attn/q_proj/kernel", "skip_weights")}
    for muon in (
        RECIPE.optim.muon,
        dataclasses.replace(RECIPE.optim.muon, row_normalization=True, newton_schulz_coefficients="polar_express"),
    ):
        clipping, partitioned, multiplier = make_optimizer(dataclasses.replace(RECIPE.optim, muon=muon)).init(params)
        assert clipping == multiplier == optax.EmptyState()
        groups = partitioned.inner_states
        assert groups.keys() == {"muon", "adamw_token", "adamw_scalar"}
        for group, fields in (("muon", {"count", "momentum"}), ("adamw_token", {"count", "mu", "nu"})):
            direction, *rest = groups[group].inner_state
            assert direction._asdict().keys() == fields
            assert rest == [optax.EmptyState()] * 2


def test_levers_match_a_numpy_derivation():
    """NorMuon, look-ahead and cautious decay in the whole update; without iterations a direction is g / ‖g‖."""
    matrix, vector = "blocks/0/mlp/up_proj/kernel", "skip_weights"
    muon = MuonConfig(
        learning_rate=0.1, momentum=0.0, weight_decay=0.5, newton_schulz_steps=0, newton_schulz_dtype="float32",
        neuron_normalization=True, neuron_decay=0.9, look_ahead=0.4, look_ahead_decay=0.8,
    )  # fmt: skip
    adamw = AdamWConfig(scalar_learning_rate=0.1, scalar_weight_decay=0.3, beta1=0.0, beta2=0.0, epsilon=0.0)
    optimizer = make_optimizer(OptimConfig(muon, adamw, matrices="muon", cautious_decay=True))
    rng = np.random.default_rng(0)
    x = {matrix: rng.normal(size=(4, 6)), vector: rng.normal(size=5)}
    params = {path: jnp.asarray(value, jnp.float32) for path, value in x.items()}
    state, mean, squares = optimizer.init(params), x[matrix], np.zeros(6)
    for multiplier in (1.0, 1.0, 0.5, 0.2):
        grads = {path: rng.normal(size=value.shape) for path, value in x.items()}
        updates, state = jax.jit(optimizer.update)(
            {path: jnp.asarray(g, jnp.float32) for path, g in grads.items()}, state, params,
            learning_rate_multiplier=multiplier,
        )  # fmt: skip
        params = optax.apply_updates(params, updates)

        ahead = x[matrix] + 0.4 * (x[matrix] - mean)
        u = grads[matrix] / np.linalg.norm(grads[matrix])
        squares = 0.9 * squares + 0.1 * np.mean(u**2, axis=0)
        u = u / np.sqrt(squares) / np.linalg.norm(u / np.sqrt(squares)) * (6 / 4) ** 0.5
        x[matrix] = x[matrix] - 0.1 * multiplier * (u + 0.5 * ahead * (u * ahead >= 0))
        mean = 0.8 * mean + 0.2 * x[matrix]
        u = np.sign(grads[vector])
        x[vector] = x[vector] - 0.1 * multiplier * (u + 0.3 * x[vector] * (u * x[vector] >= 0))
        np.testing.assert_allclose(params[matrix], x[matrix] + 0.4 * (x[matrix] - mean), atol=2e-6)
        np.testing.assert_allclose(params[vector], x[vector], atol=2e-6)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(make_optimizer(RECIPE.optim).init(params))) + 2


def test_adamw_has_no_look_ahead():
    params = {"blocks/0/mlp/up_proj/kernel": jnp.ones((4, 6))}
    with_it = OptimConfig(MuonConfig(look_ahead=0.3, neuron_normalization=True), matrices="adamw")
    assert jax.tree.structure(make_optimizer(with_it).init(params)) == jax.tree.structure(
        make_optimizer(OptimConfig()).init(params)
    )
