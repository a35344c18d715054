"""A stream of tokens whose documents come in another order with every pass over the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jgolf.data.shards import TokenStream, bos_positions

_ORDERS_KEPT = 4  # shards whose order is at hand; a batch and the ones made ahead touch two at most


class _Order(NamedTuple):
    """Pieces of a shard, in the order of a pass: where they begin in the shard, and where they end in the pass."""

    starts: np.ndarray
    ends: np.ndarray


class ShuffledStream(TokenStream):
    """A `TokenStream` that leaves the first pass over the text as it is and shuffles each shard's documents in others.

    The shards stay in their order. What stands before a shard's first BOS stays there: it belongs to the document
    that the shard before ends with. The order is a function of seed, pass and shard.
    """

    def __init__(self, paths: Sequence[str | Path], vocab_size: int | None = None, seed: int = 0):
        """Opens the shards, in the order given.

        Args:
          paths: the shards, as `TokenStream` takes them.
          vocab_size: the same.
          seed: of the orders.

        Raises:
          DataError: as `TokenStream` does.
        """
        super().__init__(paths, vocab_size)
        self._seed = seed
        self._order = lru_cache(maxsize=_ORDERS_KEPT)(self._order_of)

    def _from_shard(self, index: int, pass_number: int, offset: int, count: int) -> np.ndarray:
        if pass_number == 0:
            return super()._from_shard(index, pass_number, offset, count)
        shard = self._checked_shard(index)
        order = self._order(index, pass_number)
        piece = int(np.searchsorted(order.ends, offset, side="right"))
        start, end = int(order.starts[piece]), int(order.ends[piece])
        length = end - (int(order.ends[piece - 1]) if piece else 0)
        first = start + length - (end - offset)
        return shard[first : min(start + length, first + count)]

    def _order_of(self, index: int, pass_number: int) -> _Order:
        shard = self._checked_shard(index)
        begins = bos_positions(shard)
        lengths = np.diff(begins, append=len(shard))
        shuffled = np.random.default_rng((self._seed, pass_number, index)).permutation(len(begins))
        before = begins[0] if len(begins) else len(shard)
        starts, lengths = np.append(0, begins[shuffled]), np.append(before, lengths[shuffled])
        return _Order(starts, np.cumsum(lengths))
