"""Bits per byte of a model on a token stream."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jgolf import compiling
from jgolf.config import ModelConfig
from jgolf.data.tokenizer import ByteTables
from jgolf.evaluate.windows import Windows, sliding_windows, standard_windows
from jgolf.model.functional import Params, runs_as_written, token_losses

XLA_ATTENTION_BYTES = 2**29
"""Room for one layer's float32 attention scores where no fused kernel runs."""

Progress = Callable[[Iterable, int], Iterable]
"""Wraps an iterable of that many steps, to show progress."""


@dataclass(frozen=True)
class Score:
    """The result of scoring a token stream."""

    val_loss: float
    """Mean negative log likelihood in nats a token."""
    val_bpb: float
    """Bits per byte of text."""
    tokens: int
    """Tokens that were scored."""
    bytes: int
    """Bytes of text that they stand for."""
    seconds: float


def bits_per_byte(mean_nll: float, tokens: int, num_bytes: int) -> float:
    """(mean negative log likelihood in nats / ln 2) × (tokens / bytes)."""
    return mean_nll / math.log(2) * (tokens / num_bytes)


def scoring_model(config: ModelConfig) -> ModelConfig:
    """The network as it is scored on this machine: in float32 on a CPU, where bfloat16 is emulated."""
    return dataclasses.replace(config, compute_dtype="float32") if jax.default_backend() == "cpu" else config


@cache
def _compiled(config: ModelConfig, mesh: Mesh) -> Callable:
    """The loss function, its rows spread over the mesh, its result on every device."""
    axis = mesh.axis_names[0]

    def on_each_device(params, inputs, targets):
        return jax.lax.all_gather(token_losses(config, params, inputs, targets), axis, tiled=True)

    specs = (P(), P(axis), P(axis))
    sharded = jax.shard_map(on_each_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return jax.jit(sharded, compiler_options=compiling.options())


def standard_score(
    config: ModelConfig, params: Params, tokens: np.ndarray, tables: ByteTables, seq_len: int, **how
) -> Score:
    """Scores rows of `seq_len` one after the other. See `score` for the rest."""
    return score(config, params, tokens, tables, standard_windows(len(tokens), seq_len), seq_len, **how)


def sliding_score(
    config: ModelConfig,
    params: Params,
    tokens: np.ndarray,
    tables: ByteTables,
    seq_len: int,
    stride: int,
    reference_windows: bool = False,
    **how,
) -> Score:
    """Scores every token with up to `seq_len` tokens of context. See `sliding_windows` and `score`."""
    windows = sliding_windows(len(tokens), seq_len, stride, reference_windows)
    return score(config, params, tokens, tables, windows, seq_len, **how)


def score(
    config: ModelConfig,
    params: Params,
    tokens: np.ndarray,
    tables: ByteTables,
    windows: Windows,
    seq_len: int,
    batch_tokens: int = 65_536,
    mesh: Mesh | None = None,
    progress: Progress = lambda steps, total: steps,
) -> Score:
    """Scores the windows of a token stream; sums are taken in float64.

    Args:
      config: the network.
      params: its parameters.
      tokens: the stream, ids [num_tokens].
      tables: bytes of each piece.
      windows: what to run and score. Shorter ones are padded at their end, where causality hides it.
      seq_len: length to which windows are padded.
      batch_tokens: tokens run at once on each device.
      mesh: devices to spread over; all of this process's by default.
      progress: see `Progress`.
    """
    started = time.perf_counter()
    config = scoring_model(config)
    mesh = mesh or Mesh(np.array(jax.local_devices()), ("data",))
    params = jax.device_put(params, NamedSharding(mesh, P()))
    batches = list(_batches(windows, seq_len, _rows_at_once(config, seq_len, batch_tokens), mesh.size))
    total_nll = 0.0
    waiting = None  # one batch is on the device while the host adds up the one before it
    for batch in progress(batches, len(batches)):
        losses = _run(config, params, mesh, tokens, batch, seq_len)
        if waiting is not None:
            total_nll += _sum_scored(*waiting, seq_len)
        waiting = batch.windows, losses
    total_nll += _sum_scored(*waiting, seq_len)

    bytes_up_to = np.concatenate([[0], np.cumsum(tables.target_bytes(tokens[:-1], tokens[1:]), dtype=np.int64)])
    first, end = windows.start + windows.first_scored, windows.start + windows.length
    num_tokens, num_bytes = int((end - first).sum()), int((bytes_up_to[end] - bytes_up_to[first]).sum())
    mean, seconds = total_nll / num_tokens, time.perf_counter() - started
    return Score(mean, bits_per_byte(mean, num_tokens, num_bytes), num_tokens, num_bytes, seconds)


class _Batch(NamedTuple):
    windows: Windows
    rows: int
    """Rows that are run: the windows, and what fills the batch up to the shape of its group."""
    num_last: int
    """Losses are needed of this many last positions only."""


def _rows_at_once(config: ModelConfig, seq_len: int, batch_tokens: int) -> int:
    rows = max(1, batch_tokens // seq_len)
    if runs_as_written(config):
        rows = min(rows, max(1, XLA_ATTENTION_BYTES // (4 * config.num_heads * seq_len**2)))
    return rows


def _batches(windows: Windows, seq_len: int, rows_each: int, num_devices: int) -> Iterator[_Batch]:
    """Windows that score the same last positions go together; those cut short need all positions.

    Batches of such a group have one shape, up to `rows_each` rows a device and no more than the group fills.
    """
    num_last = np.where(windows.length == seq_len, seq_len - windows.first_scored, seq_len)
    for last in np.unique(num_last):
        group = np.flatnonzero(num_last == last)
        rows = min(rows_each, -(-len(group) // num_devices)) * num_devices
        for first in range(0, len(group), rows):
            yield _Batch(windows[group[first : first + rows]], rows, int(last))


def _run(
    config: ModelConfig, params: Params, mesh: Mesh, tokens: np.ndarray, batch: _Batch, seq_len: int
) -> Float[Array, "rows last"]:
    positions = batch.windows.start[:, None] + np.arange(seq_len + 1)
    # Past the end of the stream, and in rows that fill up a last batch, anything will do.
    taken = np.zeros((batch.rows, seq_len + 1), np.int32)
    taken[: len(positions)] = tokens[np.minimum(positions, len(tokens) - 1)]
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    inputs, targets = (
        jax.make_array_from_callback(part.shape, sharding, lambda index, part=part: part[index])
        for part in (taken[:, :-1], taken[:, seq_len + 1 - batch.num_last :])
    )
    return _compiled(config, mesh)(params, inputs, targets)


def _sum_scored(windows: Windows, losses: Float[Array, "rows last"], seq_len: int) -> float:
    losses = np.asarray(losses, np.float64)[: len(windows.start)]
    position = np.arange(seq_len - losses.shape[1], seq_len)
    scored = (position >= windows.first_scored[:, None]) & (position < windows.length[:, None])
    return float(losses[scored].sum())
