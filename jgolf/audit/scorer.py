"""A scorer as it is audited, and what is heard of it while it scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from jgolf.config import ModelConfig
from jgolf.data.text import Text
from jgolf.evaluate.score import UNSCORED, Scored


@dataclass(frozen=True)
class Audited:
    """A scorer with everything but the text settled.

    Attributes:
      name: what it is called.
      score: (text, observe=…) → Scored, and with lessons=… where it learns; see `jgolf.evaluate.score` for what it
        hands to `observe`. Nothing else is asked of it.
      config: the network as it is scored on this machine.
      learns: it trains on what it has scored.
      reorders: it takes documents in an order of its own; otherwise a score depends on nothing behind it in the text.
      row: targets that it scores together or not at all; a rest at the text's end is not scored.
      shortest: tokens of the shortest text that shows how it scores.
    """

    name: str
    score: Callable[..., Scored]
    config: ModelConfig
    learns: bool = False
    reorders: bool = False
    row: int = 1
    shortest: int = 2


class Told(NamedTuple):
    """How a target is predicted."""

    every_token: Float[np.ndarray, " vocab"]
    """Nats of every token in its place, float64."""
    plainly: float
    """Nats of the target by the network as it is written, in float32; NaN where nobody asked."""
    number: int
    """How often the scorer had learnt then."""


class Heard:
    """An observer of one scoring.

    Attributes:
      times: how often each target was scored.
      number: how often the scorer had learnt when it was scored last, −1 where it was not.
      nats: its score then.
      asked: targets that it asks about.
      told: how each of them was predicted, the first time.
      phases: how often all weights were trained on documents.
    """

    def __init__(self, text: Text, asked: Iterable[int] = (), plainly: bool = False):
        """
        Args:
          text: that will be scored.
          asked: targets to be told about.
          plainly: tell what the network as it is written says of them, too.
        """
        num_targets = len(text.tokens) - 1
        self.times = np.zeros(num_targets, int)
        self.number = np.full(num_targets, -1)
        self.nats: Float32[np.ndarray, " targets"] = np.full(num_targets, UNSCORED)
        self.told: dict[int, Told] = {}
        self.phases = 0
        self.asked = frozenset(map(int, asked))
        self._plainly = plainly

    def __call__(self, what: str, number: int, value: Any) -> None:
        if what == "predictions":
            for target in self.asked - self.told.keys():
                if value.window_of(target) is None:
                    continue
                every_token = np.asarray(value.every_token(target), np.float64)
                plainly = value.plainly(target) if self._plainly else np.nan
                self.told[target] = Told(every_token, plainly, number)
        elif what == "scored":
            np.add.at(self.times, value.targets, 1)
            self.number[value.targets] = number
            self.nats[value.targets] = value.nats
        elif what == "sgd":
            self.phases += bool(value)


def heard(audited: Audited, text: Text, asked: Iterable[int] = (), plainly: bool = False, **how: float) -> Run:
    """Scores a text and listens; see `Heard`."""
    heard = Heard(text, asked, plainly)
    return Run(text, audited.score(text, observe=heard, **how).nats, heard)


class Run(NamedTuple):
    """One scoring of a text."""

    text: Text
    nats: Float32[np.ndarray, " targets"]
    heard: Heard


def documents_of(text: Text) -> Int[np.ndarray, " targets"]:
    """Number of the document that each target's score belongs to: that of the token before it."""
    return np.searchsorted(text.starts, np.arange(len(text.tokens) - 1), side="right") - 1


def largest_change(before: np.ndarray, after: np.ndarray) -> float:
    """Of scores; a target that is scored in one of them only, or to NaN, has changed without bound."""
    with np.errstate(invalid="ignore"):
        change = np.where(before == after, 0.0, np.abs(np.float64(after) - before))
    return largest(change)


def largest(differences: np.ndarray) -> float:
    """The largest magnitude; infinite where there is a NaN, 0 of nothing."""
    return float(np.nan_to_num(np.abs(differences), nan=np.inf, posinf=np.inf).max(initial=0.0))
