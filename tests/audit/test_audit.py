"""Audits of every scorer, and of scorers that cheat: each in one way, which one condition's checks find."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.audit import counts
from jgolf.audit.checks import LARGEST_SURPRISE, Check, largest_rounding, mean_rounding, rounding, sum_rounding
from jgolf.audit.run import Plan, against_claim, audit
from jgolf.audit.scorer import Audited, Heard, Run, Told, documents_of, largest_change
from jgolf.audit.sizes import Claim
from jgolf.audit.tries import Tried, changed_behind
from jgolf.config import AdaptedConfig, HintsConfig, ModelConfig, SGDConfig
from jgolf.data.pack import pack_documents
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.text import Text, read_text, table_bytes, without_sidecars
from jgolf.data.tokenizer import load_tokenizer
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError
from jgolf.evaluate.nats import ScoredTargets, local_mesh, window_nats
from jgolf.evaluate.score import UNSCORED, Scored, documents, packed, rows, sliding
from jgolf.evaluate.tilt import Tilt
from jgolf.evaluate.tilt import hinted as tilted
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.evaluate.ttt.sgd import Sgd, zeros_like
from jgolf.evaluate.ttt.tuned import tuned
from jgolf.evaluate.windows import sliding_windows
from jgolf.model.functional import apply, parameter_shapes
from jgolf.watch import unobserved
from tests.conftest import random_words

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_multiple=1.0,
    q_gain=1.5,
    logit_softcap=30.0,
    compute_dtype="float32",
)
BOS, LENGTH, CHUNK = 1, 24, 48
LENGTHS = (31, 7, 70, 13, 44, 6, 25, 12, 40)
SGD = SGDConfig(learning_rate=0.1, chunk_tokens=CHUNK, row_length=12, num_ranks=2)
ADAPTED = AdaptedConfig(
    rank=2,
    alpha=4.0,
    chunk=6,
    context=LENGTH,
    learning_rate=0.01,
    batch_documents=3,
    phases=2,
    phase_documents=7,
    sgd=dataclasses.replace(SGD, learning_rate=0.3),
    widths=(LENGTH,),
    batch_tokens=3 * LENGTH,
)
PLAN = Plan(try_tokens=len(LENGTHS) * 100, samples=4, every_token=1, seed=0)
WITHOUT_EVERY_TOKEN = dataclasses.replace(PLAN, every_token=0)


class TwoBytes:
    """A tokenizer of which every token but BOS stands for two letters."""

    table_fault = ""
    bos_id = BOS

    def decode(self, ids):
        return "".join(chr(97 + token) * 2 for token in np.asarray(ids).tolist() if token != BOS)

    def encode(self, text):
        return [ord(letter) - 97 for letter in text[::2]]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(MODEL).items()
    return {path: jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32) for path, shape in shapes}


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(1)
    parts = [np.concatenate([[BOS], rng.integers(2, 26, length - 1)]) for length in LENGTHS]
    tokens = np.concatenate([*parts, [5]]).astype(np.uint16)
    return Text.of(tokens, BOS, np.where(tokens == BOS, 0, 2).astype(np.uint16))


def audited(scorer, params, *arguments, name="", **facts):
    """A function with a scorer's arguments as it is audited."""
    facts = {"shortest": LENGTH + 1, **facts}
    return Audited(
        name or scorer.__name__, lambda text, **how: scorer(MODEL, params, text, *arguments, **how), MODEL, **facts
    )


def failing(found):
    """The conditions of the checks that fail."""
    return {check.condition for check in found.checks if check.passed is False}


