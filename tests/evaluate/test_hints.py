"""Hints, and predictions tilted to them, against plain loops over the text."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from jgolf.config import HintsConfig
from jgolf.data.text import Text
from jgolf.errors import JgolfError
from jgolf.evaluate.hints import NONE, Order, hints_of, in_order_of_text
from jgolf.evaluate.score import UNSCORED, documents, packed, rows, score, sliding
from jgolf.evaluate.tilt import hinted, log_ratios, mixed
from jgolf.evaluate.ttt import kept
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.evaluate.ttt.order import batches_of, documents_of, queue_of, scoring_order
from tests.evaluate.test_ttt import MODEL, SETTINGS, Stopped, make_params, make_text, stops_at

HINTS = HintsConfig(orders=(1, 3, 5), min_count=2, share=0.6, strengths=(0.0, 0.7, 2.0))


def repeating(text: Text) -> Text:
    """The same documents, of four words, most of them in turn."""
    random = np.random.default_rng(2).random(len(text.tokens))
    tokens = 2 + np.where(random < 0.75, np.arange(len(text.tokens)), text.tokens) % 4
    return Text.of(np.where(text.tokens == 1, 1, tokens).astype(np.uint16), 1, text.bytes)


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def text():
    return repeating(make_text())


def batch_order(text: Text) -> Order:
    own = documents_of(text.starts, len(text.tokens))
    batches = batches_of(own, SETTINGS.batch_documents)
    return scoring_order(own, batches, queue_of(own, batches))


# --- which token is hinted at --------------------------------------------------------------------


def plain_hints(tokens, known_of, settings):
    """By a search through all that is known: `known_of` gives, in order, targets that are, and the document's start."""
    found = []
    for target in range(len(tokens) - 1):
        known, start_of = known_of(target)
        hint = NONE
        for length in settings.orders:

            def context(at, length=length, start_of=start_of):
                return tuple(tokens[at - length + 1 : at + 1]) if at - length + 1 >= start_of(at) else None

            if context(target) is None:
                continue
            followed = [tokens[at + 1] for at in known if context(at) == context(target)]
            if len(followed) >= settings.min_count:
                often = followed.count(followed[-1]) >= settings.share * len(followed)
                hint = int(followed[-1]) if often else NONE
        found.append(hint)
    return np.array(found)


def start_in(text):
    return lambda target: int(text.starts[text.starts <= target][-1])


def known_in_text(text):
    return lambda target: (range(target), start_in(text))


def known_in_batches(text):
    """Documents of finished batches, then the document so far."""
    own = documents_of(text.starts, len(text.tokens))
    batches = batches_of(own, SETTINGS.batch_documents)

    def targets(document):
        return range(own.start[document], own.start[document] + own.num_targets[document])

    def known(target):
        before = []
        for number in queue_of(own, batches):
            for document in batches[number]:
                if target in targets(document):
                    return [*before, *range(own.start[document], target)], start_in(text)
            before += [at for document in batches[number] for at in targets(document)]

    return known


@pytest.mark.parametrize(
    "settings",
    [HINTS, HintsConfig(orders=(2, 7), min_count=1, share=1.0), HintsConfig(orders=(4,), min_count=3, share=0.5)],
    ids=lambda settings: f"{settings.orders}",
)
@pytest.mark.parametrize("lengths", [(31, 7, 70, 1, 13, 44, 6, 25, 12), (120,), (1, 1, 60)])
def test_hints_by_a_search(settings, lengths):
    text = repeating(make_text(lengths))
    in_text = in_order_of_text(text.starts, len(text.tokens) - 1)
    for order, known in ((in_text, known_in_text(text)), (batch_order(text), known_in_batches(text))):
        expected = plain_hints(text.tokens, known, settings)
        np.testing.assert_array_equal(hints_of(text.tokens, order, settings), expected)
        assert np.count_nonzero(expected != NONE) > 10


def test_hints_do_not_know_what_comes(text):
    for order in (in_order_of_text(text.starts, len(text.tokens) - 1), batch_order(text)):
        before = hints_of(text.tokens, order, HINTS)
        place = np.argsort(order.targets)
        for target in (50, 75, 120, 190):
            tokens = text.tokens.copy()
            tokens[target + 1] = 3 if tokens[target + 1] != 3 else 4
            changed = np.flatnonzero(hints_of(tokens, order, HINTS) != before)
            # Later in the document, or a document that knows it.
            same = order.own[place[changed]] == order.own[place[target]]
            assert np.all(np.where(same, changed > target, order.shared[place[changed]] > place[target]))


def test_texts_without_repeats():
    tokens = np.arange(2, 30, dtype=np.uint16)
    assert np.all(hints_of(tokens, in_order_of_text(np.zeros(1, int), 27), HINTS) == NONE)


# --- tilting -------------------------------------------------------------------------------------


def test_a_tilted_distribution_sums_to_one():
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(9))
    weights, strengths = np.array([0.2, 0.5, 0.3]), np.array(HINTS.strengths)
    hit = np.arange(9) == 4
    gained = mixed(np.log(weights) - 700, log_ratios(strengths, np.full(9, -np.log(p[4])), hit))
    expected = sum(
        weight * p * np.exp(beta * hit) / np.sum(p * np.exp(beta * hit))
        for weight, beta in zip(weights, strengths, strict=True)
    )
    np.testing.assert_allclose(p * np.exp(gained), expected, rtol=1e-12)
    assert abs(np.sum(p * np.exp(gained)) - 1) < 1e-12


