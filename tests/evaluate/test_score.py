"""Scores of the reference's artifact, as the reference computes them."""

import dataclasses
import json
import math
import re
from functools import partial

import jax
import numpy as np
import pytest

from jgolf.data.tokenizer import ByteTables
from jgolf.evaluate.score import bits_per_byte, sliding_score, standard_score
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


@pytest.fixture(scope="module")
def tables(golden):
    arrays = np.load(golden / "small" / "byte_luts.npz")
    return ByteTables(arrays["base_bytes"], arrays["has_leading_space"], arrays["is_boundary"])


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
def test_reference_artifact_scores(name, expected, golden, tables, small_params):
    tokens = np.load(golden / "small" / "eval_tokens.npy")
    seq_len, *stride = map(int, re.findall(r"\d+", name))
    how = {"batch_tokens": 4096}
    if stride:
        score = sliding_score(SMALL, small_params, tokens, tables, seq_len, *stride, reference_windows=True, **how)
    else:
        score = standard_score(SMALL, small_params, tokens, tables, seq_len, **how)
    assert score.val_loss == pytest.approx(expected["val_loss"], rel=1e-5)
    assert score.val_bpb == pytest.approx(expected["val_bpb"], rel=1e-5)


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
        score = standard_score(tiny, random_model, tokens, tables, seq_len, batch_tokens=48)
    else:
        score = sliding_score(tiny, random_model, tokens, tables, seq_len, stride, batch_tokens=48)
    assert (score.tokens, score.bytes) == (count, num_bytes)
    assert score.val_loss == pytest.approx(nll / count, rel=2e-5)
    assert score.val_bpb == pytest.approx(nll / math.log(2) / num_bytes, rel=2e-5)


def test_score_does_not_depend_on_the_batch(tiny, random_model, random_text):
    tokens, tables = random_text
    scores = [
        sliding_score(tiny, random_model, tokens, tables, 32, 8, batch_tokens=batch).val_loss
        for batch in (32, 96, 1024)
    ]
    assert max(scores) - min(scores) < 1e-6


def test_a_stream_shorter_than_a_window(tiny, random_model, random_text):
    tokens, tables = random_text
    score = sliding_score(tiny, random_model, tokens[:20], tables, 64, 16, batch_tokens=64)
    assert score.tokens == 19


def test_bits_per_byte():
    assert bits_per_byte(math.log(2), tokens=10, num_bytes=5) == pytest.approx(2.0)