HONEST = {
    "rows": (rows, [LENGTH], {"row": LENGTH}),
    "packed": (packed, [LENGTH, 2 * LENGTH], {}),
    "sliding": (sliding, [LENGTH, 8], {}),
    "documents": (documents, [LENGTH, 8], {}),
    "tuned": (tuned, [LENGTH, 8, SGD], {"learns": True, "shortest": CHUNK + 2}),
    "tuned within documents": (
        partial(tuned, within_documents=True),
        [LENGTH, 8, SGD],
        {"learns": True, "shortest": CHUNK + 2, "name": "tuned"},
    ),
    "adapted": (adapted, [LENGTH, ADAPTED], {"learns": True, "reorders": True, "shortest": 14}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "within" in name else []) for name in HONEST]
)
def test_every_scorer_passes(name, params, text):
    scorer, arguments, facts = HONEST[name]
    plan = dataclasses.replace(PLAN, every_token=0 if facts.get("learns") else 1)
    found = audit(audited(scorer, params, *arguments, **facts), text, TwoBytes(), plan)
    assert not failing(found), [check for check in found.checks if check.passed is False]
    conditions = {check.condition for check in found.checks if check.passed}
    asked = {"causality", "normalisation", "score before update", "one pass", "bytes", "plain network", "repeatable"}
    assert conditions == asked
    if facts.get("learns"):
        switched_off = next(check for check in found.checks if "no learning from" in check.tried)
        assert switched_off.passed and "later scores moved by up to" in switched_off.note
        assert name != "adapted" or "1 phase of all weights" in switched_off.note
    targets = sum(LENGTHS) // LENGTH * LENGTH if name == "rows" else sum(LENGTHS)
    assert found.score.tokens == targets and found.as_json()["passed"] is True


# --- scorers that cheat ------------------------------------------------------------------------


class Hinted:
    """Predictions that are nine parts the network's and one part a token that somebody hints at."""

    def __init__(self, predictions, hint, tell=True):
        self._predictions, self._hint, self._tell = predictions, hint, tell
        self.window_of = predictions.window_of

    def every_token(self, target):
        nats = np.float64(self._predictions.every_token(target))
        return mixed(nats, np.arange(len(nats)) == self._hint(target)) if self._tell else nats

    def plainly(self, target):
        token = self._predictions.tokens[target + 1]
        return float(mixed(self._predictions.plainly(target), token == self._hint(target)))


def mixed(nats, is_hint):
    return -np.log(0.9 * np.exp(-np.float64(nats)) + 0.1 * is_hint)


def hinted(hint_of, tell=True, divide=True):
    """A scorer that hints at tokens; `tell` what it does, `divide` so that probabilities still sum to one."""

    def scorer(config, params, text, *arguments, observe):
        def hint(target):
            return hint_of(text.tokens, target)

        def changed(targets, nats):
            is_hint = np.array([text.tokens[target + 1] == hint(target) for target in targets], bool)
            return np.float32(mixed(nats, is_hint)) if divide else np.float32(nats - 0.1 * is_hint)

        def pass_on(what, number, value):
            if what == "predictions" and divide:
                value = Hinted(value, hint, tell)
            elif what == "scored":
                value = ScoredTargets(value.targets, changed(value.targets, value.nats))
            observe(what, number, value)

        found = sliding(config, params, text, *arguments, observe=pass_on)
        return found._replace(nats=changed(np.arange(len(found.nats)), found.nats))

    return scorer


def before(tokens, target):
    return tokens[target]


def behind(tokens, target):
    return tokens[min(target + 2, len(tokens) - 1)]


def right(tokens, target):
    return tokens[target + 1]


@pytest.mark.parametrize(
    ("scorer", "conditions", "sums_to_one"),
    [
        (hinted(before), set(), True),  # a hint of what has been seen, and a distribution: nothing is wrong with that
        (hinted(behind), {"causality", "normalisation"}, False),  # behind the text's last token is that itself
        (hinted(right), {"normalisation"}, False),
        (hinted(right, tell=False), {"normalisation"}, False),
        (hinted(before, divide=False), {"normalisation", "plain network"}, False),
    ],
    ids=["a hint", "the token behind", "the token itself", "itself, in secret", "nothing taken from the others"],
)
def test_hints(scorer, conditions, sums_to_one, params, text):
    found = audit(audited(scorer, params, LENGTH, 8, name="hinted"), text, TwoBytes(), PLAN)
    assert failing(found) == conditions
    by_scores_alone = next(check for check in found.checks if "as the last of a text" in check.tried)
    assert by_scores_alone.passed == sums_to_one


HINTS = HintsConfig(orders=(1, 2), min_count=1, share=0.5, strengths=(0.0, 1.0, 3.0))


@pytest.fixture(scope="module")
def repeating(text):
    """The same documents, of three words, most of them in turn."""
    random = np.random.default_rng(2).random(len(text.tokens))
    tokens = 2 + np.where(random < 0.8, np.arange(len(text.tokens)), text.tokens) % 3
    tokens = np.where(text.tokens == BOS, BOS, tokens)
    return Text.of(tokens.astype(np.uint16), BOS, text.bytes)


