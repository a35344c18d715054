"""An entropy coder whose symbols bring their own intervals, many at a time: interleaved rANS (Duda, arXiv 1311.2540).

A symbol has a share of the integers below TOTAL, `frequency` of them from `start` on. A lane is a coder with a state of
64 bits; all lanes write words of 32 bits to one stream, in turn. What is coded last is decoded first, so the encoder
takes the symbols backwards. A lane costs eight bytes, of which its symbols fill about two.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

TOTAL_BITS = 24
TOTAL = 1 << TOTAL_BITS
_WORD_BITS = 32
_LEAST = np.uint64(1 << _WORD_BITS)  # states are between this and 2^64
_MASK = np.uint64(TOTAL - 1)


class Damaged(ValueError):
    """What is decoded was not written by the encoder."""


class Encoder:
    """Codes symbols, the last ones first."""

    def __init__(self, lanes: int):
        self._states = np.full(lanes, _LEAST)
        self._words: list[np.ndarray] = []

    def push(
        self, lanes: Int[np.ndarray, " n"], starts: Int[np.ndarray, " n"], frequencies: Int[np.ndarray, " n"]
    ) -> None:
        """Codes a symbol in each of `lanes`, whose numbers rise; a frequency is at least 1."""
        states, starts, frequencies = self._states[lanes], starts.astype(np.uint64), frequencies.astype(np.uint64)
        full = states >= frequencies << np.uint64(64 - TOTAL_BITS)
        self._words.append(states[full].astype("<u4"))  # the low words
        states[full] >>= np.uint64(_WORD_BITS)
        self._states[lanes] = (states // frequencies << np.uint64(TOTAL_BITS)) + states % frequencies + starts

    def finish(self) -> bytes:
        """The states, then the words in the order in which they are read."""
        return self._states.astype("<u8").tobytes() + b"".join(words.tobytes() for words in reversed(self._words))


class Decoder:
    """Gives back what an encoder took, the first symbols first.

    Raises, from every method:
      Damaged: the data cannot be an encoder's.
    """

    def __init__(self, data: bytes, lanes: int):
        if len(data) < 8 * lanes or len(data) % 4:
            raise Damaged(f"{len(data)} coded bytes, expected at least {8 * lanes}, in words of 4")
        self._states = np.frombuffer(data, "<u8", lanes).astype(np.uint64)
        self._words = np.frombuffer(data, "<u4", offset=8 * lanes).astype(np.uint64)
        self._next = 0
        if (self._states < _LEAST).any():
            raise Damaged("a coder's state is too small")

    def quantiles(self, lanes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """A number below TOTAL of each lane, which lies in its next symbol's interval."""
        return (self._states[lanes] & _MASK).astype(np.int32)

    def pop(
        self, lanes: Int[np.ndarray, " n"], starts: Int[np.ndarray, " n"], frequencies: Int[np.ndarray, " n"]
    ) -> None:
        """Goes on behind the symbols that the quantiles of `lanes`, whose numbers rise, have told."""
        states, starts, frequencies = self._states[lanes], starts.astype(np.uint64), frequencies.astype(np.uint64)
        states = frequencies * (states >> np.uint64(TOTAL_BITS)) + (states & _MASK) - starts
        low = states < _LEAST
        words = self._words[self._next : self._next + np.count_nonzero(low)]
        if len(words) < np.count_nonzero(low):
            raise Damaged("the coded words end too early")
        self._next += len(words)
        states[low] = states[low] << np.uint64(_WORD_BITS) | words
        self._states[lanes] = states

    def finish(self) -> None:
        """To be called after the last symbol."""
        if self._next < len(self._words) or (self._states != _LEAST).any():
            raise Damaged("the coded words do not end where the symbols do")
