"""Late QAT acts: on the loss of the step where it sets in, and on what quantization costs in the end."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model.functional import loss
from jgolf.quantize.export import quantize
from jgolf.quantize.fake import fake_quantize
from jgolf.quantize.stored import dequantize
from jgolf.train.step import new_state, train_step
from tests.conftest import RECIPE

VOCABULARY, SEQUENCE, BATCH = 64, 64, 16
CONFIG = dataclasses.replace(
    RECIPE,
    name="late",
    model=dataclasses.replace(
        RECIPE.model,
        vocab_size=VOCABULARY,
        num_layers=1,
        model_dim=64,
        num_heads=2,
        num_kv_heads=1,
        bigram_buckets=0,
        value_embedding_layers=(),
        xsa_layers=(),
        orthogonal_init=False,
        compute_dtype="float32",
    ),
    optim=dataclasses.replace(
        RECIPE.optim,
        muon=dataclasses.replace(
            RECIPE.optim.muon, momentum=0.9, momentum_warmup_steps=0, newton_schulz_dtype="float32"
        ),
    ),
    train=dataclasses.replace(
        RECIPE.train,
        steps=300,
        time_cap_s=0.0,
        warmdown_steps=200,
        batch_tokens=BATCH * SEQUENCE,
        seq_len=SEQUENCE,
        num_ranks=1,
    ),
    quantize=dataclasses.replace(RECIPE.quantize, small_size=0),
)


@cache
def sequences(count, seed):
    """A random language: the next token follows from the last two, with some noise."""
    rng = np.random.default_rng(0)
    follows = rng.permuted(np.tile(np.arange(VOCABULARY), (VOCABULARY, 1)), axis=1)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (count, SEQUENCE + 1))
    for position in range(2, SEQUENCE + 1):
        known = rng.random(count) < 0.9
        expected = follows[tokens[:, position - 1], tokens[:, position - 2] % 8]
        tokens[:, position] = np.where(known, expected, tokens[:, position])
    return tokens.astype(np.int32)


def batch(seed):
    tokens = jnp.asarray(sequences(BATCH, seed))[None]
    return tokens[..., :-1], tokens[..., 1:]


@jax.jit
def step(state, inputs, targets, late_qat_start):
    config = dataclasses.replace(CONFIG, quantize=dataclasses.replace(CONFIG.quantize, late_qat_start=late_qat_start))
    return train_step(config, state, inputs, targets)


def test_the_step_past_the_threshold_has_the_loss_of_the_rounded_weights():
    state = jax.jit(partial(new_state, CONFIG))(jax.random.key(0))
    noise = np.random.default_rng(3).normal
    params = {path: value + 0.1 * noise(size=value.shape).astype(np.float32) for path, value in state.params.items()}
    state = state._replace(params=params)
    inputs, targets = batch(1)
    forward = jax.jit(partial(loss, CONFIG.model))
    plain = float(forward(params, inputs[0], targets[0]))
    rounded = float(forward(fake_quantize(params, CONFIG.quantize), inputs[0], targets[0]))
    assert abs(plain - rounded) > 1e-3
    # The multiplier is (300 − step) / 200.
    for finished, expected_loss, late_qat in ((269, plain, 0), (271, rounded, 1)):
        _, metrics = step(state._replace(step=jnp.int32(finished)), inputs, targets, jnp.float32(0.15))
        assert int(metrics.late_qat) == late_qat
        assert float(metrics.loss) == pytest.approx(expected_loss, abs=1e-5)
    _, metrics = step(state._replace(step=jnp.int32(299)), inputs, targets, jnp.float32(0.0))
    assert int(metrics.late_qat) == 0 and float(metrics.loss) == pytest.approx(plain, abs=1e-5)


def quantization_gap(late_qat_start):
    """Nats that the export's rounding adds to the loss of a trained model on sequences that it has not seen."""
    state = new_state(CONFIG, jax.random.key(0))
    for seed in range(CONFIG.train.steps):
        state, _ = step(state, *batch(seed), jnp.float32(late_qat_start))
    held_out = jnp.asarray(sequences(64, 10_000))
    restored = dequantize(quantize({path: np.asarray(value) for path, value in state.params.items()}, CONFIG.quantize))
    before, after = (
        float(loss(CONFIG.model, params, held_out[:, :-1], held_out[:, 1:])) for params in (state.params, restored)
    )
    assert before < 0.6 * np.log(VOCABULARY)  # it has learnt something
    return after - before


@pytest.mark.slow
def test_training_on_rounded_weights_shrinks_the_quantization_gap():
    off, on = quantization_gap(0.0), quantization_gap(0.5)
    print(f"quantization gap without late QAT {off:.4f} nats, with it {on:.4f}")
    assert off > 0.01 and on < 0.5 * off
