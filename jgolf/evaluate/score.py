"""Bits per byte of a model on a text.

A scorer is a function `(config, params, text, …) → Scored`: the negative log likelihood of each of the text's
N − 1 targets, and what else there is to say. A target's score depends on the tokens before it only.

Whoever wants to look is handed everything as it happens, by the option `observe`: "predictions", the `Predictions`
that some targets are about to be scored by, and "scored", their `ScoredTargets`. The number with them says how often
the scorer had learnt from the text, 0 for those that do not.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int

from jgolf import compiling
from jgolf.config import ModelConfig
from jgolf.data.text import Text
from jgolf.errors import DataError
from jgolf.evaluate.challenge import CHALLENGE_BYTES, CHALLENGE_DEVICES
from jgolf.evaluate.predictions import Predictions
from jgolf.evaluate.windows import (
    Windows,
    document_windows,
    mean_context,
    packed_rows,
    packed_windows,
    reference_packed_rows,
    sliding_windows,
    standard_windows,
)
from jgolf.model.functional import Params, runs_as_written, token_losses
from jgolf.watch import Observer, Progress, unobserved, unwatched

ATTENTION_SCORES_BYTES = 2**29
"""Room for one layer's float32 attention scores where the written model runs, which holds them in memory."""
UNSCORED = np.float32(-np.inf)
"""Nats of a target that is not scored. It is not NaN, which is what a diverged model scores."""


class HintTotals(NamedTuple):
    """What came of all hints that predictions were tilted to: see `jgolf.evaluate.tilt`."""

    fired: int
    """Scored targets for which there was one."""
    hits: int
    """Of these, for which it was right."""
    gained_nats: float
    """By which all scores together got better."""
    seconds: float
    """What finding the hints took."""


class Scored(NamedTuple):
    """What a scorer finds."""

    nats: Float32[np.ndarray, " targets"]
    """Negative log likelihood of each target, UNSCORED where it was not scored."""
    context: float
    """Tokens that the prediction of a scored target saw, on average."""
    compile_s: float = 0.0
    """Of the time that it took, what was spent waiting for the compiler, where that is known."""
    earlier_s: float = 0.0
    """What it took before it was interrupted, compile_s included."""
    hints: HintTotals | None = None
    """What came of hints, where there were some."""


Scorer = Callable[..., Scored]


@dataclass(frozen=True)
class HintScore:
    """What came of hints."""

    fired: int
    """Targets for which there was one."""
    hits: int
    """Of these, for which it was right."""
    gained_bpb: float
    """Bits per byte, as the challenge counts them, by which the score would be worse without."""
    seconds: float
    """What finding them took; it is part of the scoring."""


@dataclass(frozen=True)
class Score:
    """The result of scoring a text."""

    val_loss: float
    """Mean negative log likelihood in nats a token."""
    val_bpb: float
    """Bits per byte as the challenge counts them: see `jgolf.data.text.Text.bytes`."""
    tokens: int
    """Tokens that were scored."""
    bytes: int
    """Bytes that they stand for, as the challenge counts them."""
    seconds: float
    """What the scoring took."""
    original_bpb: float | None = None
    """Bits per byte of the documents as they were before a tokenizer changed them, where these were counted."""
    original_bytes: int | None = None
    """Those bytes."""
    context: float = math.nan
    """Tokens that a prediction saw, on average."""
    compile_s: float = 0.0
    """Of `seconds`, what was spent waiting for the compiler, where that is known."""
    hints: HintScore | None = None
    """What came of hints, where there were some."""

    @property
    def bytes_text(self) -> str:
        """Bytes that were scored, and those of the original text with their bits."""
        if self.original_bytes is None:
            return f"{self.bytes:,} bytes as the challenge counts, those of the original text are not known"
        if self.original_bytes == self.bytes:
            return f"{self.bytes:,} bytes, those of the original text"
        return (
            f"{self.bytes:,} bytes as the challenge counts; original_bpb {self.original_bpb:.6f} over the "
            f"{self.original_bytes:,} of the original text"
        )

    def challenge_s(self, num_devices: int) -> float:
        """Seconds that the challenge's text would take on its GPUs, if these were like the `num_devices` used here."""
        rest_s = (self.seconds - self.compile_s) * CHALLENGE_BYTES / self.bytes
        return self.compile_s + rest_s * num_devices / CHALLENGE_DEVICES


