"""Which windows of a token stream are run, and which of their targets are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jgolf.errors import DataError


class Windows(NamedTuple):
    """Windows of a token stream, one an entry.

    Window i has the inputs `start[i] … start[i] + length[i] − 1`; the targets of its positions from
    `first_scored[i]` on are scored.
    """

    start: Int[np.ndarray, " windows"]
    length: Int[np.ndarray, " windows"]
    first_scored: Int[np.ndarray, " windows"]

    def __getitem__(self, index) -> Windows:
        return Windows(*(field[index] for field in tuple(self)))

    @classmethod
    def joined(cls, parts: Sequence[Windows]) -> Windows:
        """The windows of all parts."""
        return cls(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def mean_context(windows: Windows) -> float:
    """Tokens that the prediction of a scored target sees, on average: its own position in its window, from 1."""
    length, first = windows.length.astype(np.int64), windows.first_scored.astype(np.int64)
    return float(np.sum(length * (length + 1) - first * (first + 1)) / 2 / np.sum(length - first))


def standard_windows(num_tokens: int, seq_len: int) -> Windows:
    """Rows of `seq_len` one after the other, all scored; the remainder that fills no row is dropped.

    Raises:
      DataError: not even one row is full.
    """
    num_rows = (num_tokens - 1) // seq_len
    if num_rows < 1:
        raise DataError(
            f"the validation tokens are too few: found {num_tokens}, expected at least {seq_len + 1}, one sequence of "
            f"{seq_len} and its last target; give more tokens or a shorter sequence length"
        )
    start = np.arange(num_rows) * seq_len
    return Windows(start, np.full(num_rows, seq_len), np.zeros(num_rows, int))


def sliding_windows(num_tokens: int, seq_len: int, stride: int, reference_windows: bool = False) -> Windows:
    """Windows that start every `stride` tokens: the first scores all, each later one its last `stride`.

    Every token is scored once; the last window may be shorter than `seq_len`.

    Args:
      num_tokens: tokens of the stream, one more than there are targets.
      seq_len: longest context.
      stride: tokens between two starts.
      reference_windows: as the PyTorch reference does, also run the windows that hang over the end,
        each of which scores the stream's last `stride` tokens once more.

    Raises:
      DataError: there is nothing to score, or the stride is longer than the window.
    """
    if not reference_windows:
        return document_windows(np.zeros(1, int), num_tokens, seq_len, stride)
    num_targets = _num_targets(num_tokens, seq_len, stride)
    start = np.arange(0, num_targets, stride)
    length = np.minimum(seq_len, num_targets - start)
    first_scored = np.maximum(length - stride, 0)
    first_scored[0] = 0
    return Windows(start, length, first_scored)


def document_windows(starts: Int[np.ndarray, " documents"], num_tokens: int, seq_len: int, stride: int) -> Windows:
    """Sliding windows within each document: none has a token of the document before.

    A document's targets are its tokens after the first, and the first token of the next document. Every one is
    scored once, and its context does not depend on where the document ends.

    Args:
      starts: positions at which a document begins, rising, the first 0.
      num_tokens: tokens of the stream.
      seq_len: longest context.
      stride: tokens between two starts; `seq_len` cuts documents into rows that do not see each other.

    Raises:
      DataError: there is nothing to score, or the stride is longer than the window.
    """
    num_targets = _num_targets(num_tokens, seq_len, stride)
    starts = starts[starts < num_targets]
    sizes = np.diff(starts, append=num_targets)
    counts = 1 + -(-np.maximum(sizes - seq_len, 0) // stride)
    document = np.repeat(np.arange(len(starts)), counts)
    offset = stride * (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts))
    length = np.minimum(seq_len, sizes[document] - offset)
    return Windows(starts[document] + offset, length, np.where(offset == 0, 0, seq_len - stride))


def packed_rows(num_tokens: int, longest: int) -> Windows:
    """Rows of `longest` tokens one after the other, all scored; the last one, or the only one, may be shorter.

    Raises:
      DataError: there is nothing to score.
    """
    num_targets = _num_targets(num_tokens, longest, longest)
    start = np.arange(0, num_targets, longest)
    return Windows(start, np.minimum(longest, num_targets - start), np.zeros(len(start), int))


def packed_windows(
    starts: Int[np.ndarray, " documents"],
    num_tokens: int,
    seq_len: int,
    rows_at_once: int,
    rank: int = 0,
    num_ranks: int = 1,
) -> Windows:
    """The segments of the PyTorch scripts' validation within documents, for comparison with them.

    Such a script gives each of its ranks a share of the stream's rows of `seq_len` tokens, packs `rows_at_once`
    of these into one, and drops what does not fill its last one. Attention is cut at the start of a packed row,
    at every document's start in it, and every `seq_len` tokens after a cut.

    Returns:
      The segments in order, all of whose targets are scored; those of one packed row follow one another.

    Raises:
      DataError: the rank has not one packed row.
    """
    packed = reference_packed_rows(num_tokens, seq_len, rows_at_once, rank, num_ranks)
    first, stop = packed.start[0], packed.start[-1] + packed.length[-1]
    cuts = np.union1d(packed.start, starts[(starts >= first) & (starts < stop)])
    segments = document_windows(cuts - first, stop - first + 1, seq_len, seq_len)
    return segments._replace(start=segments.start + first)


def reference_packed_rows(num_tokens: int, seq_len: int, rows_at_once: int, rank: int, num_ranks: int) -> Windows:
    """The packed rows of `packed_windows`, all scored.

    Raises:
      DataError: the rank has not one packed row.
    """
    num_rows = (num_tokens - 1) // seq_len
    first, end = (num_rows * part // num_ranks for part in (rank, rank + 1))
    longest = rows_at_once * seq_len
    start = first * seq_len + longest * np.arange((end - first) // rows_at_once)
    if not len(start):
        raise DataError(
            f"the validation tokens are too few: found {num_tokens}, expected at least "
            f"{num_ranks * longest + 1}, one packed row of {rows_at_once} × {seq_len} for each of {num_ranks}"
        )
    return Windows(start, np.full(len(start), longest), np.zeros(len(start), int))


def _num_targets(num_tokens: int, seq_len: int, stride: int) -> int:
    if num_tokens < 2:
        raise DataError(f"the validation tokens are too few: found {num_tokens}, expected at least 2")
    if not 1 <= stride <= seq_len:
        raise DataError(f"stride {stride}: expected from 1 to the sequence length {seq_len}")
    return num_tokens - 1
