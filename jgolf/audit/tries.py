"""Texts changed behind a target: what was scored before must not move, and neither must how the target is predicted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jgolf.audit.checks import LARGEST_SPREAD, LARGEST_SURPRISE, Check, largest_rounding, times
from jgolf.audit.scorer import Audited, Run, documents_of, heard, largest, largest_change
from jgolf.data.text import Text
from jgolf.errors import DataError
from jgolf.evaluate.score import UNSCORED
from jgolf.progress import counted

NOISE = 4.0
"""Times the largest difference of two scorings of one text, where these are not the same to the last bit."""
MOST_NOISE = 1e-3
"""Nats that two scorings of one text may differ by; a larger noise could hide anything."""


@dataclass(frozen=True)
class Changed:
    """A text of which some tokens were changed, the first of them a target's own.

    Attributes:
      target: that one.
      text: as long as it was, documents and all.
      positions: of the changed tokens.
    """

    target: int
    text: Text
    positions: Int[np.ndarray, " changed"]


class Tried(NamedTuple):
    """A text as it is, scored twice, and changed ones."""

    audited: Audited
    base: Run
    again: Run
    changed: list[tuple[Changed, Run]]

    @property
    def noise(self) -> float:
        """Largest difference of two scorings of one text."""
        return largest_change(self.base.nats, self.again.nats)

    @property
    def tolerance(self) -> float:
        """What a score may move by that must not move."""
        return NOISE * self.noise

    @property
    def spread(self) -> float:
        """Standard deviation of the logits at a position, the largest of those looked at."""
        with np.errstate(invalid="ignore"):
            found = [largest(np.std(told.every_token)) for told in self.base.heard.told.values()]
        return min(max(found, default=0.0), LARGEST_SPREAD)

    @property
    def surprise(self) -> float:
        """What the targets' nats are above what the scorer expects, or below it where negative, beyond chance.

        Chance is two standard errors of the mean: what targets that come as often as is said show by themselves.
        """
        with np.errstate(all="ignore"):
            found = [
                self.base.nats[target] - np.nansum(np.exp(-told.every_token) * told.every_token)
                for target, told in self.base.heard.told.items()
            ]
            if len(found) < 2 or not np.all(np.isfinite(found)):
                return 0.0
        mean, chance = float(np.mean(found)), 2 * float(np.std(found, ddof=1)) / math.sqrt(len(found))
        return math.copysign(min(max(abs(mean) - chance, 0.0), LARGEST_SURPRISE), mean)

    @property
    def why(self) -> str:
        """Where the tolerance comes from."""
        if self.noise == 0:
            return "two scorings of one text agree to the last bit, so nothing may move at all"
        return f"tolerance: {NOISE:g} times what two scorings of one text differ by"


def tried(audited: Audited, text: Text, bos_id: int, samples: int, told: int, seed: int) -> Tried:
    """Scores a text as it is, and with tokens changed behind sampled targets.

    Args:
      audited: the scorer.
      text: what to try it on.
      bos_id: the token that begins documents, which none is changed to or from.
      samples: changed texts.
      told: further targets to be told about, of the text as it is.
      seed: of the sample.

    Raises:
      DataError: the text has no token that could be changed.
    """
    random = np.random.default_rng(seed)
    first = heard(audited, text)
    targets = list(_targets(audited, first, bos_id, samples, random))
    further = random.choice(np.flatnonzero(first.nats != UNSCORED), told).tolist()
    base = heard(audited, text, {*targets, *further}, plainly=True)
    changed = []
    for index, target in enumerate(targets):
        change = changed_behind(audited, text, target, bos_id, random, every=index % 2 == 1)
        changed.append((change, heard(audited, change.text, [target])))
    return Tried(audited, base, first, changed)


def _targets(audited: Audited, run: Run, bos_id: int, samples: int, random: np.random.Generator) -> Iterator[int]:
    """Targets whose own token can be changed: by turns at documents' edges, last of a lesson, and anywhere."""
    text, number = run.text, run.heard.number
    document = documents_of(text)
    can = (text.tokens[1:] != bos_id) & (run.nats != UNSCORED)
    can[-1] = False  # there would be nothing behind it
    everywhere = np.flatnonzero(can)
    if not len(everywhere):
        raise DataError("none of the tokens can be changed: give more text, or more --try-tokens")
    ends = np.flatnonzero(can & np.append(text.tokens[2:] == bos_id, False))
    begins = np.flatnonzero(can & np.insert(document[1:] != document[:-1], 0, True))
    lessons = np.flatnonzero(can & np.append((document[1:] != document[:-1]) | (number[1:] != number[:-1]), False))
    kinds = lessons if audited.learns else everywhere, everywhere, ends, begins
    for index in range(samples):
        places = kinds[index % len(kinds)]
        yield int(random.choice(places if len(places) else everywhere))


def changed_behind(
    audited: Audited, text: Text, target: int, bos_id: int, random: np.random.Generator, every: bool
) -> Changed:
    """The text with the target's token changed, or with all behind it: to the text's end, or the document's.

    Documents keep their lengths, by which some scorers order them.
    """
    end = len(text.tokens)
    if audited.reorders:
        later = text.starts[text.starts > target]
        end = int(later[0]) if len(later) else end
    positions = np.arange(target + 1, end if every else target + 2)
    positions = positions[text.tokens[positions] != bos_id]
    tokens = np.array(text.tokens)
    size = audited.config.vocab_size
    others = np.flatnonzero(np.arange(size) != bos_id)
    # A step through the other tokens that is never a whole round: each becomes another one.
    place = np.searchsorted(others, tokens[positions])
    steps = random.integers(1, len(others), len(positions))
    tokens[positions] = others[(place + steps) % len(others)]
    return Changed(target, dataclasses.replace(text, tokens=tokens), positions)