class Watched:
    """The network's own nats of every token where there is a hint, and the tilted ones of some targets."""

    def __init__(self):
        self.network, self.tilted = {}, {}

    def __call__(self, what, number, value):
        if what == "predictions":
            for start, length, first in zip(*value.network.windows, strict=True):
                for target in range(start + first, start + length):
                    if value.tilt.hints[target] != NONE:
                        self.network[target] = np.float64(value.network.every_token(target))
                    if target % 5 == 0:
                        self.tilted[target] = value.every_token(target)


def by_hand(text, hints, network, plain, parts, weights):
    """Nats of targets in order, by plain probabilities, and the weights in the end; they move on after each part."""
    found = np.full(len(text.tokens) - 1, np.nan)
    for part in parts:
        given = []
        for target in part:
            if hints[target] == NONE:
                found[target] = plain[target]
                continue
            p, token = np.exp(-network[target]), text.tokens[target + 1]
            tilts = [np.where(np.arange(len(p)) == hints[target], p * math.exp(beta), p) for beta in HINTS.strengths]
            each = np.array([tilted[token] / tilted.sum() for tilted in tilts])
            found[target] = -math.log(weights @ each / weights.sum())
            given.append(each / p[token])
        weights = weights * np.prod(given, axis=0) if given else weights
    return found, weights


# --- scorers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scorer", "arguments"),
    [(rows, [24]), (packed, [24, 48]), (sliding, [24, 8]), (documents, [24, 8])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_scores_by_hand(scorer, arguments, params, text):
    short = text.first(122)
    watched = Watched()
    found = hinted(scorer, HINTS)(MODEL, params, short, *arguments, observe=watched)
    plain = scorer(MODEL, params, short, *arguments)
    scored = np.flatnonzero(plain.nats != UNSCORED)
    hints = plain_hints(short.tokens, known_in_text(short), HINTS)
    one_by_one = [[target] for target in scored]
    expected, _ = by_hand(short, hints, watched.network, plain.nats, one_by_one, np.ones(len(HINTS.strengths)))
    np.testing.assert_allclose(found.nats[scored], expected[scored], atol=2e-5)
    assert np.all(found.nats[plain.nats == UNSCORED] == UNSCORED)
    for target, nats in watched.tilted.items():
        assert abs(np.exp(-np.float64(nats)).sum() - 1) < 1e-6
        np.testing.assert_allclose(nats[short.tokens[target + 1]], found.nats[target], atol=2e-5)
    fired = scored[hints[scored] != NONE]
    right = np.count_nonzero(hints[fired] == short.tokens[fired + 1])
    gained = np.sum(plain.nats[scored], dtype=np.float64) - np.sum(found.nats[scored], dtype=np.float64)
    assert (found.hints.fired, found.hints.hits) == (len(fired), right) and 20 < right < len(fired)
    assert found.hints.gained_nats == pytest.approx(gained, abs=1e-3)
    told = score(lambda *_: found, MODEL, params, short)
    assert told.hints.gained_bpb == pytest.approx(gained / math.log(2) / told.bytes, abs=1e-5)


def test_adapted_by_hand(params, text):
    """Weights of a document move on after each of its chunks; others know of it when its batch is finished."""
    watched = Watched()
    found = adapted(MODEL, params, text, 1, SETTINGS, hints=HINTS, observe=watched)
    plain = adapted(MODEL, params, text, 1, SETTINGS)
    hints = plain_hints(text.tokens, known_in_batches(text), HINTS)
    own = documents_of(text.starts, len(text.tokens))
    batches = batches_of(own, SETTINGS.batch_documents)
    expected, shared = np.zeros(len(found.nats)), np.ones(len(HINTS.strengths))
    for number in queue_of(own, batches):
        after = shared
        for document in batches[number]:
            first, end = own.start[document], own.start[document] + own.num_targets[document]
            chunks = [range(at, min(at + SETTINGS.chunk, end)) for at in range(first, end, SETTINGS.chunk)]
            nats, weights = by_hand(text, hints, watched.network, plain.nats, chunks, shared)
            expected[first:end] = nats[first:end]
            after = after * weights / shared
        shared = after
    np.testing.assert_allclose(found.nats, expected, atol=2e-5)
    for target, nats in watched.tilted.items():
        assert abs(np.exp(-np.float64(nats)).sum() - 1) < 1e-6
        np.testing.assert_allclose(nats[text.tokens[target + 1]], found.nats[target], atol=2e-5)
    gained = np.sum(plain.nats - found.nats, dtype=np.float64)
    assert found.hints.gained_nats == pytest.approx(gained, abs=2e-3) and found.hints.fired == np.sum(hints != NONE)


def test_an_interrupted_evaluation_goes_on_with_its_weights(params, text, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "EVERY_S", 0.0)
    file = tmp_path / "kept.npz"
    expected = adapted(MODEL, params, text, 1, SETTINGS, hints=HINTS)
    with pytest.raises(Stopped):
        adapted(MODEL, params, text, 1, SETTINGS, hints=HINTS, resume_file=file, tell=stops_at(150))
    for other in (None, dataclasses.replace(HINTS, share=0.7)):
        with pytest.raises(JgolfError, match=r"kept\.npz: kept by an evaluation of other weights, text or settings"):
            adapted(MODEL, params, text, 1, SETTINGS, hints=other, resume_file=file)
    found = adapted(MODEL, params, text, 1, SETTINGS, hints=HINTS, resume_file=file)
    np.testing.assert_array_equal(found.nats, expected.nats)
    assert found.hints[:3] == expected.hints[:3] and not file.exists()
