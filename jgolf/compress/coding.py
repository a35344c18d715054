"""Tokens to bytes and back, by a model's distributions: both ways run the same compiled programs on the same shapes.

The tokens are cut into streams of one length, which are read side by side; each begins anew after BOS. A lane of the
entropy coder serves several streams in turn, since a lane costs bytes and a stream costs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, cached_property

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jgolf.compress.container import HASH_BYTES
from jgolf.compress.intervals import cumulative, intervals_of
from jgolf.compress.rans import Decoder, Encoder
from jgolf.compress.report import Nats
from jgolf.config import ModelConfig
from jgolf.data.shards import BOS_ID
from jgolf.errors import ArtifactError
from jgolf.evaluate.stepping import Stepper, repeatable_options
from jgolf.model.functional import Params

STREAMS_OF_LANE = 16
USUAL_STREAMS = 512
"""The most that are taken unless a number is asked for."""
_STEPS_AT_ONCE = 32  # that the device may be ahead
_PROBE_STEPS = 3

Advance = Callable[[int], None]


def num_streams(num_tokens: int, context: int, most: int) -> int:
    """Streams for so many tokens: one for each `context` of them, up to `most` and USUAL_STREAMS.

    More than one lane has are rounded to what fills all lanes.
    """
    streams = max(1, min(-(-num_tokens // context), most, USUAL_STREAMS))
    return streams if streams <= STREAMS_OF_LANE else round(streams / STREAMS_OF_LANE) * STREAMS_OF_LANE


class Coder:
    """A model that codes tokens, on this machine."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        streams: int,
        context: int,
        seq_len: int,
        documents: bool = False,
        bos_id: int = BOS_ID,
    ):
        """
        Args:
          config: the network.
          params: its parameters.
          streams: read side by side.
          context: most tokens that a prediction sees.
          seq_len, documents: as the model was trained; see `Stepper`.
          bos_id: what every stream begins after.
        """
        self.streams, self.context = streams, context
        self._stepper = Stepper(config, params, streams, context, seq_len, documents)
        self._cumulative = _cumulative()
        self._vocab_size, self._bos_id = config.vocab_size, bos_id
        self._lanes = -(-streams // STREAMS_OF_LANE)

    @cached_property
    def probe(self) -> bytes:
        """Tells whether a machine's arithmetic is another's: a hash of what the programs make of fixed tokens."""
        digest, rows = hashlib.blake2b(digest_size=HASH_BYTES), np.arange(self.streams)
        self._stepper.restart()
        for number in range(_PROBE_STEPS):
            logits = self._stepper((rows * 31 + number * 17) % self._vocab_size)
            digest.update(np.asarray(logits))
        digest.update(np.asarray(self._cumulative(logits)))
        return digest.digest()

    def encode(self, tokens: Int[np.ndarray, " tokens"], advance: Advance = lambda tokens: None) -> tuple[bytes, Nats]:
        """Codes tokens.

        Args:
          tokens: ids.
          advance: is told of every few more of them.

        Returns:
          Their bytes, and the information of each of them.

        Raises:
          ArtifactError: the model's probabilities are not finite.
        """
        there = self._places(len(tokens))
        rows = np.zeros(there.shape, np.int32)
        rows[there] = tokens
        encoder, found, waiting = Encoder(self._lanes), [], []
        inputs = np.full(self.streams, self._bos_id, np.int32)
        self._stepper.restart()
        for place, symbols in enumerate(rows.T):
            logits = self._stepper(inputs)
            waiting.append(intervals_of(self._cumulative(logits), logits, symbols))
            inputs = symbols
            if len(waiting) == _STEPS_AT_ONCE or place == rows.shape[1] - 1:
                advance(int(np.count_nonzero(there[:, len(found) : len(found) + len(waiting)])))
                found += jax.device_get(waiting)
                waiting = []
        nats = np.where(there, np.stack([nats for _, nats in found], axis=1), 0)
        if not np.isfinite(nats).all():
            raise ArtifactError("the model's probabilities are not finite, so that nothing can be compressed by it")
        for place in reversed(range(len(found))):
            starts, frequencies = found[place][0]
            for lanes, streams in reversed(list(self._turns(there[:, place]))):
                encoder.push(lanes, starts[streams], frequencies[streams])
        return encoder.finish(), nats

    def decode(
        self, data: bytes, num_tokens: int, advance: Advance = lambda tokens: None
    ) -> Int[np.ndarray, " tokens"]:
        """The so many tokens that `encode` coded; see there.

        Raises:
          Damaged: the data are not what it returned for so many tokens.
        """
        there, decoder, found, told = self._places(num_tokens), Decoder(data, self._lanes), [], 0
        inputs = np.full(self.streams, self._bos_id, np.int32)
        self._stepper.restart()
        for place in range(there.shape[1]):
            inputs = decoder.symbols(self._cumulative(self._stepper(inputs)), there[:, place])
            found.append(inputs)
            if len(found) % _STEPS_AT_ONCE == 0 or len(found) == there.shape[1]:
                decoder.check()
                advance(int(np.count_nonzero(there[:, told : len(found)])))
                told = len(found)
        decoder.finish()
        return np.stack(jax.device_get(found), axis=1)[there]

    def _places(self, num_tokens: int) -> Bool[np.ndarray, "streams steps"]:
        """Where the streams have tokens; their lengths differ by one at most."""
        lengths = np.diff(np.arange(self.streams + 1) * num_tokens // self.streams)
        return np.arange(lengths.max()) < lengths[:, None]

    def _turns(
        self, there: Bool[np.ndarray, " streams"]
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
        """The lanes of each turn, and the streams that they serve in it, of those that are there."""
        for first in range(0, self.streams, self._lanes):
            lanes = np.flatnonzero(there[first : first + self._lanes])
            if len(lanes):
                yield lanes, first + lanes


@cache
def _cumulative() -> Callable[[Float[Array, "B V"]], Int[Array, "B V+1"]]:
    """`cumulative`, compiled as the steps are."""
    return jax.jit(cumulative, compiler_options=repeatable_options())
