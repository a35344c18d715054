"""Test-time training: what its scores may depend on, and what they must not."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.config import AdaptedConfig, ModelConfig, SGDConfig
from jgolf.data.text import Text
from jgolf.errors import ConfigError, DataError, JgolfError
from jgolf.evaluate.score import UNSCORED, score, sliding
from jgolf.evaluate.ttt import kept, order
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.evaluate.ttt.calls import Shape, calls_of, padded_widths, program_shapes, shapes_worth_having
from jgolf.evaluate.ttt.tuned import tuned
from jgolf.model.functional import parameter_shapes, token_losses
from jgolf.model.lora import LowRank, addition_names, addition_outputs

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_multiple=1.0,
    q_gain=1.5,
    value_embedding_layers=(1,),
    value_embedding_dim=8,
    rope_original_length=8,
    logit_softcap=30.0,
    compute_dtype="float32",
)
CONTEXT = 24
SETTINGS = AdaptedConfig(
    rank=2,
    alpha=4.0,
    chunk=6,
    context=CONTEXT,
    learning_rate=0.01,
    batch_documents=3,
    phases=2,
    phase_documents=7,
    sgd=SGDConfig(learning_rate=0.3, chunk_tokens=48, row_length=12, num_ranks=2),
    widths=(CONTEXT,),
    batch_tokens=3 * CONTEXT,
)
ALONE = dataclasses.replace(SETTINGS, phases=0)
TUNED = SGDConfig(learning_rate=0.1, chunk_tokens=48, row_length=12, epochs=2, num_ranks=2)
LENGTHS = (31, 7, 70, 1, 13, 44, 6, 25, 12)


def make_params():
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(MODEL).items()
    return {path: jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32) for path, shape in shapes}


def make_text(lengths=LENGTHS, last=True):
    """Documents with so many targets, the last one with one more token, or with a BOS alone behind it."""
    rng = np.random.default_rng(1)
    parts = [np.concatenate([[1], rng.integers(2, 32, length - 1)]) for length in lengths]
    tokens = np.concatenate([*parts, [5 if last else 1]]).astype(np.uint16)
    return Text.of(tokens, 1, np.where(tokens == 1, 0, 2).astype(np.uint16))


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def text():
    return make_text()


@pytest.fixture(scope="module")
def phased(params, text):
    return adapted(MODEL, params, text, 1, SETTINGS)


def changed_at(text, position):
    tokens = text.tokens.copy()
    assert tokens[position] > 1, "documents stay as long as they are"
    tokens[position] = 2 if tokens[position] != 2 else 3
    return dataclasses.replace(text, tokens=tokens)


# --- what scores depend on ---------------------------------------------------------------------


def test_every_target_is_scored_once(params, text, phased):
    told = []
    found = adapted(MODEL, params, text, 1, SETTINGS, tell=lambda done, how: told.append((done, how)))
    np.testing.assert_array_equal(found.nats, phased.nats)
    assert not np.any(found.nats == UNSCORED) and np.isfinite(found.nats).all()
    assert told[-1][0] == len(text.tokens) - 1 == sum(LENGTHS)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    bpb = score(lambda *_: found, MODEL, params, text).val_bpb
    assert told[-1][1] == f"{bpb:.4f} bits per byte"


def test_it_learns_from_documents_and_from_itself(params, text, phased):
    frozen = dataclasses.replace(ALONE, learning_rate=0.0)
    before, alone = (adapted(MODEL, params, text, 1, settings).nats for settings in (frozen, ALONE))
    documents = order.documents_of(text.starts, len(text.tokens))
    for start, size in zip(documents.start, documents.num_targets, strict=True):
        np.testing.assert_array_equal(alone[start : start + min(size, 6)], before[start : start + min(size, 6)])
        assert size <= 6 or np.abs(alone[start + 6 : start + size] - before[start + 6 : start + size]).max() > 1e-4
    last = LENGTHS.index(min(LENGTHS))  # the shortest comes last, after both phases
    assert phased.nats[documents.start[last]] != alone[documents.start[last]]


@pytest.mark.parametrize("document", [2, 0, 7])
def test_no_score_depends_on_a_later_token(document, params, text, phased):
    """Neither of its own document nor of those that are scored after it or beside it; the token's own score does."""
    documents = order.documents_of(text.starts, len(text.tokens))
    batches = order.batches_of(documents, SETTINGS.batch_documents)
    queue = order.queue_of(documents, batches)
    place = next(place for place, number in enumerate(queue) if document in batches[number])
    position = documents.start[document] + documents.num_targets[document] // 2
    after = adapted(MODEL, params, changed_at(text, position), 1, SETTINGS).nats
    may_differ = np.zeros(len(after), bool)
    own_end = documents.start[document] + documents.num_targets[document]
    may_differ[position - 1 : own_end] = True
    for number in queue[place + 1 :]:
        for other in batches[number]:
            may_differ[documents.start[other] : documents.start[other] + documents.num_targets[other]] = True
    np.testing.assert_array_equal(after[~may_differ], phased.nats[~may_differ])
    assert after[position - 1] != phased.nats[position - 1]
    assert np.any(after[may_differ][own_end - position + 1 :] != phased.nats[may_differ][own_end - position + 1 :])


