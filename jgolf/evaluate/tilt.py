"""Predictions tilted to hints, by as much as tilting was worth so far.

A hinted token h gets β more in its logit: p′(a) = p(a) · e^(β·[a = h]) / Z with Z = 1 + p(h) · (e^β − 1). Several β are
mixed, each with a weight that is the product of the p′/p that it gave to the targets before: Bayes' rule, begun with
equal weights. So p′ is a distribution, as a mixture of such, and needs of the network log p of target and hint alone.
As in the challenge's pull requests #1514, #2050 and #2135.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from jgolf.config import HintsConfig, ModelConfig
from jgolf.data.text import Text
from jgolf.evaluate.hints import NONE, Order, hints_of, in_order_of_text
from jgolf.evaluate.nats import ScoredTargets
from jgolf.evaluate.predictions import Predictions
from jgolf.evaluate.score import UNSCORED, HintTotals, Scored, Scorer
from jgolf.model.functional import Params
from jgolf.watch import Observer, unobserved

LogWeights = Callable[[int], Float[np.ndarray, " strengths"]]
"""Target with a hint → the log weights of the β when it is scored; they need not sum to one."""


def log_ratios(
    strengths: Float[np.ndarray, " strengths"], hint_nats: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "n strengths"]:
    """log p′ − log p of targets, for each strength, in float64.

    Args:
      strengths: the β.
      hint_nats: −log p of the hinted tokens.
      hit: where they are the targets.
    """
    hinted = np.exp(-np.float64(hint_nats))[:, None]
    return strengths * hit[:, None] - np.log1p(hinted * np.expm1(strengths))


def mixed(
    log_weights: Float[np.ndarray, "*n strengths"], log_ratios: Float[np.ndarray, "n strengths"]
) -> Float[np.ndarray, " n"]:
    """log p′ − log p of the mixture."""
    return np.logaddexp.reduce(log_weights + log_ratios, axis=-1) - np.logaddexp.reduce(log_weights, axis=-1)


class Tilt:
    """The hints for a text, and how good they have been.

    Attributes:
      strengths: the β that are mixed.
      hints: of each target the hinted token, or NONE.
      log_weights: of the β, by all targets that they were told of.
      gained_nats: of all targets that were tilted.
    """

    def __init__(self, tokens: Int[np.ndarray, " tokens"], order: Order, settings: HintsConfig):
        """Finds the hints; see `jgolf.evaluate.hints.hints_of`."""
        began_s = time.perf_counter()
        self.hints = hints_of(tokens, order, settings)
        self.strengths = np.array(settings.strengths)
        self.log_weights, self.gained_nats = np.zeros(len(self.strengths)), 0.0
        self._hit = self.hints == tokens[1:]
        self._seconds = time.perf_counter() - began_s

    def log_ratios(
        self, targets: Int[np.ndarray, " n"], hint_nats: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n strengths"]:
        """log p′ − log p of targets that have hints, for each strength."""
        return log_ratios(self.strengths, hint_nats, self._hit[targets])

    def tilted(
        self,
        nats: Float32[np.ndarray, " n"],
        log_weights: Float[np.ndarray, "n strengths"],
        log_ratios: Float[np.ndarray, "n strengths"],
    ) -> Float32[np.ndarray, " n"]:
        """Nats of targets that have hints, with each one's weights."""
        gained = mixed(log_weights, log_ratios)
        self.gained_nats += float(gained.sum())
        return (nats - gained).astype(np.float32)

    def tilted_in_turn(
        self,
        nats: Float32[np.ndarray, " targets"],
        hint_nats: Float32[np.ndarray, " targets"],
        scored: Bool[np.ndarray, " targets"],
    ) -> tuple[Float32[np.ndarray, " targets"], LogWeights]:
        """A text's nats, each with the weights that those of all targets before it give; and these weights.

        Args:
          nats, hint_nats: of the text's targets, and of the tokens hinted at in their places.
          scored: which targets are.
        """
        fired = np.flatnonzero(scored & (self.hints != NONE))
        ratios = self.log_ratios(fired, hint_nats[fired])
        after = np.cumsum(ratios, axis=0)
        before = np.concatenate([np.zeros((1, len(self.strengths))), after])[: len(fired)]
        found = nats.copy()
        found[fired] = self.tilted(nats[fired], before, ratios)
        return found, lambda target: before[np.searchsorted(fired, target)]

    def totals(self, scored: Bool[np.ndarray, " targets"]) -> HintTotals:
        """What came of the hints at the targets that were scored."""
        fired = scored & (self.hints != NONE)
        counts = (int(np.count_nonzero(where)) for where in (fired, fired & self._hit))
        return HintTotals(*counts, self.gained_nats, self._seconds)


@dataclass(frozen=True, eq=False)
class TiltedPredictions:
    """`Predictions` of a network whose distributions are tilted; see there.

    Attributes:
      network: the network's own.
      tilt: the hints.
      log_weights: see `LogWeights`.
    """

    network: Predictions
    tilt: Tilt
    log_weights: LogWeights

    def window_of(self, target: int) -> int | None:
        """Number of the window that scores a target; None where none does."""
        return self.network.window_of(target)

    def every_token(self, target: int) -> Float[np.ndarray, " vocab"]:
        """Nats of every token of the vocabulary in the target's place."""
        nats, hint = np.float64(self.network.every_token(target)), self.tilt.hints[target]
        return nats if hint == NONE else nats - self._gained(target, nats[hint], np.arange(len(nats)))

    def plainly(self, target: int) -> float:
        """Nats of the target by the network as it is written, in float32."""
        token, hint = self.network.tokens[target + 1], self.tilt.hints[target]
        if hint == NONE:
            return self.network.plainly(target)
        nats, hint_nats = self.network.plain_nats(target, np.array([token, hint], np.int32))
        return float(nats - self._gained(target, hint_nats, np.array([token]))[0])

    def _gained(self, target: int, hint_nats: float, tokens: np.ndarray) -> np.ndarray:
        """log p′ − log p of these tokens in the target's place."""
        hit = tokens == self.tilt.hints[target]
        ratios = log_ratios(self.tilt.strengths, np.full(len(tokens), hint_nats), hit)
        return mixed(self.log_weights(target), ratios)


def hinted(scorer: Scorer, settings: HintsConfig) -> Scorer:
    """A scorer of `jgolf.evaluate.score` whose predictions are tilted to hints from all of the text before each target.

    How far each is tilted is known, and what is observed told, when the network has scored everything.
    """

    def tilting(
        config: ModelConfig, params: Params, text: Text, *args, observe: Observer = unobserved, **how
    ) -> Scored:
        tilt, events = Tilt(text.tokens, in_order_of_text(text.starts, len(text.tokens) - 1), settings), []
        how |= {"hints": tilt.hints, "observe": lambda *event: events.append(event)}
        found = scorer(config, params, text, *args, **how)
        scored, hint_nats = found.nats != UNSCORED, np.full(len(found.nats), UNSCORED)
        for what, _, value in events:
            if what == "scored":
                hint_nats[value.targets] = value.hint_nats
        nats, log_weights = tilt.tilted_in_turn(found.nats, hint_nats, scored)
        for what, number, value in events:
            if what == "predictions":
                observe(what, number, TiltedPredictions(value, tilt, log_weights))
            else:
                observe(what, number, ScoredTargets(value.targets, nats[value.targets]))
        return found._replace(nats=nats, hints=tilt.totals(scored))

    return tilting
