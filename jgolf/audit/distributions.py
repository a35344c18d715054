"""Probabilities of all tokens: whether they sum to one, are fixed before the target is known, and are the score."""

from __future__ import annotations

import numpy as np

from jgolf.audit.checks import Check, largest_rounding, mean_rounding, sum_rounding
from jgolf.audit.scorer import Audited, Told, largest_change
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
            "sampled targets that were scored and of which it is not told how they were predicted",
            len(base.heard.asked) - len(told),
            0,
        )
    ]
    if not told:
        return missing
    deviation = tried.spread
    sums = [abs(_sum(one.every_token) - 1) for one in told.values()]
    entries = np.array([base.nats[target] - _entry(one, base.text, target) for target, one in told.items()])
    fixed, scored = 0.0, 0.0
    for change, run in tried.changed:
        if change.target in told and change.target in run.heard.told:
            after = run.heard.told[change.target]
            fixed = max(fixed, largest_change(told[change.target].every_token, after.every_token))
            scored = max(scored, abs(run.nats[change.target] - _entry(after, run.text, change.target)))
        else:
            fixed = scored = np.inf
    count = len(told)
    why = (
        f"rounding in another order, with logits of deviation {deviation:.2f}; the mean of {count} may differ by less, "
        "and shows what is added to all"
    )
    return [
        *missing,
        Check(
            "normalisation",
            f"probabilities of all {config.vocab_size:,} tokens at {count} targets: |sum − 1|",
            max(sums),
            max(sum_rounding(one.every_token) for one in told.values()),
        ),
        Check(
            "normalisation",
            f"score of {count} targets against their own probability: largest difference, nats",
            float(np.nan_to_num(np.abs(entries), nan=np.inf).max()),
            largest_rounding(config, deviation),
            why,
        ),
        Check(
            "normalisation",
            "the same: mean difference, nats",
            float(np.nan_to_num(abs(entries.mean()), nan=np.inf)),
            mean_rounding(config, deviation, count),
        ),
        Check(
            "normalisation",
            f"another token in the target's place, {len(tried.changed)} times: change of the probabilities, nats",
            fixed,
            tried.tolerance,
        ),
        Check(
            "normalisation",
            "the other token's score against its own probability: largest difference, nats",
            float(np.nan_to_num(scored, nan=np.inf)),
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
            float(np.nan_to_num(np.abs(differences), nan=np.inf).max()),
            largest_rounding(config, deviation),
            f"scored in {config.compute_dtype}",
        ),
        Check(
            "plain network",
            "the same: mean difference, nats",
            float(np.nan_to_num(abs(differences.mean()), nan=np.inf)),
            mean_rounding(config, deviation, len(told)),
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
    figure = tolerance = 0.0
    every = [(start, token) for start in chosen for token in range(size)]
    nats = np.zeros((count, size))
    for index, (start, token) in enumerate(progress(every, len(every))):
        tokens = np.array(text.tokens[start : start + length])
        tokens[-1] = token
        nats.flat[index] = audited.score(Text.of(tokens, bos_id), observe=unobserved).nats[-1]
    if np.any(nats == UNSCORED):
        return Check("normalisation", tried, np.inf, 0, "the last token of a text was not scored")
    for row in nats:
        figure, tolerance = max(figure, abs(_sum(row) - 1)), max(tolerance, sum_rounding(row))
    return Check("normalisation", f"{tried}, {count} times: |sum of their probabilities − 1|", figure, tolerance)


def _sum(every_token: np.ndarray) -> float:
    return float(np.exp(-every_token.astype(np.float64)).sum())


def _entry(told: Told, text: Text, target: int) -> float:
    return float(told.every_token[text.tokens[target + 1]])
