"""One training step as a pure function: state and tokens in, state and metrics out."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, SingleDeviceSharding
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jgolf.config import Config, ModelConfig, TrainConfig
from jgolf.model.functional import Params, loss
from jgolf.model.initial import init
from jgolf.optim.optimizer import global_norm, make_optimizer
from jgolf.optim.schedule import ema_decay, fraction, is_on, learning_rate_multiplier, loop_is_on, momentum_schedule
from jgolf.quantize.fake import fake_quantize
from jgolf.train.exchange import Sums, is_beside, means_of, no_sums, summed_in_backward
from jgolf.train.rank_clip import mean_of_clipped_ranks


class TrainState(NamedTuple):
    """All that a run is, but for the clock; a checkpoint is this and the clock.

    An average that is switched off is an empty dictionary.
    """

    step: Int[Array, ""]
    """Finished steps."""
    params: Params
    opt_state: optax.OptState
    ema: Params
    swa_sum: Params
    swa_count: Int[Array, ""]
    """Parameter sets in `swa_sum`."""


class StepMetrics(NamedTuple):
    """What one step reports, scalars that are the same on every device."""

    step: Int[Array, ""]
    """Finished steps, this one included."""
    loss: Float[Array, ""]
    """Mean negative log likelihood in nats, of the weights that were trained on."""
    grad_norm: Float[Array, ""]
    """Global norm of the gradients before clipping; where ranks are clipped, the mean of theirs."""
    learning_rate_multiplier: Float[Array, ""]
    muon_momentum: Float[Array, ""]
    late_qat: Int[Array, ""]
    """1 where the step trained on quantized weights."""
    looped: Int[Array, ""]
    """1 where the step ran the loop's layers more than once."""
    swa_count: Int[Array, ""]


def init_state(config: Config, params: Params) -> TrainState:
    """The state of a run that starts from `params`."""
    average = config.average
    # With a type of their own, not a weak one: after a step, or from a file, they would be other programs' arguments.
    params = {path: jnp.array(value, value.dtype) for path, value in params.items()}
    copy = {path: jnp.array(value) for path, value in params.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config.optim).init(params),
        ema=copy if average.keeps_ema else {},
        swa_sum=jax.tree.map(jnp.zeros_like, params) if average.swa_start else {},
        swa_count=jnp.zeros((), jnp.int32),
    )


def new_state(config: Config, key: PRNGKeyArray) -> TrainState:
    """The state of a run that starts from random parameters."""
    return init_state(config, init(config.model, key))


