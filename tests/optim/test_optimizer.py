"""Six full steps of the PyTorch reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jgolf.config import MuonConfig, OptimConfig
from jgolf.model.functional import loss
from jgolf.optim.optimizer import clip_by_global_norm, global_norm, make_optimizer
from tests.conftest import params_of, relative_distances

EMA_DECAY = 0.997


def six_steps(golden, model, arrays, dtype):
    # The golden run warms its momentum up over four steps.
    muon = MuonConfig(momentum_warmup_steps=4, newton_schulz_dtype=dtype)
    optimizer = make_optimizer(dataclasses.replace(OptimConfig(), muon=muon))
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


def test_adam_groups_match_a_numpy_derivation(tiny):
    matrix, head = "blocks/0/mlp/up_proj/kernel", "head/kernel"
    config = OptimConfig(grad_clip=0.0, matrices="adamw")
    params = {"embed/embedding": jnp.full((3, 2), 0.5), "smear/gate": jnp.full((2,), -1.0), matrix: jnp.ones((2, 3))}
    params[head] = jnp.full((2, 3), 0.25)
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    rng, adamw = np.random.default_rng(0), config.adamw
    rates = {
        "embed/embedding": adamw.token_learning_rate,
        "smear/gate": adamw.scalar_learning_rate,
        matrix: adamw.matrix_learning_rate,
        head: 0.008,
    }
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
            rate = 0.7 * rates[path]
            step = m / (1 - adamw.beta1**t) / (np.sqrt(v / (1 - adamw.beta2**t)) + adamw.epsilon)
            decay = 0.0 if path == head else adamw.weight_decay
            expected[path] = expected[path] * (1 - rate * decay) - rate * step
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, rtol=2e-5)


def test_a_model_without_a_head_has_no_state_for_one(tiny):
    """A run's state stays what it was before heads had a group of their own."""
    params = {
        "embed/embedding": jnp.ones((3, 2)),
        "smear/gate": jnp.ones(2),
        "blocks/0/mlp/up_proj/kernel": jnp.ones((2, 3)),
    }
    groups = [
        state.inner_states for state in make_optimizer(OptimConfig()).init(params) if hasattr(state, "inner_states")
    ]
    assert [set(group) for group in groups] == [{"muon", "adamw_token", "adamw_scalar"}]