@pytest.mark.parametrize(
    "name", ["documents", "adapted", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rows", "packed"))]
)
def test_tilted_scorers_pass(name, params, repeating):
    scorer, arguments, facts = HONEST[name]
    scorer = partial(adapted, hints=HINTS) if name == "adapted" else tilted(scorer, HINTS)
    found = audit(audited(scorer, params, *arguments, name=name, **facts), repeating, TwoBytes(), WITHOUT_EVERY_TOKEN)
    assert not failing(found), [check for check in found.checks if check.passed is False]


@pytest.mark.parametrize("name", ["documents", pytest.param("adapted", marks=pytest.mark.slow)])
def test_a_gate_that_knows_the_target(name, params, repeating, monkeypatch):
    def looking(self, tokens, *arguments):
        begin(self, tokens, *arguments)
        self.hints = np.where(self.hints == tokens[1:], self.hints, -1)

    begin, (scorer, arguments, facts) = Tilt.__init__, HONEST[name]
    monkeypatch.setattr(Tilt, "__init__", looking)
    scorer = partial(adapted, hints=HINTS) if name == "adapted" else tilted(scorer, HINTS)
    facts = {"name": name, **facts}
    found = audit(audited(scorer, params, *arguments, **facts), repeating, TwoBytes(), WITHOUT_EVERY_TOKEN)
    assert "normalisation" in failing(found)


class Boasting(Hinted):
    """Predictions that tell of a token that cannot be, to be granted more rounding."""

    def every_token(self, target):
        nats = super().every_token(target)
        return np.where(np.arange(len(nats)) == 3, np.inf, nats)


def test_what_is_told_grants_no_more_than_rounding(params, text, monkeypatch):
    monkeypatch.setattr(f"{__name__}.Hinted", Boasting)
    found = audit(audited(hinted(right), params, LENGTH, 8, name="hinted"), text, TwoBytes(), PLAN)
    assert "normalisation" in failing(found)
    assert all(
        check.tolerance < 1e-2 for check in found.checks if check.condition in ("normalisation", "plain network")
    )


def trained_first(config, params, text, seq_len, stride, settings, *, observe=unobserved, lessons=math.inf):
    """`tuned`, but that every chunk is trained on before it is scored, not after."""
    mesh = local_mesh()
    windows, sgd = sliding_windows(len(text.tokens), seq_len, stride), Sgd(config, settings, mesh, documents=False)
    chunk_of = (windows.start + windows.first_scored) // settings.chunk_tokens
    params, nats = jax.tree.map(jnp.copy, params), np.full(len(text.tokens) - 1, UNSCORED)
    momentum = zeros_like(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    num_chunks = sgd.num_chunks(len(nats))
    for chunk in range(num_chunks):
        if chunk < num_chunks - 1 and chunk < lessons:
            params, momentum, _ = sgd.train(params, momentum, text.tokens, chunk, num_chunks)
        watch = {"observe": lambda what, _, value, chunk=chunk: observe(what, chunk, value)}
        for part in window_nats(config, params, text.tokens, windows[chunk_of == chunk], seq_len, **watch):
            nats[part.targets] = part.nats
            observe("scored", chunk, part)
    return Scored(nats, 1.0)


def test_training_before_scoring(params, text):
    facts = {"learns": True, "shortest": CHUNK + 2}
    found = audit(
        audited(trained_first, params, LENGTH, 8, SGD, **facts),
        text,
        TwoBytes(),
        dataclasses.replace(PLAN, every_token=0),
    )
    assert failing(found) == {"causality", "normalisation", "score before update"}
    assert [check.passed for check in found.checks if check.condition == "score before update"] == [False, False]


def with_counts(change):
    """`sliding` whose scores are changed on their way out, and nothing said of it but what is handed over."""

    def scorer(config, params, text, *arguments, observe):
        parts = []
        found = sliding(config, params, text, *arguments, observe=lambda *event: parts.append(event))
        return change(found, parts, observe)

    return scorer


def twice(found, parts, observe):
    """Each target once more, after all of them; the better score counts, which is the same here."""
    for event in [*parts, *(event for event in parts if event[0] == "scored")]:
        observe(*event)
    return found


def without_hard_ones(found, parts, observe):
    limit = np.quantile(found.nats, 0.9)
    for what, number, value in parts:
        if what == "scored":
            value = ScoredTargets(value.targets[value.nats < limit], value.nats[value.nats < limit])
        observe(what, number, value)
    return found._replace(nats=np.where(found.nats < limit, found.nats, UNSCORED))


def hard_ones_hidden(found, parts, observe):
    for event in parts:
        observe(*event)
    return found._replace(nats=np.where(found.nats < np.quantile(found.nats, 0.9), found.nats, UNSCORED))


@pytest.mark.parametrize("change", [twice, without_hard_ones, hard_ones_hidden])
def test_counts(change, params, text):
    plan = dataclasses.replace(PLAN, samples=2, every_token=0)
    found = audit(audited(with_counts(change), params, LENGTH, 8, name=change.__name__), text, TwoBytes(), plan)
    assert "one pass" in failing(found)
    assert failing(found) == {"one pass"} or change is not twice


def test_the_reference_s_windows_score_the_end_twice(params, text):
    def reference(config, params, text, *arguments, observe):
        windows, nats = (
            sliding_windows(len(text.tokens), *arguments, reference_windows=True),
            np.zeros(len(text.tokens) - 1, np.float32),
        )
        for part in window_nats(config, params, text.tokens, windows, arguments[0], observe=observe):
            nats[part.targets] = part.nats
            observe("scored", 0, part)
        return Scored(nats, 1.0)

    found = audit(audited(reference, params, LENGTH, 8), text, TwoBytes(), dataclasses.replace(PLAN, every_token=0))
    row = next(check for check in found.checks if "how many were not scored once" in check.tried)
    assert not row.passed and row.figure == 8 and "was scored 3 times, expected 1" in row.note


# --- bytes, tolerances, texts --------------------------------------------------------------------


class CountedBeside(TwoBytes):
    table_fault = "has tables that nobody believes"


def bytes_check(text, beside=False, documents=()):
    (found,) = counts.text_bytes(text, CountedBeside() if beside else TwoBytes(), documents)
    return found


def test_bytes_that_are_not_there(text):
    assert bytes_check(text).passed and bytes_check(text).figure == 0
    inflated = dataclasses.replace(text, bytes=np.where(text.tokens == 7, 3, text.bytes).astype(np.uint16))
    found = bytes_check(inflated)
    assert not found.passed and found.figure == np.count_nonzero(text.tokens == 7)
    assert "give --documents FILE" in bytes_check(inflated, beside=True).note
    fewer = dataclasses.replace(text, bytes=np.where(text.tokens == 7, 1, text.bytes).astype(np.uint16))
    found = bytes_check(fewer)
    assert found.passed and f"{np.count_nonzero(text.tokens == 7)} fewer" in found.note


def test_bytes_of_the_documents_that_were_packed(text, tmp_path):
    ends = [*text.starts[1:], len(text.tokens)]
    written = [TwoBytes().decode(text.tokens[start:end]) for start, end in zip(text.starts, ends, strict=True)]
    file = tmp_path / "docs.txt"
    file.write_text("\n".join(written) + "\n")
    assert bytes_check(text, documents=[file], beside=True).passed
    more = dataclasses.replace(text, bytes=text.bytes.copy())
    more.bytes[3] += 1
    assert bytes_check(more, documents=[file], beside=True).figure == 1
    cut = text.first(len(text.tokens) - 5)  # of the last document, what is there is not compared
    assert "8 documents packed" in bytes_check(cut, documents=[file]).tried
    assert bytes_check(cut, documents=[file]).passed
    file.write_text("\n".join([*written[:2], "zz", *written[3:]]))
    with pytest.raises(DataError, match="docs.txt: document 3 is not that of the text: 2 tokens, found 70 at token 38"):
        bytes_check(text, documents=[file])
    file.write_text("\n".join(written[:4]))
    with pytest.raises(DataError, match="4 documents, expected at least 8"):
        bytes_check(text, documents=[file])


def test_bytes_by_real_tokenizers(nano_data, tmp_path):
    """The tokenizer's own text has the bytes of the documents, whatever the tables say."""
    (tmp_path / "bytes.json").write_bytes(byte_tokenizer_file())
    texts = [*random_words(3)[:5], "abc", "p o n m"]
    for path in (nano_data / "nano.model", tmp_path / "bytes.json"):
        tokenizer = load_tokenizer(path)
        tokens = np.concatenate([[tokenizer.bos_id, *tokenizer.encode(one)] for one in texts]).astype(np.uint16)
        text = Text.of(tokens, tokenizer.bos_id, table_bytes(tokens, tokenizer))
        assert counts.decoded_bytes(text, tokenizer).tolist() == [len(one.encode()) for one in texts]
        assert counts.text_bytes(text, tokenizer, ())[0].passed
        inside = text.tokens[2:]  # from the middle of a document on
        text = Text.of(inside, tokenizer.bos_id, table_bytes(inside, tokenizer))
        assert counts.text_bytes(text, tokenizer, ())[0].figure == 0


def test_bytes_that_were_counted_when_the_text_was_packed(tmp_path):
    """White space that the tokenizer drops is in the documents, but in no token."""
    words = [" ".join(word.title() for word in one.split()) for one in random_words(4)]
    (tmp_path / "case.model").write_bytes(train_tokenizer(words, 320, case_ops=True))
    told = {}
    for name, texts in (("kept", words[:20]), ("dropped", [*words[:19], words[19].replace(" ", "  ")])):
        file, folder = tmp_path / f"{name}.jsonl", tmp_path / name
        file.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
        pack_documents([file], tmp_path / "case.model", folder, split="val", workers=1)
        tokenizer = load_tokenizer(folder / "case.model")
        shards = without_sidecars(folder.glob("*_val_*.bin"))
        text = read_text(shards, tokenizer)
        assert int(text.bytes.sum()) == sum(len(one.encode()) for one in texts)
        for given in ((), (file,)):
            (told[name, len(given)],) = counts.text_bytes(text, tokenizer, given)
    assert told["kept", 0].passed and told["kept", 1].passed and told["dropped", 1].passed
    assert not told["dropped", 0].passed and told["dropped", 0].figure == 29
    assert "29 bytes are in no token" in told["dropped", 0].note and "give --documents FILE" in told["dropped", 0].note


def test_bytes_of_the_original_are_audited_beside_the_challenge_s(nano_data, tmp_path):
    """An ordinary tokenizer drops the second of two spaces: the tables count one, the original has both."""
    texts = [*random_words(4)[:9], "p  o n m"]
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    pack_documents([file], nano_data / "nano.model", tmp_path, split="val", workers=1)
    tokenizer, shards = load_tokenizer(tmp_path / "nano.model"), without_sidecars(tmp_path.glob("*_val_*.bin"))
    text = read_text(shards, tokenizer)
    assert int(text.original.sum()) == int(text.bytes.sum()) + 1 == sum(len(one.encode()) for one in texts)
    challenge, original = counts.text_bytes(text, tokenizer, [file])
    assert challenge.passed and "1 fewer" in challenge.note and original.passed and original.figure == 0
    more = dataclasses.replace(text, original=text.original.copy())
    more.original[5] += 2
    assert counts.text_bytes(more, tokenizer, [file])[1].figure == 2
    assert counts.text_bytes(more, tokenizer, ())[1].figure == 3  # the dropped space, too, within what a cut allows


WIDE = {"vocab_size": 64, "model_dim": 64, "num_heads": 4}


@pytest.mark.parametrize(
    ("change", "compiled"),
    [
        ({}, False),
        ({}, True),
        ({"num_layers": 4, **WIDE}, True),
        *(
            pytest.param(change, compiled, marks=pytest.mark.slow)
            for change in (WIDE, {"num_layers": 6, **WIDE}, {"num_layers": 12})
            for compiled in (False, True)
        ),
    ],
)
def test_rounding_against_a_network_in_two_precisions(change, compiled):
    """What bfloat16 does to a network stays within what is expected of it, and is not far below."""
    model, count = dataclasses.replace(MODEL, **change), 1024
    in_two = [dataclasses.replace(model, compute_dtype=dtype) for dtype in ("float32", "bfloat16")]
    maybe_compiled = jax.jit if compiled else lambda function: function
    functions = [maybe_compiled(partial(apply, one)) for one in in_two]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shapes = parameter_shapes(model).items()
        deviation = 1 / math.sqrt(model.model_dim)
        params = {path: jnp.asarray(rng.normal(0, deviation, shape), jnp.float32) for path, shape in shapes}
        tokens = jnp.asarray(rng.integers(0, model.vocab_size, (1, count)), jnp.int32)
        logits = (np.asarray(function(params, tokens)[0], np.float64) for function in functions)
        exact, rounded = (np.logaddexp.reduce(one, -1, keepdims=True) - one for one in logits)
        spread, errors = float(exact.std(-1).max()), rounded - exact
        assert rounding(in_two[1], spread) / 8 < errors.std() < rounding(in_two[1], spread)
        assert np.abs(errors).max() < largest_rounding(in_two[1], spread)

        odds = np.exp(-exact)
        entropy = (odds * exact).sum(-1).mean()
        its_own = (odds.cumsum(-1) > rng.random((count, 1))).argmax(-1)  # as often as the network says
        for name, targets in ("its own", its_own), ("any", rng.integers(0, model.vocab_size, count)), ("one", 3):
            places = np.arange(count), targets
            surprise = 0.0 if name == "its own" else exact[places].mean() - entropy
            found = abs(errors[places].mean())
            assert found < mean_rounding(in_two[1], spread, count, surprise), (name, seed)
        assert np.abs(np.exp(-exact).sum(-1) - 1).max() < sum_rounding(model.vocab_size) < 3e-5


@pytest.mark.parametrize(("shift", "count"), [(0.0, 40), (0.9, 40), (-0.9, 40), (50.0, 40), (0.9, 1), (np.nan, 40)])
def test_surprise_is_what_is_beyond_chance(shift, count, text):
    odds = np.array([0.5, 0.25, 0.25, 0.0])
    with np.errstate(divide="ignore"):
        told = {target: Told(-np.log(odds), math.nan, 0) for target in range(count)}
    nats = np.full(len(text.tokens) - 1, 1.5 * math.log(2) + shift)  # the entropy, and what is added to it
    nats[0::2] += 1
    nats[1::2] -= 1
    heard = Heard(text)
    heard.told = told
    found = Tried(None, Run(text, nats, heard), None, [])
    chance = 2 * math.sqrt(count / max(count - 1, 1)) / math.sqrt(count)
    expected = {0.9: 0.9 - chance, -0.9: chance - 0.9, 50.0: LARGEST_SURPRISE}.get(shift, 0.0)
    assert found.surprise == pytest.approx(expected if count > 1 else 0.0)


def test_changed_tokens(text):
    random = np.random.default_rng(0)
    target = int(text.starts[3]) + 4
    for reorders, end in ((False, len(text.tokens)), (True, int(text.starts[4]))):
        scorer = Audited("any", None, MODEL, reorders=reorders)
        all_changed = changed_behind(scorer, text, target, BOS, random, every=True)
        different = np.flatnonzero(all_changed.text.tokens != text.tokens)
        expected = [place for place in range(target + 1, end) if text.tokens[place] != BOS]
        assert different.tolist() == all_changed.positions.tolist() == expected
        assert (np.flatnonzero(all_changed.text.tokens == BOS) == np.flatnonzero(text.tokens == BOS)).all()
    one = changed_behind(scorer, text, target, BOS, random, every=False)
    assert np.flatnonzero(one.text.tokens != text.tokens).tolist() == [target + 1]


def test_what_belongs_to_which_document(text):
    expected = [document for document, length in enumerate(LENGTHS) for _ in range(length)]
    assert documents_of(text).tolist() == expected


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [([1, 2], [1, 2.5], 0.5), ([1, -np.inf], [1, -np.inf], 0), ([1, -np.inf], [1, 3], np.inf), ([1], [np.nan], np.inf)],
)
def test_the_largest_change(before, after, change):
    assert largest_change(np.float32(before), np.float32(after)) == change


def test_too_short_a_text(params, text):
    with pytest.raises(DataError, match="too few to try the scorer rows on: found 20, expected at least 26"):
        audit(audited(rows, params, LENGTH), text.first(20), TwoBytes(), PLAN)


def test_a_score_that_is_said(params, text, tmp_path):
    found = audit(audited(sliding, params, LENGTH, 8), text, TwoBytes(), dataclasses.replace(PLAN, every_token=0))
    tokens, bpb = len(text.tokens) - 1, found.score.val_bpb

    def compared(said, kind="sliding", tokens=tokens, device="cpu"):
        claim = Claim(tmp_path / "result.json", {}, {"sliding": said}, tokens, 8, device)
        return against_claim(found, claim, kind, dataclasses.replace(MODEL, compute_dtype="bfloat16"))

    assert compared(bpb).passed and not compared(bpb - 1e-3).passed
    assert compared(bpb - 1e-3, device="NVIDIA H100").passed and not compared(bpb - 0.03, device="NVIDIA H100").passed
    assert compared(bpb, kind="adapted").passed is None and compared(bpb, tokens=tokens + 9).passed is None
    assert isinstance(found.checks[0], Check)