@pytest.mark.parametrize(
    "how",
    [
        {"widths": (8, 16)},
        pytest.param({"widths": (), "batch_tokens": 1}, marks=pytest.mark.slow),
        pytest.param({"batch_tokens": 2 * CONTEXT}, marks=pytest.mark.slow),
    ],
)
def test_neither_padding_nor_grouping_matters(how, params, text, phased, monkeypatch):
    monkeypatch.setattr("jgolf.evaluate.ttt.adapted.SPARED_TOKENS_AS_WRITTEN", -1)  # every shape has its programs
    found = adapted(MODEL, params, text, 1, dataclasses.replace(SETTINGS, **how))
    np.testing.assert_allclose(found.nats, phased.nats, rtol=2e-5, atol=2e-5)
    assert found.context == phased.context


def test_shapes_that_spare_little_are_left_out_but_never_the_widest():
    """100 rows of 4 tokens, 10 of 8 and one of 16: each row costs the smallest width that holds it."""
    rows = {4: 100, 8: 10, 16: 1}

    def cost(shapes):
        widths = np.array(sorted(shape.width for shape in shapes))
        return sum(count * int(widths[np.searchsorted(widths, width)]) for width, count in rows.items())

    shapes = [Shape(1, 16), Shape(2, 8), Shape(4, 4)]  # by rows, so the widest comes first
    for least, left in ((-1, [16, 8, 4]), (79, [16, 8, 4]), (80, [16, 4]), (2000, [16])):
        assert [shape.width for shape in shapes_worth_having(shapes, cost, least)] == left


