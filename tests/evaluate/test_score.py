"""Scores of the reference's artifact, as the reference computes them."""

import dataclasses
import json
import math
import re
from functools import partial

import jax
import numpy as np
import pytest

from jgolf.data.sentence_piece import ByteTables
from jgolf.data.text import Text
from jgolf.errors import DataError
from jgolf.evaluate.score import (
    SCORERS,
    UNSCORED,
    Score,
    bits_per_byte,
    documents,
    packed,
    reference_sliding_score,
    rows,
    score,
    sliding,
    summarize,
)
from jgolf.evaluate.windows import packed_windows
from jgolf.model.functional import apply
from jgolf.model.initial import init
from tests.conftest import GOLDEN, RECIPE, params_of

SMALL = dataclasses.replace(
    RECIPE.model,
    num_layers=2,
    model_dim=320,
    num_heads=5,
    num_kv_heads=1,
    bigram_buckets=1024,
    bigram_dim=128,
    xsa_layers=(1,),
    value_embedding_dim=128,
    value_embedding_layers=(0, 1),
    compute_dtype="float32",
)


def counted(tokens, tables):
    """The text of tokens whose bytes these tables count."""
    return Text.of(tokens, 1, np.append(0, tables.target_bytes(tokens[:-1], tokens[1:])).astype(np.uint16))


@pytest.fixture(scope="module")
def golden_text(golden):
    arrays = np.load(golden / "small" / "byte_luts.npz")
    tables = ByteTables(arrays["base_bytes"], arrays["has_leading_space"], arrays["is_boundary"])
    return counted(np.load(golden / "small" / "eval_tokens.npy"), tables)


@pytest.fixture(scope="module")
def small_params(golden):
    """The artifact's weights, dequantized here: level × step of its row, or the float itself."""
    arrays = np.load(golden / "small" / "artifact_tensors.npz")
    state = {}
    for name in arrays:
        if name.endswith(".q"):
            scales = arrays[name.removesuffix(".q") + ".scale"].astype(np.float32)
            state[name.removesuffix(".q")] = arrays[name] * scales[:, None]
        elif not name.endswith(".scale") or name.removesuffix(".scale") + ".q" not in arrays:
            state[name] = arrays[name].astype(np.float32)
    return params_of(state, "")


def golden_scores():
    return sorted(json.loads((GOLDEN / "small" / "eval.json").read_text()).items())


def test_reference_artifact_logits(golden, small_params):
    arrays = np.load(golden / "small" / "artifact.npz")
    logits = jax.jit(partial(apply, SMALL))(small_params, arrays["x"])[:, ::8]
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=2e-5 * np.abs(arrays["logits"]).max())


@pytest.mark.parametrize(("name", "expected"), golden_scores())
def test_reference_artifact_scores(name, expected, golden_text, small_params):
    seq_len, *stride = map(int, re.findall(r"\d+", name))
    how = {"batch_tokens": 4096}
    if stride:
        found = reference_sliding_score(SMALL, small_params, golden_text, seq_len, *stride, **how)
    else:
        found = score(rows, SMALL, small_params, golden_text, seq_len, **how)
    assert found.val_loss == pytest.approx(expected["val_loss"], rel=1e-5)
    assert found.val_bpb == pytest.approx(expected["val_bpb"], rel=1e-5)


@pytest.fixture(scope="module")
def random_model(tiny):
    normal = dataclasses.replace(tiny, orthogonal_init=False)  # which compiles faster
    params = jax.jit(init, static_argnums=0)(normal, jax.random.key(0))
    return {path: value + 0.02 for path, value in params.items()}


@pytest.fixture(scope="module")
def random_text(tiny):
    rng = np.random.default_rng(0)
    vocab = tiny.vocab_size
    tables = ByteTables(rng.integers(0, 9, vocab).astype(np.int16), rng.random(vocab) < 0.3, rng.random(vocab) < 0.1)
    return rng.integers(0, vocab, 203).astype(np.uint16), tables


