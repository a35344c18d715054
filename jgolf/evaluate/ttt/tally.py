"""What has been scored so far, and how it goes."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Int

from jgolf.data.text import Text
from jgolf.evaluate.score import UNSCORED
from jgolf.watch import Tell


class Tally:
    """The scores of a text's targets as they come in.

    Attributes:
      nats: of each target, UNSCORED where it has not been scored yet.
      num_scored: how many have.
    """

    def __init__(self, text: Text, tell: Tell):
        self.nats = np.full(len(text.tokens) - 1, UNSCORED)
        self.num_scored = self._num_bytes = 0
        self._bits = 0.0
        self._text, self._tell = text, tell

    def add(self, targets: Int[np.ndarray, " scored"], nats: Float32[np.ndarray, " scored"]) -> None:
        """Takes in scores, and tells how far that is."""
        self.nats[targets] = nats
        self.num_scored += len(targets)
        self._bits += float(np.sum(nats, dtype=np.float64)) / math.log(2)
        if self._text.bytes is not None:
            self._num_bytes += int(np.sum(self._text.target_bytes[targets], dtype=np.int64))
        self._tell(self.num_scored, f"{self._bits / self._num_bytes:.4f} bits per byte" if self._num_bytes else "")

    def restore(self, nats: Float32[np.ndarray, " targets"]) -> None:
        """Takes in all scores of an evaluation that was interrupted."""
        targets = np.flatnonzero(nats != UNSCORED)
        self.add(targets, nats[targets])
