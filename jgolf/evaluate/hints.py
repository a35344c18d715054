"""Hints at the next token: what followed the last time that the text read the same.

For each target one token at most is hinted at, from tokens that are known when it is scored, and by counting alone: no
network, and nothing that knows the target. What a hint is worth is in `jgolf.evaluate.tilt`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from jgolf.config import HintsConfig

NONE = -1
"""In place of a token, where nothing is hinted at."""


class Order(NamedTuple):
    """In which order targets are scored, an entry each, and which tokens are known before; places are in that order.

    A target is predicted from its document so far, and from the tokens of all places before `shared`. Documents are
    whole and in one piece.
    """

    targets: Int[np.ndarray, " targets"]
    """Of the text: target i is token i + 1."""
    own: Int[np.ndarray, " targets"]
    """Place of the first target of its document."""
    shared: Int[np.ndarray, " targets"]
    """Place up to which all documents are known, not behind `own`."""


def in_order_of_text(starts: Int[np.ndarray, " documents"], num_targets: int) -> Order:
    """For scorers that go through the text from its start: everything before a target is known."""
    targets = np.arange(num_targets)
    own = starts[np.searchsorted(starts, targets, side="right") - 1]
    return Order(targets, own, own)


def hints_of(tokens: Int[np.ndarray, " tokens"], order: Order, settings: HintsConfig) -> Int32[np.ndarray, " targets"]:
    """The token that is hinted at for each target of the text, or NONE.

    Of the contexts of `settings.orders` tokens, which stay within the document, the longest counts that is known
    `settings.min_count` times or more. It hints at the token that followed the last time, if that is what followed
    `settings.share` of all times, or more.

    Args:
      tokens: of the text.
      order: in which its targets are scored.
      settings: which contexts, and when they hint.
    """
    inputs, followed = (tokens[order.targets + step].astype(np.int64) for step in (0, 1))
    depth = np.arange(len(inputs)) - order.own
    found = np.full(len(inputs), NONE)
    context, length = inputs, 1
    for wanted in settings.orders:
        while length < wanted:
            longer = min(2 * length, wanted)
            context, length = _longer(context, longer - length, depth >= longer - 1, settings.min_count), longer
        places, hint = _hints_by(context, followed, order, settings)
        found[places] = hint
    hints = np.full(len(tokens) - 1, NONE, np.int32)
    hints[order.targets] = found
    return hints


def _longer(
    context: Int[np.ndarray, " targets"], by: int, fits: Bool[np.ndarray, " targets"], min_count: int
) -> Int[np.ndarray, " targets"]:
    """Numbers for contexts that are longer by so many tokens, equal where these are the same.

    Each is made of two shorter ones, which together are all of it. Those that do not fit, or do not occur more than
    `min_count` times, so that neither they nor longer ones will ever hint, have NONE.
    """
    fits = fits & (context != NONE)
    fits[by:] &= context[:-by] != NONE
    places = np.flatnonzero(fits)
    pairs = context[places] * (context.max(initial=0) + 1) + context[places - by]
    _, number, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    found = np.full(len(context), NONE, np.int64)
    found[places] = np.where(counts[number] > min_count, number, NONE)
    return found


class _Counts:
    """How often each of several things was there before a place: sorted, so that counting is looking up."""

    def __init__(self, things: Int[np.ndarray, " n"], places: Int[np.ndarray, " n"], num_places: int):
        """Things by number, and where they are; those of one number in order."""
        by = np.argsort(things, kind="stable")
        self._keys, self._num_places = things[by] * num_places + places[by], num_places

    def before(self, things: Int[np.ndarray, " m"], places: Int[np.ndarray, " m"] | int) -> Int[np.ndarray, " m"]:
        """Those of these numbers before these places, and all of lower numbers."""
        return np.searchsorted(self._keys, things * self._num_places + places)


def _hints_by(
    context: Int[np.ndarray, " targets"], followed: Int[np.ndarray, " targets"], order: Order, settings: HintsConfig
) -> tuple[Int[np.ndarray, " matched"], Int[np.ndarray, " matched"]]:
    """Places at which a context of one length is known often enough, and the hint there, or NONE."""
    places = np.flatnonzero(context != NONE)
    places = places[np.argsort(context[places], kind="stable")]
    things, own, shared = context[places], order.own[places], order.shared[places]
    counts = _Counts(things, places, len(context))
    known, first_own, now = counts.before(things, shared), counts.before(things, own), np.arange(len(places))
    times = known - counts.before(things, 0) + now - first_own
    matched = times >= settings.min_count

    # The context with what followed it, by number; the latest time is the own document's, if it was there.
    _, pairs = np.unique(things * (followed.max(initial=0) + 1) + followed[places], return_inverse=True)
    latest = np.where(now > first_own, now - 1, known - 1)[matched]
    hinted, counts = pairs[latest], _Counts(pairs, places, len(context))
    same = (
        counts.before(hinted, shared[matched])
        - counts.before(hinted, 0)
        + counts.before(hinted, places[matched])
        - counts.before(hinted, own[matched])
    )
    hint = np.where(same >= settings.share * times[matched], followed[places[latest]], NONE)
    return places[matched], hint
