"""An entropy coder whose symbols bring their own intervals, many at a time: interleaved rANS (Duda, arXiv 1311.2540).

A symbol has a share of the integers below TOTAL, `frequency` of them from `start` on. A lane is a coder with a state of
64 bits; all lanes write words of 32 bits to one stream, in turn. What is coded last is decoded first, so the encoder
takes the symbols backwards. A lane costs eight bytes, of which its symbols fill about two.

The encoder knows all symbols and works on the host; the decoder must not wait for it between two symbols.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32, UInt64

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
    """Gives back what an encoder took, the first symbols first: on the device, where the intervals are.

    Lane i serves rows i, i + lanes, i + 2·lanes … of every table, in this order.
    """

    def __init__(self, data: bytes, lanes: int):
        """
        Args:
          data: what the encoder finished with.
          lanes: its lanes.

        Raises:
          Damaged: the data cannot be an encoder's.
        """
        if len(data) < 8 * lanes or len(data) % 4:
            raise Damaged(f"{len(data)} coded bytes, expected at least {8 * lanes}, in words of 4")
        states = np.frombuffer(data, "<u8", lanes).astype(np.uint64)
        words = np.frombuffer(data, "<u4", offset=8 * lanes).astype(np.uint32)
        if (states < _LEAST).any():
            raise Damaged("a coder's state is too small")
        self._num_words = len(words)
        # Whatever is coded, few lengths: each is a program of its own.
        words = np.pad(words, (0, (1 << len(words).bit_length()) - len(words)))
        with jax.enable_x64(True):
            self._states, self._words, self._next = jnp.asarray(states), jnp.asarray(words), jnp.zeros((), jnp.int32)

    def symbols(self, table: Int[Array, "B V+1"], there: Bool[Array, " B"]) -> Int[Array, " B"]:
        """The next symbol of each row that is `there`, by the limits of its symbols' intervals; of the others 0."""
        with jax.enable_x64(True):
            symbols, self._states, self._next = _symbols(table, there, self._states, self._words, self._next)
        return symbols

    def check(self) -> None:
        """Waits for the symbols asked for.

        Raises:
          Damaged: the data have not so many.
        """
        if self._next > self._num_words:
            raise Damaged("the coded words end too early")

    def finish(self) -> None:
        """To be called after the last symbol.

        Raises:
          Damaged: the data have fewer or more.
        """
        self.check()
        if self._next < self._num_words or (np.asarray(self._states) != _LEAST).any():
            raise Damaged("the coded words do not end where the symbols do")


@jax.jit
def _symbols(
    table: Int[Array, "B V+1"],
    there: Bool[Array, " B"],
    states: UInt64[Array, " lanes"],
    words: UInt32[Array, " words"],
    following: Int[Array, ""],
) -> tuple[Int[Array, " B"], UInt64[Array, " lanes"], Int[Array, ""]]:
    """Symbols of all rows, the states behind them, and which word is read next."""
    num_rows, lanes = len(table), len(states)

    def turn(carry: tuple[Array, Array], first: Int[Array, ""]) -> tuple[tuple[Array, Array], Int[Array, " lanes"]]:
        states, following = carry
        rows = first + jnp.arange(lanes)
        limits, here = table.at[rows].get(mode="clip"), there.at[rows].get(mode="fill", fill_value=False)
        quantiles = states & _MASK
        symbols = jnp.sum(limits[:, 1:] <= quantiles[:, None].astype(jnp.int32), axis=1, dtype=jnp.int32)
        starts, ends = (
            jnp.take_along_axis(limits, symbols[:, None] + offset, axis=1)[:, 0].astype(jnp.uint64) for offset in (0, 1)
        )
        later = (ends - starts) * (states >> TOTAL_BITS) + quantiles - starts
        low = here & (later < _LEAST)
        word = words.at[following + jnp.cumsum(low) - 1].get(mode="clip")
        later = jnp.where(low, later << _WORD_BITS | word, later)
        following += jnp.sum(low, dtype=jnp.int32)
        return (jnp.where(here, later, states), following), jnp.where(here, symbols, 0)

    firsts = jnp.arange(0, num_rows, lanes, dtype=jnp.int32)
    (states, following), symbols = jax.lax.scan(turn, (states, following), firsts)
    return symbols.reshape(-1)[:num_rows], states, following
