"""Windows of a stream of tokens → the nats of their targets, a batch at a time, on all devices."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int

from jgolf import compiling
from jgolf.config import ModelConfig
from jgolf.evaluate.predictions import Predictions
from jgolf.evaluate.windows import Windows
from jgolf.model.functional import Params, runs_as_written, token_losses
from jgolf.watch import Observer, Progress, unobserved, unwatched

ATTENTION_SCORES_BYTES = 2**29
"""Room for one layer's float32 attention scores where the written model runs, which holds them in memory."""


class ScoredTargets(NamedTuple):
    """Some targets of a text and their scores; target i is token i + 1."""

    targets: Int[np.ndarray, " scored"]
    nats: Float32[np.ndarray, " scored"]
    hint_nats: Float32[np.ndarray, " scored"] | None = None
    """Of the token that is hinted at in each one's place, any where there is none; of a scorer that is given hints."""


def window_nats(
    config: ModelConfig,
    params: Params,
    tokens: np.ndarray,
    windows: Windows,
    seq_len: int,
    batch_tokens: int = 65_536,
    mesh: Mesh | None = None,
    progress: Progress = unwatched,
    piece_length: int = 0,
    looped: bool = True,
    full_batches: bool = False,
    observe: Observer = unobserved,
    hints: Int[np.ndarray, " targets"] | None = None,
) -> Iterator[ScoredTargets]:
    """Runs windows of a stream of tokens, a batch at a time.

    Args:
      config: the network.
      params: its parameters.
      tokens: the stream, ids [num_tokens].
      windows: what to run and score. Shorter ones are padded at their end, where causality hides it.
      seq_len: length to which windows are padded.
      batch_tokens: tokens run at once on each device.
      mesh: devices to spread over; all of this process's by default.
      progress: see `Progress`.
      piece_length, looped: see `jgolf.model.functional`.
      full_batches: fill up batches that are all there is of their kind, too, so that they are no program of their own.
      observe: is given the "predictions" of each batch; see `jgolf.evaluate.score`.
      hints: a token for each target, whose nats in the target's place are asked for, too; below 0 for none.

    Yields:
      The scored targets of each batch, in an order that is not the text's.
    """
    config = scoring_model(config)
    mesh = mesh or local_mesh()
    params = jax.device_put(params, NamedSharding(mesh, P()))
    longest_piece = piece_length or seq_len
    rows_each = max(1, min(batch_tokens // seq_len, pieces_at_once(config, longest_piece) * longest_piece // seq_len))
    batches = list(_batches(windows, seq_len, rows_each, mesh.size, full_batches))
    run = _compiled(config, mesh, piece_length, looped)
    how = {"piece_length": piece_length, "looped": looped}
    waiting = None  # one batch is on the device while the host takes in the one before it
    for batch in progress(batches, len(batches)):
        observe("predictions", 0, Predictions(config, params, tokens, batch.windows, seq_len, how))
        losses = run(params, *_inputs_and_targets(mesh, tokens, batch, seq_len, hints))
        if waiting is not None:
            yield _scored(*waiting, seq_len)
        waiting = batch.windows, losses
    if waiting is not None:
        yield _scored(*waiting, seq_len)


def local_mesh() -> Mesh:
    """This process's devices, on one axis."""
    return Mesh(np.array(jax.local_devices()), ("data",))


class _Batch(NamedTuple):
    windows: Windows
    rows: int
    """Rows that are run: the windows, and what fills the batch up to the shape of its group."""
    num_last: int
    """Losses are needed of this many last positions only."""


def pieces_at_once(config: ModelConfig, length: int) -> int:
    """Pieces whose attention scores there is room for; kernels hold none in memory."""
    return ATTENTION_SCORES_BYTES // (4 * config.num_heads * length**2) if runs_as_written(config) else sys.maxsize


def _batches(windows: Windows, seq_len: int, rows_each: int, num_devices: int, full: bool = False) -> Iterator[_Batch]:
    """Windows go together that score as many last positions as most do, or fewer; the rest need all positions.

    Batches of such a group have one shape, up to `rows_each` rows a device and, but for `full` ones, no more than the
    group fills.
    """
    if not len(windows.start):
        return
    needed = seq_len - windows.first_scored
    counts = np.bincount(needed)
    num_last = np.where(needed <= counts.argmax(), counts.argmax(), seq_len)
    for last in np.unique(num_last):
        group = np.flatnonzero(num_last == last)
        rows = (rows_each if full else min(rows_each, -(-len(group) // num_devices))) * num_devices
        for first in range(0, len(group), rows):
            yield _Batch(windows[group[first : first + rows]], rows, int(last))


def scoring_model(config: ModelConfig) -> ModelConfig:
    """The network as it is scored on this machine: in float32 on a CPU, where bfloat16 is emulated."""
    return dataclasses.replace(config, compute_dtype="float32") if jax.default_backend() == "cpu" else config


@cache
def _compiled(config: ModelConfig, mesh: Mesh, piece_length: int, looped: bool) -> Callable:
    """The loss function, its rows spread over the mesh, its result on every device."""
    axis = mesh.axis_names[0]

    def on_each_device(params, inputs, targets):
        losses = token_losses(config, params, inputs, targets, piece_length=piece_length, looped=looped)
        return jax.lax.all_gather(losses, axis, tiled=True)

    specs = (P(), P(axis), P(axis))
    sharded = jax.shard_map(on_each_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return jax.jit(sharded, compiler_options=compiling.options())


def _inputs_and_targets(
    mesh: Mesh, tokens: np.ndarray, batch: _Batch, seq_len: int, hints: np.ndarray | None
) -> tuple[Int[Array, "rows time"], Int[Array, "rows last *two"]]:
    """A batch's rows, spread over the devices; beside each target its hint, where there are some."""
    positions = batch.windows.start[:, None] + np.arange(seq_len + 1)
    # Past the end of the stream, and in rows that fill up a last batch, anything will do.
    taken = np.zeros((batch.rows, seq_len + 1), np.int32)
    taken[: len(positions)] = tokens[np.minimum(positions, len(tokens) - 1)]
    targets = taken[:, seq_len + 1 - batch.num_last :]
    if hints is not None:
        targets = np.stack([targets, np.zeros_like(targets)], axis=-1)
        own = np.minimum(positions[:, seq_len - batch.num_last : -1], len(hints) - 1)
        targets[: len(positions), :, 1] = np.maximum(hints[own], 0)
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    inputs, targets = (
        jax.make_array_from_callback(part.shape, sharding, lambda index, part=part: part[index])
        for part in (taken[:, :-1], targets)
    )
    return inputs, targets


def _scored(windows: Windows, losses: Float[Array, "rows last *two"], seq_len: int) -> ScoredTargets:
    losses = np.asarray(losses, np.float32)[: len(windows.start)]
    position = np.arange(seq_len - losses.shape[1], seq_len)
    scored = (position >= windows.first_scored[:, None]) & (position < windows.length[:, None])
    return ScoredTargets((windows.start[:, None] + position)[scored], *np.atleast_2d(losses[scored].T))