def bits_per_byte(mean_nll: float, tokens: int, num_bytes: int) -> float:
    """(mean negative log likelihood in nats / ln 2) × (tokens / bytes).

    Raises:
      DataError: there are no bytes to divide by.
    """
    if num_bytes < 1:
        raise DataError(
            f"the {tokens:,} scored tokens stand for no byte of text, so there are no bits per byte: pack documents "
            "that hold text, or score more tokens"
        )
    return mean_nll / math.log(2) * (tokens / num_bytes)


def summarize(
    nats: Float[np.ndarray, " targets"],
    target_bytes: Int[np.ndarray, " targets"],
    target_original: Int[np.ndarray, " targets"] | None = None,
    seconds: float = 0.0,
    **more: float,
) -> Score:
    """Adds up what was scored, in float64.

    Args:
      nats: of each target, UNSCORED where it was not scored.
      target_bytes: bytes that each of them stands for, as the challenge counts them.
      target_original: bytes of the original text that each of them stands for, where they are known.
      seconds: what the scoring took.
      **more: other fields of the score.

    Raises:
      DataError: nothing was scored, or no byte.
    """
    scored = nats != UNSCORED
    num_tokens = int(np.count_nonzero(scored))
    if not num_tokens:
        raise DataError(f"none of the {len(nats):,} targets was scored: give more tokens, or a shorter sequence length")
    mean = float(np.sum(nats, where=scored, dtype=np.float64)) / num_tokens
    num_bytes = int(np.sum(target_bytes, where=scored, dtype=np.int64))
    if target_original is not None and np.any(target_original, where=scored):
        num_original = int(np.sum(target_original, where=scored, dtype=np.int64))
        more |= {"original_bpb": bits_per_byte(mean, num_tokens, num_original), "original_bytes": num_original}
    return Score(mean, bits_per_byte(mean, num_tokens, num_bytes), num_tokens, num_bytes, seconds, **more)


def score(scorer: Scorer, config: ModelConfig, params: Params, text: Text, *args, **how) -> Score:
    """Runs a scorer and summarizes what it finds; see the scorer for its arguments."""
    started = time.perf_counter()
    found = scorer(config, params, text, *args, **how)
    seconds = time.perf_counter() - started + found.earlier_s
    counts = text.target_bytes, text.target_original
    total = summarize(found.nats, *counts, seconds, context=found.context, compile_s=found.compile_s)
    if found.hints is None:
        return total
    fired, hits, gained_nats, hints_s = found.hints
    hints = HintScore(fired, hits, bits_per_byte(gained_nats, 1, total.bytes), hints_s)
    return dataclasses.replace(total, hints=hints)


# --- scorers -----------------------------------------------------------------------------------


def rows(config: ModelConfig, params: Params, text: Text, seq_len: int, **how) -> Scored:
    """Scores rows of `seq_len` one after the other; a remainder that fills none is unscored. See `window_nats`."""
    windows = standard_windows(len(text.tokens), seq_len)
    return _of_windows(config, params, text, windows, seq_len, **how)


def sliding(config: ModelConfig, params: Params, text: Text, seq_len: int, stride: int, **how) -> Scored:
    """Scores every target with up to `seq_len` tokens of context. See `sliding_windows` and `window_nats`."""
    windows = sliding_windows(len(text.tokens), seq_len, stride)
    return _of_windows(config, params, text, windows, seq_len, **how)


def documents(config: ModelConfig, params: Params, text: Text, seq_len: int, stride: int, **how) -> Scored:
    """Like `sliding`, but no context reaches into the document before. See `document_windows` and `window_nats`."""
    windows = document_windows(text.starts, len(text.tokens), seq_len, stride)
    return _of_windows(config, params, text, windows, seq_len, **how)