def test_by_one_document_after_the_other(params, text):
    """The additions' part against a plain loop, with other chunks and rates for short documents, and several steps."""
    settings = dataclasses.replace(
        ALONE,
        chunk_by_length=((8, 2), (30, 4)),
        learning_rate_by_length=((12, 0.02),),
        grad_steps=2,
        additions=("q", "o", "mlp", "head"),
        weight_decay=2.0,
    )
    names = addition_names(MODEL, settings.additions)
    rng = np.random.default_rng(2)
    fresh = {kind: np.float32(rng.uniform(-0.25, 0.25, (3, len(own), 16, 2))) for kind, own in names.items()}

    @jax.jit
    def losses_and_gradient(additions, inputs, targets, counted):
        def loss(additions):
            scaled = {name: LowRank(down[None], 2.0 * up[None]) for name, (down, up) in additions.items()}
            nats = token_losses(MODEL, params, inputs, targets, additions=scaled, rotary_length=CONTEXT)[0]
            return jnp.sum(nats * counted) / jnp.sum(counted), nats

        (_, nats), gradient = jax.value_and_grad(loss, has_aux=True)(additions)
        return nats, gradient

    expected = np.full(len(text.tokens) - 1, UNSCORED)
    downs = [
        {(kind, name): fresh[kind][place, slot] for kind, own in names.items() for slot, name in enumerate(own)}
        for place in range(3)
    ]
    by_length = sorted(range(len(LENGTHS)), key=lambda document: LENGTHS[document])
    for batch in (by_length[6:9], by_length[3:6], by_length[0:3]):
        sizes = [LENGTHS[document] for document in batch]
        chunks = [2 if size <= 8 else 4 if size <= 30 else 6 for size in sizes]
        longest = max(-(-size // chunk) for size, chunk in zip(sizes, chunks, strict=True))
        for place, (document, size, chunk) in enumerate(zip(batch, sizes, chunks, strict=True)):
            rate = 0.02 if size <= 12 else 0.01
            start = int(text.starts[document])
            own = {
                name: (down, np.zeros((2, addition_outputs(MODEL, kind))))
                for (kind, name), down in downs[place].items()
            }
            moment = jax.tree.map(np.zeros_like, own)
            step = 0
            for number in range(longest):
                if number < -(-size // chunk):
                    begin, end = number * chunk, min((number + 1) * chunk, size)
                    window = start + max(0, end - CONTEXT)
                    length = start + end - window
                    inputs, targets = np.zeros((2, 1, CONTEXT), np.int32)
                    inputs[0, :length] = text.tokens[window : start + end]
                    targets[0, :length] = text.tokens[window + 1 : start + end + 1]
                    counted = np.zeros(CONTEXT, np.float32)
                    counted[start + begin - window : length] = 1
                trains = number < -(-size // chunk) - 1
                for again in range(settings.grad_steps):
                    if number < -(-size // chunk):
                        nats, gradient = losses_and_gradient(own, inputs, targets, counted)
                        if not again:
                            expected[start + begin : start + end] = np.asarray(nats)[counted > 0]
                    if number == longest - 1:
                        continue
                    step += 1
                    decay, correction = 1 - rate * settings.weight_decay, 1 - settings.beta2**step
                    own = jax.tree.map(lambda value, decay=decay: decay * value, own)
                    if trains:
                        moment = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * np.square(np.float64(g)), moment, gradient)
                        own = jax.tree.map(
                            lambda value, v, g, c=correction, rate=rate: value - rate * g / (np.sqrt(v / c) + 1e-10),
                            own, moment, gradient,
                        )  # fmt: skip
            downs[place] = {(kind, name): np.float32(own[name][0]) for kind, name in downs[place]}
    found = adapted(MODEL, params, text, 1, settings, fresh_downs=lambda number, documents: fresh)
    np.testing.assert_allclose(found.nats, expected, rtol=1e-4, atol=1e-4)


# --- which text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        make_text(last=False),
        make_text((1,)),
        make_text((2, 2), last=False),
        Text.of(np.arange(2, 30).astype(np.uint16), 1),
    ],
    ids=["ends in a BOS", "one target", "a BOS at the end of few", "no BOS at all"],
)
def test_odd_texts(odd, params):
    found = adapted(MODEL, params, odd, 1, SETTINGS)
    assert np.isfinite(found.nats).all() and len(found.nats) == len(odd.tokens) - 1


def test_too_few_tokens(params):
    with pytest.raises(DataError, match="found 1, expected at least 2"):
        adapted(MODEL, params, make_text((1,)).first(1), 1, SETTINGS)


def test_settings_that_do_not_fit_the_text_or_each_other(params, text):
    short = dataclasses.replace(SETTINGS, sgd=dataclasses.replace(SETTINGS.sgd, chunk_tokens=8))
    with pytest.raises(ConfigError, match="chunk_tokens is 8: expected at least 12, a row of row_length"):
        adapted(MODEL, params, text, 1, short)


def test_a_second_evaluation_compiles_nothing(params, text, phased):
    def heard(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(heard)
    again = adapted(MODEL, params, text, 1, SETTINGS)
    assert len(compiled) == 0
    np.testing.assert_array_equal(again.nats, phased.nats)
    jax.jit(lambda x: 2 * x + 41)(1.0)
    assert len(compiled) > 0, "the event has another name now"


@pytest.mark.parametrize("how", [{"additions": ()}, {"additions": ("head",)}, {"warm_start": False}])
def test_parts_that_are_left_out(how, params, text, phased):
    found = adapted(MODEL, params, text, 1, dataclasses.replace(SETTINGS, **how))
    assert np.isfinite(found.nats).all() and not np.array_equal(found.nats, phased.nats)


# --- windows, calls, phases ----------------------------------------------------------------------


def test_contexts_of_all_chunks():
    """Against a plain loop, document by document."""
    documents = order.Documents(np.array([0, 100, 200]), np.array([5, 30, 61]))
    seen = {0: [], 1: [], 2: []}
    for rows in order.chunk_rows(documents, np.array([6, 6, 6]), CONTEXT):
        for place, start, first, count, trains in zip(*rows, strict=True):
            seen[place].append((start - documents.start[place], first, count, trains))
    for place, size in enumerate(documents.num_targets):
        expected, chunks = [], -(-size // 6)
        for number in range(chunks):
            end = size if number == chunks - 1 else (number + 1) * 6
            start = max(0, end - CONTEXT)
            expected.append((start, number * 6 - start, end - number * 6, number < chunks - 1))
        assert seen[place] == expected


@pytest.mark.parametrize("num_devices", [1, 2, 3])
def test_calls_hold_every_row_once(num_devices):
    rng = np.random.default_rng(0)
    shapes = program_shapes((8, 16, 24), lambda width: {8: 6, 16: 3, 24: 9}[width])
    for _ in range(20):
        count = rng.integers(1, 20)
        length = rng.integers(1, 25, count)
        scored = np.minimum(length, 6)
        rows = order.Rows(np.arange(count), length, length - scored, scored, rng.random(count) < 0.8)
        taken = []
        for call in calls_of(rows, shapes, num_devices):
            device = np.repeat(np.arange(num_devices), call.shape.rows)
            own = call.rows[call.is_row]
            assert (own.length <= call.shape.width).all() and call.trains == own.trains.any()
            assert (own.place % num_devices == device[call.is_row]).all()
            taken += own.place.tolist()
        assert sorted(taken) == list(range(count))


def test_shapes_of_programs():
    assert padded_widths(AdaptedConfig(), 2048) == (256, 512, 1024, 1536, 2048)
    assert padded_widths(AdaptedConfig(), 3072) == (384, 768, 1536, 2304, 3072)
    assert padded_widths(AdaptedConfig(widths=(100, 300, 5000)), 2000) == (100, 384, 2048)
    shapes = program_shapes((512, 1024, 2048), lambda width: 32_768 // width)
    assert {(64, 512), (32, 1024), (16, 2048), (4, 2048), (1, 2048)} == set(map(tuple, shapes))
    assert all(isinstance(shape, Shape) for shape in shapes)


def test_phases_take_the_shortest_of_the_longest():
    documents = order.Documents(np.arange(10) * 100, np.array([5, 9, 1, 8, 3, 7, 2, 6, 4, 10]))
    batches = order.batches_of(documents, 3)
    queue = order.queue_of(documents, batches)
    assert [documents.num_targets[batches[number]].tolist() for number in queue] == [
        [10],
        [7, 8, 9],
        [4, 5, 6],
        [1, 2, 3],
    ]
    phases = order.phases_of(dataclasses.replace(SETTINGS, phases=3, phase_documents=8), documents, batches, queue)
    found = {place: own.num_targets.tolist() for place, own in phases.items()}
    assert found == {1: [7, 8], 2: [4, 5, 6, 7, 8]}  # after the last batch, for the third, nothing is left to score
    assert not order.phases_of(dataclasses.replace(SETTINGS, phase_documents=0), documents, batches, queue)


# --- windows that slide, weights that are trained ------------------------------------------------


@pytest.mark.parametrize("within_documents", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tuned_by_a_plain_loop(within_documents, params, text):
    seq_len, stride = 12, 4
    found = tuned(MODEL, params, text, seq_len, stride, TUNED, within_documents=within_documents, batch_tokens=24)
    num_targets = len(text.tokens) - 1
    document = np.searchsorted(text.starts, np.arange(num_targets), side="right")
    piece_length = seq_len if within_documents else 0

    @jax.jit
    def nats_of(params, inputs, targets):
        return token_losses(MODEL, params, inputs, targets)

    @jax.jit
    def gradient_of(params, tokens):
        """Two shares of two rows: the mean of their gradients."""

        def loss(params, part):
            shape = (1, -1) if within_documents else (-1, seq_len)
            x, y = part[:-1].reshape(shape), part[1:].reshape(shape)
            return jnp.mean(token_losses(MODEL, params, x, y, piece_length=piece_length))

        parts = [jax.grad(loss)(params, tokens[first : first + 25]) for first in (0, 24)]
        return jax.tree.map(lambda a, b: (a + b) / 2, *parts)

    weights, momentum = params, {path: np.zeros_like(value) for path, value in params.items()}
    num_chunks = -(-num_targets // 48)
    expected = np.full(num_targets, UNSCORED)
    for chunk in range(num_chunks):
        for target in range(num_targets):
            origin = text.starts[document[target] - 1] if within_documents else 0
            place = target - origin
            start = 0 if place < seq_len else -(-(place + 1 - seq_len) // stride) * stride
            first_scored = origin + (0 if start == 0 else start + seq_len - stride)
            if first_scored // 48 != chunk:
                continue
            inputs, targets = np.zeros((2, 1, seq_len), np.int32)
            length = place - start + 1
            inputs[0, :length] = text.tokens[origin + start : target + 1]
            targets[0, :length] = text.tokens[origin + start + 1 : target + 2]
            expected[target] = nats_of(weights, inputs, targets)[0, length - 1]
        if chunk == num_chunks - 1:
            break
        rate = 0.1 * (1 + np.cos(np.pi * chunk / (num_chunks - 1))) / 2
        for _ in range(TUNED.epochs):
            gradient = gradient_of(weights, text.tokens[48 * chunk : 48 * chunk + 49].astype(np.int32))
            norm = np.sqrt(sum(np.sum(np.square(value)) for value in gradient.values()))
            factor = min(1, 1 / (norm + 1e-6))
            momentum = {path: 0.9 * momentum[path] + factor * value for path, value in gradient.items()}
            weights = {path: value - rate * momentum[path] for path, value in weights.items()}
    np.testing.assert_allclose(found.nats, expected, rtol=2e-4, atol=2e-4)
    if not within_documents:
        assert np.abs(found.nats - sliding(MODEL, params, text, seq_len, stride).nats).max() > 1e-2


def test_tuned_is_causal(params, text):
    before, after = (tuned(MODEL, params, one, 12, 4, TUNED).nats for one in (text, changed_at(text, 100)))
    np.testing.assert_array_equal(after[:99], before[:99])
    assert after[99] != before[99]


# --- an interrupted evaluation ---------------------------------------------------------------------


class Stopped(Exception):
    pass


def stops_at(count):
    def tell(done, how):
        if done >= count:
            raise Stopped

    return tell


SCORERS = {
    "adapted": lambda params, text, **how: adapted(MODEL, params, text, 1, SETTINGS, **how),
    "no warm start": lambda params, text, **how: adapted(
        MODEL, params, text, 1, dataclasses.replace(SETTINGS, warm_start=False), **how
    ),
    "tuned": lambda params, text, **how: tuned(MODEL, params, text, 12, 4, TUNED, batch_tokens=24, **how),
}


@pytest.mark.parametrize("name", SCORERS)
def test_an_interrupted_evaluation_goes_on_to_the_same_bits(name, params, text, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "EVERY_S", 0.0)
    file, scorer = tmp_path / "kept.npz", SCORERS[name]
    expected = scorer(params, text)
    told = []
    for count in (150, sum(LENGTHS) - 20):
        with pytest.raises(Stopped):
            scorer(params, text, resume_file=file, tell=stops_at(count))
        assert file.exists()
    found = scorer(params, text, resume_file=file, tell=lambda done, how: told.append(done))
    np.testing.assert_array_equal(found.nats, expected.nats)
    assert found.context == expected.context and found.earlier_s > 0
    assert told[0] > 50 and told[-1] == len(text.tokens) - 1
    assert not file.exists() and not list(tmp_path.iterdir())


def test_what_was_kept_for_something_else(params, text, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "EVERY_S", 0.0)
    file = tmp_path / "kept.npz"
    with pytest.raises(Stopped):
        SCORERS["adapted"](params, text, resume_file=file, tell=stops_at(150))
    others = {path: value + np.float32(0.01) for path, value in params.items()}
    for weights, what in ((others, text), (params, changed_at(text, 5))):
        with pytest.raises(JgolfError, match=r"kept\.npz: kept by an evaluation of other weights, text or settings"):
            SCORERS["adapted"](weights, what, resume_file=file)
    data = file.read_bytes()
    for damaged in (b"", data[: len(data) // 2], b"PK\x03\x04" + bytes(100), data[:2000] + bytes(64) + data[2064:]):
        file.write_bytes(damaged)
        with pytest.raises(JgolfError, match=re.escape(str(file)) + ": not what an interrupted evaluation keeps"):
            SCORERS["adapted"](params, text, resume_file=file)
    with pytest.raises(JgolfError, match="cannot be read: Is a directory"):
        SCORERS["adapted"](params, text, resume_file=tmp_path)
    with pytest.raises(JgolfError, match=r"below: cannot be written: .*kept\.npz is a file, expected a folder"):
        SCORERS["adapted"](params, text, resume_file=file / "below")
