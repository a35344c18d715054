import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.errors import ConfigError
from jgolf.model.functional import loss
from jgolf.model.initial import init
from jgolf.optim.optimizer import make_optimizer
from jgolf.quantize.fake import fake_quantize
from jgolf.train.averages import averaged_params
from jgolf.train.step import init_state, train_step
from tests.conftest import RECIPE, SHALLOW

STEPS = 12


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(
        RECIPE,
        model=SHALLOW,
        optim=dataclasses.replace(
            RECIPE.optim,
            muon=dataclasses.replace(RECIPE.optim.muon, newton_schulz_dtype="float32", newton_schulz_steps=2),
        ),
        train=dataclasses.replace(
            RECIPE.train, steps=STEPS, warmdown_steps=10, time_cap_s=0.0, batch_tokens=128, seq_len=32, num_ranks=1
        ),
        average=dataclasses.replace(RECIPE.average, swa_start=0.5, swa_every=2),
        quantize=dataclasses.replace(RECIPE.quantize, late_qat_start=0.35),
    )


@pytest.fixture(scope="module")
def step(config):
    return jax.jit(partial(train_step, config))


@pytest.fixture(scope="module")
def history(config, step):
    """Every state and metrics of a short run, the first state included, and the batches."""
    rng = np.random.default_rng(0)
    batches = rng.integers(0, config.model.vocab_size, (STEPS, 2, 1, 4, 32))
    params = jax.jit(partial(init, config.model))(jax.random.key(0))
    state = init_state(config, params)
    states, metrics = [state], []
    for inputs, targets in batches:
        state, found = step(state, inputs, targets)
        states.append(state)
        metrics.append(jax.device_get(found))
    return states, metrics, batches


def test_schedule_reaches_the_step(history):
    _, metrics, _ = history
    expected = [1.0, 1.0] + [1 - i / 10 for i in range(10)]
    np.testing.assert_allclose([m.learning_rate_multiplier for m in metrics], expected, rtol=1e-5)
    assert [int(m.step) for m in metrics] == list(range(1, STEPS + 1))


def test_late_qat_trains_on_the_rounded_weights(history, config):
    """Below the multiplier, the step's loss is that of the rounded weights; before, of the weights."""
    states, metrics, batches = history
    forward = jax.jit(partial(loss, config.model))
    for index, (inputs, targets) in enumerate(batches):
        params = states[index].params
        late = metrics[index].learning_rate_multiplier < 0.35
        assert bool(metrics[index].late_qat) == late
        plain = float(forward(params, inputs[0], targets[0]))
        rounded = float(forward(fake_quantize(params, config.quantize), inputs[0], targets[0]))
        assert metrics[index].loss == pytest.approx(rounded if late else plain, rel=1e-5)
    assert [bool(m.late_qat) for m in metrics].count(True) == 3
    assert abs(plain - rounded) > 1e-3  # rounding changes the loss by more than the comparison's tolerance


def test_without_late_qat_nothing_is_rounded(history, config):
    states, _, batches = history
    without = dataclasses.replace(config, quantize=dataclasses.replace(config.quantize, late_qat_start=0.0))
    programs = [jax.make_jaxpr(partial(train_step, one))(states[0], *batches[0]) for one in (config, without)]
    assert [" round[" in str(program) for program in programs] == [True, False]


def test_gradients_pass_straight_through(history, config):
    """A late step's gradient norm is that of the loss at the rounded weights."""
    states, metrics, batches = history
    inputs, targets = batches[-1]
    rounded = fake_quantize(states[-2].params, config.quantize)
    grads = jax.jit(jax.grad(partial(loss, config.model)))(rounded, inputs[0], targets[0])
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in grads.values()))
    assert metrics[-1].grad_norm == pytest.approx(norm, rel=1e-4)


