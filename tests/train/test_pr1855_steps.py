"""The training of pull request #1855 against its own training function, in float32: batches, schedule, optimizers."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.config import validate
from jgolf.data.batches import BatchOrder
from jgolf.data.shards import TokenStream, find_shards
from jgolf.model.functional import Params, loss
from jgolf.optim.optimizer import make_optimizer
from jgolf.train.rank_clip import mean_of_clipped_ranks
from jgolf.train.step import init_state, train_step
from tests.conftest import params_of, relative_distances
from tests.pr1855 import CONFIG, FOLDER, MODEL, SETTINGS

PARAMETER_TOLERANCE, UPDATE_TOLERANCE = 1e-4, 2e-3
LOSS_TOLERANCE, NORM_TOLERANCE = 2e-5, 1e-5


@pytest.fixture(scope="module")
def start() -> Params:
    return params_of(np.load(FOLDER / "model.npz"), "params/")


@pytest.fixture(scope="module")
def stream() -> TokenStream:
    return TokenStream(find_shards(FOLDER / "train", "train"))


def moved(params: Params, start: Params) -> Params:
    return {path: params[path] - start[path] for path in start}


def test_five_steps(start, stream):
    golden = np.load(FOLDER / "optimizer_f32.npz")
    config = validate(CONFIG)
    order = BatchOrder.from_config(config.train)
    step = jax.jit(partial(train_step, config))
    state = init_state(config, start)
    for number in range(SETTINGS["iterations"]):
        inputs, targets = (array.reshape(2, 1, 128).astype(np.int32) for array in order.batch(stream, number))
        np.testing.assert_array_equal(inputs[:, 0], golden["x"][number])
        np.testing.assert_array_equal(targets[:, 0], golden["y"][number])
        state, metrics = step(state, inputs, targets)
        np.testing.assert_allclose(metrics.loss, golden["losses"][number].mean(), rtol=LOSS_TOLERANCE)
        np.testing.assert_allclose(metrics.grad_norm, golden["grad_norms"][number], rtol=NORM_TOLERANCE)
        np.testing.assert_allclose(metrics.learning_rate_multiplier, golden["scales"][number], rtol=1e-6)
        np.testing.assert_allclose(metrics.muon_momentum, golden["momenta"][number], rtol=1e-6)
        assert bool(metrics.looped) == bool(golden["looping"][number])
        if f"after{number + 1}/qo_bank" in golden:
            expected = params_of(golden, f"after{number + 1}/")
            distances = relative_distances(state.params, expected)
            assert max(distances.values()) < PARAMETER_TOLERANCE, distances
            updates = relative_distances(moved(state.params, start), moved(expected, start))
            assert max(updates.values()) < UPDATE_TOLERANCE, updates
    average = relative_distances(moved(state.ema, start), moved(params_of(golden, "ema/"), start))
    assert max(average.values()) < UPDATE_TOLERANCE, average


def test_two_ranks_that_clip_before_their_mean(start, stream):
    """The second rank's loss counts fourfold, so that it alone is clipped as much."""
    golden = np.load(FOLDER / "two_ranks.npz")
    train = dataclasses.replace(CONFIG.train, num_ranks=2, accumulation=1)
    inputs, targets = (array[:, :, 0].astype(np.int32) for array in BatchOrder.from_config(train).batch(stream, 0))
    for rank in range(2):
        np.testing.assert_array_equal(inputs[0, rank], golden[f"x{rank}"].ravel())
        np.testing.assert_array_equal(targets[0, rank], golden[f"y{rank}"].ravel())

    def loss_and_grads(params, inputs, targets):
        """Of micro-steps of one rank each, [1, 1, tokens]."""
        weight = jnp.where(jnp.all(inputs == golden["x1"].ravel()), 4.0, 1.0)
        of_rank = partial(loss, MODEL, inputs=inputs[0], targets=targets[0], piece_length=train.piece_length)
        return jax.value_and_grad(lambda params: weight * of_rank(params))(params)

    def one(params, inputs, targets):
        value, grads, norm = mean_of_clipped_ranks(
            loss_and_grads, params, inputs, targets, CONFIG.optim.grad_clip, num_ranks=2, accumulation=1
        )
        optim = dataclasses.replace(CONFIG.optim, muon=dataclasses.replace(CONFIG.optim.muon, momentum_warmup_steps=0))
        optimizer = make_optimizer(optim)
        updates, _ = optimizer.update(grads, optimizer.init(params), params, learning_rate_multiplier=1.0)
        return value, grads, norm, jax.tree.map(jnp.add, params, updates)

    value, grads, norm, after = jax.jit(one)(start, inputs, targets)
    np.testing.assert_allclose(value, (golden["loss0"] + 4 * golden["loss1"]) / 2, rtol=LOSS_TOLERANCE)
    np.testing.assert_allclose(norm, (golden["grad_norm0"] + golden["grad_norm1"]) / 2, rtol=NORM_TOLERANCE)
    expected = params_of(golden, "mean_grad/")
    distances = relative_distances({path: grads[path] for path in expected}, expected)
    assert max(distances.values()) < 2e-4, distances
    total = np.sqrt(sum(float(jnp.sum(grad**2)) for grad in grads.values()))
    np.testing.assert_allclose(total, golden["mean_grad_norm"], rtol=NORM_TOLERANCE)
    expected = params_of(golden, "after1/")
    expected["blocks/0/attn/q_proj/kernel"] = golden["after1_qo_bank0"].T
    expected["blocks/0/mlp/up_proj/kernel"] = golden["after1_mlp_up_bank0"].T
    found = {path: after[path] for path in expected}
    assert max(relative_distances(found, expected).values()) < PARAMETER_TOLERANCE
    before = {path: start[path] for path in expected}
    assert max(relative_distances(moved(found, before), moved(expected, before)).values()) < UPDATE_TOLERANCE
