"""Probabilities of all tokens: whether they sum to one, are fixed before the target is known, and are the score."""

from __future__ import annotations

import numpy as np

from jgolf.audit.checks import Check, largest_rounding, mean_rounding, sum_rounding, times
from jgolf.audit.scorer import Audited, Told, largest, largest_change
from jgolf.audit.tries import Tried
from jgolf.data.text import Text
from jgolf.evaluate.score import UNSCORED
from jgolf.watch import Progress, unobserved


def normalisation(tried: Tried) -> list[Check]:
    """What the scorer tells of its predictions, against one another and against its scores."""
    base, config = tried.base, tried.audited.config
    told = base.heard.told
    missing = [
        Check(
            "normalisation",
            f"{len(base.heard.asked)} targets: of how many the scorer does not tell how it predicts them",
            len(base.heard.asked) - len(told),
            0,
        )
    ]
    if not told:
        return missing
    deviation = tried.spread
    sums = np.array([_sum(one.every_token) for one in told.values()])
    entries = np.array([base.nats[target] - _entry(one, base.text, target) for target, one in told.items()])
    fixed, scored = 0.0, 0.0
    for change, run in tried.changed:
        if change.target in told and change.target in run.heard.told:
            after = run.heard.told[change.target]
            fixed = max(fixed, largest_change(told[change.target].every_token, after.every_token))
            scored = max(scored, largest(run.nats[change.target] - _entry(after, run.text, change.target)))
        else:
            fixed = scored = np.inf
    count = len(told)
    why = f"the tolerances are what rounding in another order makes of logits of standard deviation {deviation:.2f}"
    return [
        *missing,
        Check(
            "normalisation",
            f"probabilities of all {config.vocab_size:,} tokens at {count} targets: |sum − 1|",
            largest(sums - 1),
            sum_rounding(config.vocab_size),
        ),
        Check(
            "normalisation",
            f"score of {count} targets against their own probability: largest difference, nats",
            largest(entries),
            largest_rounding(config, deviation),
            why,
        ),
        Check(
            "normalisation",
            "the same: mean difference, nats",
            largest(entries.mean()),
            mean_rounding(config, deviation, count),
        ),
        Check(
            "normalisation",
            f"another token in the target's place, {times(len(tried.changed))}: change of the probabilities, nats",
            fixed,
            tried.tolerance,
        ),
        Check(
            "normalisation",
            "the other token's score against its own probability: largest difference, nats",
            scored,
            largest_rounding(config, deviation),
        ),
    ]


def plain_network(tried: Tried) -> list[Check]:
    """The scores against the network as it is written, in float32, with the weights and additions of the moment."""
    base, config, told = tried.base, tried.audited.config, tried.base.heard.told
    differences = np.array([base.nats[target] - one.plainly for target, one in told.items()])
    if not len(differences):
        return []
    deviation, learnt = tried.spread, sum(one.number > 0 for one in told.values())
    by = f", {learnt} of them by weights that had learnt" if tried.audited.learns else ""
    return [
        Check(
            "plain network",
            f"{len(told)} targets scored again in float32{by}: largest difference, nats",
            largest(differences),
            largest_rounding(config, deviation),
            f"scored in {config.compute_dtype}",
        ),
        Check(
            "plain network",
            "the same: mean difference, nats",
            largest(differences.mean()),
            mean_rounding(config, deviation, len(told), tried.surprise),
        ),
    ]


def whole_vocabulary(audited: Audited, text: Text, bos_id: int, count: int, seed: int, progress: Progress) -> Check:
    """Every token in the place of a short text's last one, scored each time: nothing is asked but scores.

    Args:
      audited: the scorer.
      text: of which a short piece is taken, from the start of a document where there is one long enough.
      bos_id: the token that begins documents.
      count: short texts; 0 tries none.
      seed: of their choice.
      progress: see `jgolf.watch.Progress`.
    """
    size, length = audited.config.vocab_size, audited.shortest
    tried = f"each of {size:,} tokens as the last of a text of {length:,}"
    if not count:
        return Check("normalisation", tried, 0, None, f"{size:,} scorings a text: --every-token 1 takes the time")
    starts = text.starts[text.starts + length <= len(text.tokens)]
    random = np.random.default_rng(seed)
    chosen = random.choice(starts if len(starts) else np.zeros(1, int), count).tolist()
    every = [(start, token) for start in chosen for token in range(size)]
    nats = np.zeros((count, size))
    for index, (start, token) in enumerate(progress(every, len(every))):
        tokens = np.array(text.tokens[start : start + length])
        tokens[-1] = token
        nats.flat[index] = audited.score(Text.of(tokens, bos_id), observe=unobserved).nats[-1]
    if np.any(nats == UNSCORED):
        return Check("normalisation", tried, np.inf, 0, "the last token of a text was not scored")
    figure = largest(np.array([_sum(row) for row in nats]) - 1)
    told = f"{tried}, {times(count)}: |sum of their probabilities − 1|"
    return Check("normalisation", told, figure, sum_rounding(size))


def _sum(every_token: np.ndarray) -> float:
    return float(np.exp(-every_token.astype(np.float64)).sum())


def _entry(told: Told, text: Text, target: int) -> float:
    return float(told.every_token[text.tokens[target + 1]])