@pytest.mark.parametrize("stride", [None, 8, 24])
def test_every_token_is_scored_once_with_its_own_context(stride, tiny, random_model, random_text):
    """Against one forward pass a token, without batches, padding or windows' bookkeeping."""
    tokens, tables = random_text
    seq_len, num_targets = 24, len(tokens) - 1
    forward = jax.jit(partial(apply, tiny))
    nll, num_bytes, count = 0.0, 0, 0
    for target in range(num_targets if stride else num_targets // seq_len * seq_len):
        if stride is None:
            start = target // seq_len * seq_len
        else:
            start = 0 if target < seq_len else math.ceil((target + 1 - seq_len) / stride) * stride
        context = np.zeros((1, seq_len), np.int32)  # one length, so that one program serves all
        context[0, : target + 1 - start] = tokens[start : target + 1]
        logits = np.asarray(forward(random_model, context)[0, target - start], np.float64)
        nll += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[target + 1]]
        num_bytes += int(tables.target_bytes(tokens[target : target + 1], tokens[target + 1 : target + 2])[0])
        count += 1
    if stride is None:
        found = score(rows, tiny, random_model, counted(tokens, tables), seq_len, batch_tokens=48)
    else:
        found = score(sliding, tiny, random_model, counted(tokens, tables), seq_len, stride, batch_tokens=48)
    assert (found.tokens, found.bytes) == (count, num_bytes)
    assert found.val_loss == pytest.approx(nll / count, rel=2e-5)
    assert found.val_bpb == pytest.approx(nll / math.log(2) / num_bytes, rel=2e-5)


def scorer_options(scorer):
    """The arguments of a scorer in these tests: windows of 24 tokens, every 8 where they slide."""
    return (24, 8) if scorer in (sliding, documents) else (24,)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_later_token_changes_no_earlier_score(scorer, tiny, random_model, random_text):
    """Whatever it is changed to, the start of a document too."""
    tokens, _ = random_text
    before = scorer(tiny, random_model, Text.of(tokens, 1), *scorer_options(scorer), batch_tokens=96).nats
    for position, token in ((20, 5), (90, 1), (101, 7), (150, 1), (190, 2)):
        changed = tokens.copy()
        assert changed[position] != token
        changed[position] = token
        after = scorer(tiny, random_model, Text.of(changed, 1), *scorer_options(scorer), batch_tokens=96).nats
        np.testing.assert_allclose(after[: position - 1], before[: position - 1], rtol=2e-6)
        later = slice(position - 1, position)  # the changed token's own score, at least
        assert not np.array_equal(after[later], before[later]), "the test looks at nothing"


@pytest.mark.parametrize("scorer", [scorer for scorer in SCORERS if scorer is not packed])
def test_scores_do_not_depend_on_the_batch(scorer, tiny, random_model, random_text):
    text = Text.of(random_text[0], 1)
    once, often = (
        scorer(tiny, random_model, text, *scorer_options(scorer), batch_tokens=batch).nats for batch in (1024, 24)
    )
    np.testing.assert_array_equal(once == UNSCORED, often == UNSCORED)
    np.testing.assert_allclose(once, often, rtol=2e-6)


def test_within_documents_each_is_scored_as_if_it_stood_alone(tiny, random_model, random_text):
    tokens = random_text[0].copy()
    tokens[tokens == 1] = 2
    tokens[[0, 11, 12, 60]] = 1  # one document is nothing but its BOS
    found = documents(tiny, random_model, Text.of(tokens, 1), 24, 8, batch_tokens=96).nats
    for start, end in ((0, 11), (11, 12), (12, 60), (60, len(tokens) - 1)):
        alone = sliding(tiny, random_model, Text.of(tokens[start : end + 1], 1), 24, 8, batch_tokens=96)
        np.testing.assert_allclose(found[start:end], alone.nats, rtol=2e-6)