def test_averages_follow_their_formulas(history):
    states, metrics, _ = history
    path = "blocks/0/mlp/up_proj/kernel"
    ema = np.asarray(states[0].params[path], np.float64)
    taken = []
    for state, found in zip(states[1:], metrics, strict=True):
        ema = 0.997 * ema + 0.003 * np.asarray(state.params[path], np.float64)
        if found.learning_rate_multiplier < 0.5 and state.step % 2 == 0:
            taken.append(np.asarray(state.params[path], np.float64))
    # After steps 8, 10 and 12 the multiplier had been 0.5, 0.3 and 0.1.
    assert len(taken) == 2 == int(states[-1].swa_count)
    swa = np.mean(taken, axis=0)
    np.testing.assert_allclose(averaged_params(states[-1], "ema")[path], ema, atol=1e-6)
    np.testing.assert_allclose(averaged_params(states[-1], "swa")[path], swa, atol=1e-6)
    np.testing.assert_allclose(averaged_params(states[-1], "ema+swa")[path], (ema + swa) / 2, atol=1e-6)
    np.testing.assert_array_equal(averaged_params(states[-1], "raw")[path], states[-1].params[path])


def test_missing_averages_are_named(history, config):
    states, _, _ = history
    with pytest.raises(ConfigError, match="no parameters were summed up to step 0"):
        averaged_params(states[0], "swa")
    off = dataclasses.replace(
        config, average=dataclasses.replace(RECIPE.average, ema_decay=0.0, swa_start=0.0, export="raw")
    )
    with pytest.raises(ConfigError, match=r"average\.ema_decay and average\.ema_share are 0"):
        averaged_params(init_state(off, states[0].params), "ema")


def test_accumulation_equals_one_large_batch(history, step):
    states, _, batches = history
    inputs, targets = batches[0]
    whole, whole_metrics = step(states[0], inputs, targets)
    parts, parts_metrics = step(states[0], inputs.reshape(4, 1, 32), targets.reshape(4, 1, 32))
    assert parts_metrics.loss == pytest.approx(float(whole_metrics.loss), rel=1e-6)
    assert parts_metrics.grad_norm == pytest.approx(float(whole_metrics.grad_norm), rel=1e-5)
    for path, value in whole.params.items():
        np.testing.assert_allclose(parts.params[path], value, atol=2e-5)


def test_ranks_are_clipped_before_their_mean(history, config):
    """Each half of the batch is a rank: the optimizer gets the mean of their clipped gradients."""
    states, _, batches = history
    inputs, targets = batches[0]
    optim = dataclasses.replace(config.optim, clip="rank", grad_clip=0.5)
    ranked = dataclasses.replace(config, optim=optim, train=dataclasses.replace(config.train, num_ranks=2))
    found, metrics = jax.jit(partial(train_step, ranked))(states[0], inputs, targets)

    grad = jax.jit(jax.grad(partial(loss, config.model)))
    of_ranks = [grad(states[0].params, inputs[0, rows], targets[0, rows]) for rows in (slice(0, 2), slice(2, 4))]
    norms = [np.sqrt(sum(float(jnp.sum(g**2)) for g in grads.values())) for grads in of_ranks]
    factors = [min(1.0, 0.5 / (norm + 1e-6)) for norm in norms]
    mean = {path: (factors[0] * of_ranks[0][path] + factors[1] * of_ranks[1][path]) / 2 for path in of_ranks[0]}
    updates, _ = make_optimizer(dataclasses.replace(optim, grad_clip=0.0)).update(
        mean, states[0].opt_state, states[0].params
    )
    assert max(factors) < 1.0 and metrics.grad_norm == pytest.approx(np.mean(norms), rel=1e-5)
    for path, value in found.params.items():
        np.testing.assert_allclose(value, states[0].params[path] + updates[path], atol=2e-5)


def test_numbers_of_the_config_may_be_traced(history, config):
    """What a sweep relies on: one program, run with different learning rates at once."""
    states, _, batches = history
    inputs, targets = batches[0]

    def step(learning_rate):
        muon = dataclasses.replace(config.optim.muon, learning_rate=learning_rate)
        traced = dataclasses.replace(config, optim=dataclasses.replace(config.optim, muon=muon))
        return train_step(traced, states[0], inputs, targets)[0].params

    path = "blocks/0/attn/q_proj/kernel"
    rates = jnp.array([0.0, 0.025])
    found = jax.jit(jax.vmap(step))(rates)[path]
    np.testing.assert_allclose(found[0], states[0].params[path], atol=1e-7)
    np.testing.assert_allclose(found[1], states[1].params[path], atol=1e-5)
