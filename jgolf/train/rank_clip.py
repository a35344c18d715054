"""Gradients clipped rank by rank before they are averaged, whatever the number of devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jgolf.errors import ConfigError
from jgolf.model.functional import Params
from jgolf.optim.optimizer import clipped

LossAndGrads = Callable[[Params, Int[Array, "A B T"], Int[Array, "A B T"]], tuple[Float[Array, ""], Params]]


class Clipped(NamedTuple):
    """A mean loss and its gradients, clipped."""

    loss: Float[Array, ""]
    grads: Params
    norm: Float[Array, ""]
    """Of the gradients before clipping; the mean of norms where several were clipped."""


def mean_of_clipped_ranks(
    loss_and_grads: LossAndGrads,
    params: Params,
    inputs: Int[Array, "A B T"],
    targets: Int[Array, "A B T"],
    max_norm: float,
    num_ranks: int,
    accumulation: int,
    axis_name: str | None = None,
) -> Clipped:
    """The mean over ranks of each one's gradients, clipped to `max_norm`; the same on every device.

    The rows of a step, as `jgolf.train.mesh.device_batch_order` lays them out, are those of `accumulation`
    micro-steps of `num_ranks` ranks: what belongs to a rank does not depend on the devices.

    What it costs over one clip of the mean: where a device has whole ranks, the norm of each and a second
    sum of gradients in memory, and of what is exchanged nothing. Where a rank has several whole devices, a
    second all-reduce among those. For other numbers of devices, `num_ranks` sums of gradients in memory and as
    many all-reduces.

    Args:
      loss_and_grads: mean loss of any micro-batches, and its gradients.
      params: where they are taken.
      inputs: this device's micro-batches; their rows are a part of the step's.
      targets: the next token at every position.
      max_norm: largest norm of a rank's gradients; 0 does not clip.
      num_ranks: ranks of the step.
      accumulation: micro-steps of each.
      axis_name: mesh axis of the devices, inside `shard_map`; None for one device.

    Raises:
      ConfigError: the rows cannot be split evenly among the ranks.
    """
    devices = jax.lax.axis_size(axis_name) if axis_name else 1
    runs, rows = num_ranks * accumulation, inputs.shape[0] * inputs.shape[1] * devices
    if rows % runs:
        raise ConfigError(
            f"optim.clip is rank: a step of {rows} sequences cannot be split evenly among train.num_ranks {num_ranks} "
            f"× train.accumulation {accumulation}; change these, or train.batch_tokens"
        )
    batch = inputs, targets
    if num_ranks % devices == 0:
        shape = (accumulation, num_ranks // devices, rows // runs)
        # [rank of this device, micro-step, row, position]
        batch = jax.tree.map(lambda tokens: tokens.reshape(*shape, tokens.shape[-1]).swapaxes(0, 1), batch)
        found = _mean_over_ranks(lambda rank: _clip(*loss_and_grads(params, *rank), max_norm), params, batch)
    elif devices % num_ranks == 0 and inputs.shape[0] == accumulation:  # else micro-steps are spread over devices
        groups = np.arange(devices).reshape(num_ranks, -1).tolist()
        found = _clip(*jax.lax.pmean(loss_and_grads(params, *batch), axis_name, axis_index_groups=groups), max_norm)
    else:
        found = _of_mixed_devices(loss_and_grads, params, batch, max_norm, num_ranks, rows // runs, axis_name)
    return jax.lax.pmean(found, axis_name) if devices > 1 and num_ranks > 1 else found


def _clip(loss: Float[Array, ""], grads: Params, max_norm: float) -> Clipped:
    return Clipped(loss, *clipped(grads, max_norm))


def _mean_over_ranks(of_rank: Callable[[Any], Clipped], params: Params, ranks: Any) -> Clipped:
    """The mean of what each rank gives, a leading axis of `ranks`, one at a time."""
    count = len(jax.tree.leaves(ranks)[0])
    if count == 1:
        return of_rank(jax.tree.map(lambda rank: rank[0], ranks))
    zeros = jax.tree.map(jnp.zeros_like, Clipped(jnp.zeros(()), params, jnp.zeros(())))
    total, _ = jax.lax.scan(lambda total, rank: (jax.tree.map(jnp.add, total, of_rank(rank)), None), zeros, ranks)
    return jax.tree.map(lambda value: value / count, total)


def _of_mixed_devices(
    loss_and_grads: LossAndGrads,
    params: Params,
    batch: tuple[Array, Array],
    max_norm: float,
    num_ranks: int,
    rows_per_run: int,
    axis_name: str,
) -> Clipped:
    """The same where a rank is spread over devices that have rows of others too."""
    micro_steps, rows, seq_len = batch[0].shape
    devices = jax.lax.axis_size(axis_name)
    piece = math.gcd(rows, rows_per_run)  # rows that follow one another in one rank, wherever they begin
    micro_step, first = np.meshgrid(np.arange(micro_steps), np.arange(0, rows, piece), indexing="ij")
    row = (micro_step * devices + jax.lax.axis_index(axis_name)) * rows + first
    ranks = (row // rows_per_run % num_ranks).reshape(-1)
    pieces = jax.tree.map(lambda tokens: tokens.reshape(-1, 1, piece, seq_len), batch)

    def add(sums, part):
        rank, tokens = part
        return jax.tree.map(lambda total, value: total.at[rank].add(value), sums, loss_and_grads(params, *tokens)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros((num_ranks, *leaf.shape), leaf.dtype), (jnp.zeros(()), params))
    sums, _ = jax.lax.scan(add, zeros, (ranks, pieces))
    pieces_per_rank = devices * len(ranks) / num_ranks
    losses, grads = jax.tree.map(lambda total: total / pieces_per_rank, jax.lax.psum(sums, axis_name))
    return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(lambda *one: _clip(*one, max_norm))(losses, grads))