def may_move(tried: Tried, changed: Changed) -> Bool[np.ndarray, " targets"]:
    """Targets whose score may depend on a changed token: as their own, as one before them, or by what was learnt.

    A scorer that takes documents in its own order may know a token from before in the same document, or one whose score
    was counted before; any other one knows what stands before in the text.
    """
    num_targets = len(tried.base.nats)
    target, own = np.arange(num_targets), changed.positions - 1
    if not tried.audited.reorders:
        return target >= own.min()
    document, number = documents_of(changed.text), tried.base.heard.number
    first = np.full(document[-1] + 1, num_targets)
    np.minimum.at(first, document[own], own)
    moved = target >= first[document]
    return moved | (number > number[own].min()) if tried.audited.learns else moved


def causality(tried: Tried) -> list[Check]:
    """Nothing that was scored before a changed token moves; nothing does where the text is cut, either."""
    again = "the same text scored again: largest difference, nats"
    checks = [Check("repeatable", again, tried.noise, MOST_NOISE)]
    for several, what in ((False, "one token"), (True, "all tokens from one on")):
        own = [(change, run) for change, run in tried.changed if (len(change.positions) > 1) == several]
        if not own:
            continue
        figure = held = 0
        for change, run in own:
            rest = ~may_move(tried, change)
            held += int(np.count_nonzero(rest))
            figure = max(figure, largest_change(tried.base.nats[rest], run.nats[rest]))
        told = f"{what} changed, {times(len(own))}: largest change of {held:,} scores before, nats"
        checks.append(Check("causality", told, figure, tried.tolerance))
    still = sum(run.nats[change.target] == tried.base.nats[change.target] for change, run in tried.changed)
    told = f"the changed tokens' own scores: how many of {len(tried.changed)} did not move"
    size = f"{len(tried.base.nats):,} targets of {counted(len(tried.base.text.starts), 'document')}"
    return [*checks, Check("causality", told, still, 0, f"{size}, which keep their lengths; {tried.why}")]


def cut(tried: Tried, bos_id: int) -> Check:
    """Scores of the text's first part, without the rest."""
    audited, base = tried.audited, tried.base
    told = "the text cut behind a token"
    if audited.learns:
        why = "not cut: the order, or the learning rates, of a scorer that learns depend on lengths"
        return Check("causality", told, 0, None, why)
    figure = held = 0
    ends = sorted({change.target for change, _ in tried.changed})[1::2] or [tried.changed[0][0].target]
    for end in ends:
        short = base.text.first(max(end + 1, audited.shortest))
        if short.tokens[-1] == bos_id:
            short = short.first(len(short.tokens) - 1)
        found = heard(audited, short).nats
        both = (found != UNSCORED) & (base.nats[: len(found)] != UNSCORED)
        held += int(np.count_nonzero(both))
        figure = max(figure, largest_change(base.nats[: len(found)][both], found[both]))
    told += f", {times(len(ends))}: largest change of {held:,} scores before, nats"
    why = "a shorter text is scored in batches of another shape, so sums may be rounded in another order"
    return Check("causality", told, figure, largest_rounding(audited.config, tried.spread), why)


def score_before_update(tried: Tried, lessons: int, seed: int) -> list[Check]:
    """What is scored together does not depend on what is learnt from it."""
    audited, base = tried.audited, tried.base
    if not audited.learns:
        return [Check("score before update", "nothing: this scorer does not learn", 0, 0, "trivially true")]
    number = base.heard.number
    figure, count = 0.0, 0
    for change, run in tried.changed:
        if len(change.positions) > 1:
            continue
        beside = (number == number[change.target]) & ~may_move(tried, change)
        count += int(np.count_nonzero(beside))
        figure = max(figure, largest_change(base.nats[beside], run.nats[beside]))
    checks = [
        Check(
            "score before update",
            f"a token that is learnt from changed: largest change of {count:,} scores beside it, nats",
            figure,
            tried.tolerance,
        )
    ]
    random = np.random.default_rng(seed)
    parts = np.unique(number[number >= 0])[:-1]
    if not len(parts):
        why = "nothing is learnt from so short a text: give more --try-tokens"
        return [*checks, Check("score before update", "learning switched off", 0, None, why)]
    figure = learnt = 0.0
    parts = random.choice(parts, min(lessons, len(parts)), replace=False)
    for part in parts:
        run = heard(audited, base.text, lessons=int(part))
        until = number <= part
        figure = max(figure, largest_change(base.nats[until], run.nats[until]))
        learnt = max(learnt, largest_change(base.nats[~until], run.nats[~until]))
    what = f"{number.max():,} lessons, {counted(base.heard.phases, 'phase')} of all weights"
    note = f"{what}; later scores moved by up to {learnt:.2e} nats" if learnt else f"{what}; none moved a later score"
    told = f"no learning from a part on, {times(len(parts))}: largest change of its score and those before, nats"
    return [*checks, Check("score before update", told, figure, tried.tolerance if learnt else None, note)]