def test_packed_rows_are_what_their_segments_are_alone(tiny, random_model, random_text):
    tokens = random_text[0].copy()
    tokens[tokens == 1] = 2
    tokens[[0, 11, 12, 60]] = 1
    tiny = dataclasses.replace(tiny, bigram_buckets=0, smear_gate=False)  # these look across a document's start
    params = {path: value for path, value in random_model.items() if not path.startswith(("bigram/", "smear/"))}
    text = Text.of(tokens, 1)
    found = packed(tiny, params, text, 24, batch_tokens=96).nats
    segments = packed_windows(text.starts, 2 * 96 + 1, 24, 4)
    assert len(segments.start) == 10
    for start, length in zip(segments.start, segments.length, strict=True):
        alone = sliding(tiny, params, Text.of(tokens[start : start + length + 1], 1), 24, 24, batch_tokens=96)
        np.testing.assert_allclose(found[start : start + length], alone.nats, rtol=2e-5)


def test_a_stream_shorter_than_a_window(tiny, random_model, random_text):
    found = sliding(tiny, random_model, Text.of(random_text[0][:20], 1), 64, 16, batch_tokens=64)
    assert np.count_nonzero(found.nats != UNSCORED) == 19
    assert found.context == 10


def test_context_on_average(tiny, random_model, random_text):
    """Counted target by target: 24 tokens at most, every 8 where windows slide, packed rows of 96."""
    tokens = random_text[0].copy()
    tokens[tokens == 1] = 2
    starts = [0, 11, 60, 130]
    tokens[starts] = 1
    text, num_targets = Text.of(tokens, 1), len(tokens) - 1

    def slid(place):
        return place + 1 if place < 24 else place + 1 - 8 * -(-(place - 23) // 8)

    places = [target - max(start for start in starts if start <= target) for target in range(num_targets)]
    in_rows = [target - max(start for start in (*starts, 96, 192) if start <= target) for target in range(num_targets)]
    expected = {
        rows: np.mean([target % 24 + 1 for target in range(num_targets // 24 * 24)]),
        sliding: np.mean([slid(target) for target in range(num_targets)]),
        documents: np.mean([slid(place) for place in places]),
        packed: np.mean([place % 24 + 1 for place in in_rows]),
    }
    for scorer, context in expected.items():
        found = scorer(tiny, random_model, text, *scorer_options(scorer), batch_tokens=96)
        assert found.context == pytest.approx(context, rel=1e-12)


def test_seconds_on_the_challenge_s_devices():
    score = Score(1.0, 1.0, 10, 1_511_000, 30.0, compile_s=10.0)
    assert score.challenge_s(2) == pytest.approx(10 + 20 * 100 * 2 / 8)


def test_summarize_adds_up_in_float64():
    nats = np.full(3_000_001, 0.1, np.float32)  # a float32 sum of these is off by 0.6 %
    nats[-1] = UNSCORED
    found = summarize(nats, np.full(len(nats), 2, np.uint16))
    assert (found.tokens, found.bytes) == (3_000_000, 6_000_000)
    assert found.val_loss == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert found.val_bpb == pytest.approx(found.val_loss / math.log(2) / 2, rel=1e-12)


def test_a_diverged_model_does_not_score_over_fewer_tokens():
    found = summarize(np.array([1, np.nan, 2], np.float32), np.ones(3, np.uint16))
    assert found.tokens == 3 and math.isnan(found.val_bpb)


def test_nothing_to_divide_by():
    with pytest.raises(DataError, match="the 2 scored tokens stand for no byte of text"):
        summarize(np.ones(2, np.float32), np.zeros(2, np.uint16))
    with pytest.raises(DataError, match="none of the 2 targets was scored"):
        summarize(np.full(2, UNSCORED), np.ones(2, np.uint16))


def test_bits_per_byte():
    assert bits_per_byte(math.log(2), tokens=10, num_bytes=5) == pytest.approx(2.0)
