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
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from jgolf.config import ModelConfig
from jgolf.data.text import Text
from jgolf.errors import DataError
from jgolf.evaluate.challenge import CHALLENGE_BYTES, CHALLENGE_DEVICES
from jgolf.evaluate.nats import ScoredTargets, window_nats
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
from jgolf.model.functional import Params
from jgolf.watch import Observer, unobserved

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