def packed(config: ModelConfig, params: Params, text: Text, seq_len: int, batch_tokens: int = 65_536, **how) -> Scored:
    """Scores long rows in which attention stays within documents, and within `seq_len` tokens of longer ones.

    It is what a network sees that was trained on documents apart, each target once and nothing padded. A document
    that a row ends in begins anew in the next one. See `window_nats`.
    """
    longest = max(seq_len, batch_tokens // seq_len * seq_len)
    windows = packed_rows(len(text.tokens), longest)
    how = {"batch_tokens": batch_tokens, "piece_length": seq_len, **how}
    found = _of_windows(config, params, text, windows, int(windows.length[0]), **how)
    pieces = document_windows(np.union1d(windows.start, text.starts), len(text.tokens), seq_len, seq_len)
    return found._replace(context=mean_context(pieces))


SCORERS: tuple[Scorer, ...] = (rows, sliding, documents, packed)
"""All of them: each keeps, as tests hold them to it, to what the module says of a scorer."""


def scorers_of(documents_apart: bool) -> tuple[Scorer, Scorer]:
    """The scorers, one target after the other and sliding, by which a network sees text as it did in training."""
    return (packed, documents) if documents_apart else (rows, sliding)


def reference_sliding_score(config: ModelConfig, params: Params, text: Text, seq_len: int, stride: int, **how) -> Score:
    """The sliding score as the PyTorch reference takes it: its last windows score the same targets again."""
    started = time.perf_counter()
    windows = sliding_windows(len(text.tokens), seq_len, stride, reference_windows=True)
    found = gathered(window_nats(config, params, text.tokens, windows, seq_len, **how), text)
    return summarize(*found, time.perf_counter() - started, context=mean_context(windows))


def reference_packed_score(
    config: ModelConfig,
    params: Params,
    text: Text,
    seq_len: int,
    rows_at_once: int,
    num_ranks: int = 1,
    **how,
) -> Score:
    """The score within documents as the PyTorch scripts take it: each rank drops what does not fill a packed row.

    See `jgolf.evaluate.windows.packed_windows`.
    """
    started, num_tokens = time.perf_counter(), len(text.tokens)
    own = [(seq_len, rows_at_once, rank, num_ranks) for rank in range(num_ranks)]
    rows = Windows.joined([reference_packed_rows(num_tokens, *what) for what in own])
    pieces = Windows.joined([packed_windows(text.starts, num_tokens, *what) for what in own])
    how = {"batch_tokens": rows_at_once * seq_len, "piece_length": seq_len, **how}
    parts = window_nats(config, params, text.tokens, rows, rows_at_once * seq_len, **how)
    return summarize(*gathered(parts, text), time.perf_counter() - started, context=mean_context(pieces))


# --- windows -----------------------------------------------------------------------------------


class ScoredTargets(NamedTuple):
    """Some targets of a text and their scores; target i is token i + 1."""

    targets: Int[np.ndarray, " scored"]
    nats: Float32[np.ndarray, " scored"]
    hint_nats: Float32[np.ndarray, " scored"] | None = None
    """Of the token that is hinted at in each one's place, any where there is none; of a scorer that is given hints."""


def gathered(parts: Iterable[ScoredTargets], text: Text) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All scores, a target's as often as it was scored, and the bytes of each: what `summarize` takes."""
    pairs = zip(*((part.targets, part.nats) for part in parts), strict=True)
    targets, nats = (np.concatenate(own) for own in pairs)
    original = text.target_original
    return nats, text.target_bytes[targets], None if original is None else original[targets]


def _of_windows(
    config: ModelConfig,
    params: Params,
    text: Text,
    windows: Windows,
    seq_len: int,
    observe: Observer = unobserved,
    **how,
) -> Scored:
    """Windows that score no target twice."""
    nats = np.full(len(text.tokens) - 1, UNSCORED)
    for part in window_nats(config, params, text.tokens, windows, seq_len, observe=observe, **how):
        nats[part.targets] = part.nats
        observe("scored", 0, part)
    return Scored(nats, mean_context(windows))


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
      observe: is given the "predictions" of each batch; see the module.
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
