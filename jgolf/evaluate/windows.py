"""Which windows of a token stream are run, and which of their targets are scored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jgolf.errors import DataError


class Windows(NamedTuple):
    """Windows of a token stream, one an entry.

    Window i has the inputs `start[i] … start[i] + length[i] − 1`; the targets of its positions from
    `first_scored[i]` on are scored.
    """

    start: Int[np.ndarray, windows]
    length: Int[np.ndarray, windows]
    first_scored: Int[np.ndarray, windows]

    def __getitem__(self, index) -> Windows:
        return Windows(*(field[index] for field in tuple(self)))


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
    num_targets = num_tokens - 1
    if num_targets < 1:
        raise DataError(f"the validation tokens are too few: found {num_tokens}, expected at least 2")
    if not 1 <= stride <= seq_len:
        raise DataError(f"stride {stride}: expected from 1 to the sequence length {seq_len}")
    if reference_windows:
        start = np.arange(0, num_targets, stride)
        length = np.minimum(seq_len, num_targets - start)
        first_scored = np.maximum(length - stride, 0)
    else:
        start = np.arange(0, max(num_targets - seq_len, 0) + stride, stride)
        length = np.minimum(seq_len, num_targets - start)
        first_scored = np.full(len(start), seq_len - stride)
    first_scored[0] = 0
    # Where the last full window ends with the stream, the next has nothing left to score.
    useful = length > first_scored
    return Windows(start, length, first_scored)[useful]
