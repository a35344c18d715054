"""What a scorer predicts targets from and with, handed out to whoever looks, so that they can be predicted again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from jgolf.config import ModelConfig
from jgolf.evaluate.windows import Windows
from jgolf.model.functional import Params, token_losses
from jgolf.model.lora import NO_ADDITIONS, Additions

AT_ONCE = 1024
"""Tokens of the vocabulary that are tried in a target's place by one pass."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Windows that are about to be scored, and the network as it is at that moment.

    They can be predicted again until the scorer goes on: what it trains may be given up then.

    Attributes:
      config, params: the network.
      tokens: the text's.
      windows: what is run, and which of its targets are scored.
      width: to which windows are padded at their end.
      how: `piece_length`, `looped` and `rotary_length` of `jgolf.model.functional`, where they are given.
      additions: window → its low-rank additions.
    """

    config: ModelConfig
    params: Params
    tokens: np.ndarray
    windows: Windows
    width: int
    how: Mapping[str, int]
    additions: Callable[[int], Additions] = lambda window: NO_ADDITIONS

    def window_of(self, target: int) -> int | None:
        """Number of the window that scores a target; None where none does."""
        start, length, first_scored = self.windows
        found = np.flatnonzero((start + first_scored <= target) & (target < start + length))
        return int(found[0]) if len(found) else None

    def every_token(self, target: int) -> Float32[np.ndarray, " vocab"]:
        """Nats of every token of the vocabulary in the target's place, by the function that scores."""
        size = self.config.vocab_size
        tried = np.minimum(np.arange(-(-size // AT_ONCE) * AT_ONCE), size - 1).astype(np.int32)
        parts = [self._nats(self.config, target, part) for part in tried.reshape(-1, AT_ONCE)]
        return np.concatenate(parts)[:size]

    def plainly(self, target: int) -> float:
        """Nats of the target itself by the network as it is written, in float32."""
        return float(self.plain_nats(target, self.tokens[target + 1 : target + 2].astype(np.int32))[0])

    def plain_nats(self, target: int, tried: Int32[np.ndarray, " tried"]) -> Float32[np.ndarray, " tried"]:
        """The same of any tokens in the target's place."""
        config = dataclasses.replace(self.config, kernels="plain", compute_dtype="float32")
        with jax.default_matmul_precision("highest"):
            return self._nats(config, target, tried)

    def _nats(self, config: ModelConfig, target: int, tried: np.ndarray) -> np.ndarray:
        """Of tokens in the target's place, from those before it in its window."""
        window = self.window_of(target)
        start = int(self.windows.start[window])
        seen = np.zeros((1, self.width), np.int32)
        seen[0, : target + 1 - start] = self.tokens[start : target + 1]
        positions = np.full((1, len(tried)), target - start, np.int32)
        # One row is one device's work, also where several hold the weights.
        given = jax.device_put((self.params, dict(self.additions(window))), jax.local_devices()[0])
        run = _losses(config, tuple(sorted(self.how.items())))
        return np.asarray(run(*given, seen, tried[None], positions))[0]


@cache
def _losses(config: ModelConfig, how: tuple[tuple[str, int], ...]) -> Callable:
    def losses(params, additions, inputs, targets, positions):
        return token_losses(config, params, inputs, targets, positions, additions, **dict(how)).astype(jnp.float32)

    return jax.jit(losses)