def abstract_state(config: Config, sharding: NamedSharding | SingleDeviceSharding) -> TrainState:
    """Shapes of a run's state, each to be placed by `sharding`."""
    # Only the shapes matter: a drawn-out orthogonal start would be traced for nothing.
    model = dataclasses.replace(config.model, orthogonal_init=False)
    config = dataclasses.replace(config, model=model)
    shapes = jax.eval_shape(lambda: new_state(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def of_loss(train: TrainConfig) -> dict[str, bool | int]:
    """What the settings of training say of the loss, as arguments of `jgolf.model.functional.loss`."""
    return {"piece_length": train.piece_length, "fp8": train.fp8}


def mean_loss_and_grads(
    model: ModelConfig,
    params: Params,
    inputs: Int[Array, "A B T"],
    targets: Int[Array, "A B T"],
    looped: Bool[Array, ""] | bool = True,
    axis_name: str | None = None,
    **how: bool | int,
) -> tuple[Float[Array, ""], Params]:
    """Loss and gradients averaged over A micro-batches, one at a time.

    Args:
      model: the network.
      params: where the gradients are taken.
      inputs: token ids.
      targets: the next token at every position.
      looped: see `jgolf.model.functional`, as for the rest.
      axis_name: mesh axis that both are averaged over, too, inside `shard_map`; None for one device. A single
        micro-batch's gradients are exchanged beside its backward pass, those of several after the last.
      how: further arguments of the loss.
    """
    beside = axis_name is not None and is_beside(len(inputs), jax.lax.axis_size(axis_name))

    def loss_at(looped: bool, at: Params | Sums, *tokens: Int[Array, "B T"]) -> Float[Array, ""]:
        weights = summed_in_backward(params, at, axis_name) if beside else at
        return loss(model, weights, *tokens, looped=looped, **how)

    def value_and_grad(
        at: Params | Sums, x: Int[Array, "B T"], y: Int[Array, "B T"]
    ) -> tuple[Float[Array, ""], Params | Sums]:
        def of(looped: bool):
            return jax.value_and_grad(partial(loss_at, looped))

        if not model.loop_layers or isinstance(looped, bool):
            return of(looped is not False)(at, x, y)
        # Outside of the gradient: inside, either way would keep what both need.
        return jax.lax.cond(looped, of(True), of(False), at, x, y)

    if beside:
        value, sums = value_and_grad(no_sums(params), inputs[0], targets[0])
        return jax.lax.pmean(value, axis_name), means_of(sums, params, axis_name)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, value_and_grad(params, *micro_batch)), None

    if len(inputs) == 1:
        mean = value_and_grad(params, inputs[0], targets[0])
    else:
        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        total, _ = jax.lax.scan(add, zeros, (inputs, targets))
        mean = jax.tree.map(lambda value: value / len(inputs), total)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def train_step(
    config: Config,
    state: TrainState,
    inputs: Int[Array, "A B T"],
    targets: Int[Array, "A B T"],
    elapsed_s: Float[Array, ""] | float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Trains on A micro-batches of B sequences.

    Everything that depends on the schedule (learning rate, loop, late QAT, SWA) is decided in here, from the
    step and the clock's reading; the numbers that `jgolf.sweep.grid.TRACEABLE` names may be
    traced values.

    Args:
      config: the run.
      state: parameters, optimizer state and averages.
      inputs: token ids; on several devices, this device's share.
      targets: the next token at every position.
      elapsed_s: training time so far in seconds, the same on every device; used under a time cap.
      axis_name: mesh axis that gradients are averaged over, inside `shard_map`; None on one device.
    """
    average, quantize = config.average, config.quantize
    multiplier = learning_rate_multiplier(config.train, state.step, elapsed_s)
    looped = loop_is_on(fraction(config.train, state.step, elapsed_s), config.train.loop_start_fraction)

    # Rounding the weights costs little beside the step, so both are computed and one is taken: a step with late QAT is
    # the same program as the one before it began. The gradient at the rounded weights is the straight-through gradient
    # of the weights.
    late_qat, weights = multiplier < quantize.late_qat_start, state.params
    if is_on(quantize.late_qat_start):
        rounded = fake_quantize(weights, quantize)
        weights = {path: jnp.where(late_qat, rounded[path], value) for path, value in weights.items()}
    loss_and_grads = partial(mean_loss_and_grads, config.model, looped=looped, **of_loss(config.train))
    if config.optim.clip == "rank":
        ranks = config.train.num_ranks, config.train.accumulation
        value, grads, norm = mean_of_clipped_ranks(
            loss_and_grads, weights, inputs, targets, config.optim.grad_clip, *ranks, axis_name
        )
    else:
        value, grads = loss_and_grads(weights, inputs, targets, axis_name=axis_name)
        norm = global_norm(grads)

    updates, opt_state = make_optimizer(config.optim, axis_name).update(
        grads, state.opt_state, state.params, learning_rate_multiplier=multiplier
    )
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    decay = ema_decay(average, step)
    ema = {path: decay * value + (1 - decay) * params[path] for path, value in state.ema.items()}
    take = (multiplier < average.swa_start) & (step % average.swa_every == 0)
    swa_sum = {path: value + jnp.where(take, params[path], 0.0) for path, value in state.swa_sum.items()}
    swa_count = state.swa_count + take

    metrics = StepMetrics(
        step=step,
        loss=value,
        grad_norm=norm,
        learning_rate_multiplier=multiplier,
        muon_momentum=momentum_schedule(config.optim.muon)(state.step),
        late_qat=late_qat.astype(jnp.int32),
        looped=(looped & bool(config.model.loop_layers)).astype(jnp.int32),
        swa_count=swa_count,
    )
    return TrainState(step, params, opt_state, ema, swa_sum, swa_count), metrics
