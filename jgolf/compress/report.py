"""What compression came to: the true size beside the one that the model's probabilities predict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jgolf.compress.container import Segment

Nats = Float[np.ndarray, "streams steps"]
"""Information of a segment's tokens by the model's unrounded probabilities; 0 where a stream has ended."""


@dataclass
class Report:
    """What became of a file.

    Attributes:
      size: bytes of the original.
      compressed: bytes of the compressed file.
      tokens: that the model coded.
      streams: most that they were cut into.
      coded: bytes of these tokens.
      nats: their information by the model.
      rest: bytes of what they do not hold.
      without_model: bytes of the original in segments that LZMA makes smaller than the model does.
      early, late: number and nats of the tokens with less than half a context before them, and of the others.
      seconds: what it took.
    """

    size: int
    compressed: int = 0
    tokens: int = 0
    streams: int = 0
    coded: int = 0
    rest: int = 0
    without_model: int = 0
    early: tuple[int, float] = (0, 0.0)
    late: tuple[int, float] = (0, 0.0)
    seconds: float = 0.0

    def add(self, segment: Segment, nats: Nats, context: int) -> None:
        """Counts a segment in."""
        if not segment.num_tokens:
            self.without_model += segment.size
            return
        self.tokens += segment.num_tokens
        self.streams = max(self.streams, segment.streams)
        self.coded += len(segment.coded)
        self.rest += len(segment.squeezed)
        self.early = _plus(self.early, nats[:, : context // 2])
        self.late = _plus(self.late, nats[:, context // 2 :])

    @property
    def predicted(self) -> float:
        """Bytes of the tokens by the model's own probabilities, − Σ log2 p / 8."""
        return (self.early[1] + self.late[1]) / math.log(2) / 8

    @property
    def overhead(self) -> float:
        """What coding added to that, as a part of it; NaN where nothing was coded."""
        return self.coded / self.predicted - 1 if self.predicted else math.nan

    @property
    def bits(self) -> tuple[float, float]:
        """Bits of an early token and of a late one, by the model; NaN where there are none."""
        return tuple(nats / count / math.log(2) if count else math.nan for count, nats in (self.early, self.late))

    @property
    def bits_per_byte(self) -> float:
        """Bits of the compressed file for a byte of the original; NaN for an empty one."""
        return 8 * self.compressed / self.size if self.size else math.nan

    @property
    def bytes_per_s(self) -> float:
        """Bytes of the original in a second."""
        return self.size / max(self.seconds, 1e-9)


def _plus(counted: tuple[int, float], nats: Nats) -> tuple[int, float]:
    return counted[0] + int(np.count_nonzero(nats)), counted[1] + float(np.sum(nats, dtype=np.float64))
