"""Test-time training against the numbers of the script of pull request #1855, one process on the CPU in float32."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import jax
import numpy as np
import pytest

from jgolf.config import AdaptedConfig, SGDConfig
from jgolf.config.plan import make_plan
from jgolf.data.text import Text
from jgolf.evaluate.score import reference_packed_score, summarize
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.evaluate.ttt.order import batches_of, documents_of, queue_of
from jgolf.model.context import piece_starts
from jgolf.model.lora import HEAD
from jgolf.torch_bridge.names import from_params
from tests.conftest import GOLDEN, params_of
from tests.pr1855 import model_of

FACTS = json.loads((GOLDEN / "ttt" / "ttt.json").read_text())
SETTINGS = FACTS["settings"]
MODEL = model_of(SETTINGS)
PHASED = AdaptedConfig(
    rank=SETTINGS["ttt_lora_rank"],
    alpha=FACTS["alpha"],
    chunk=SETTINGS["ttt_chunk_size"],
    context=SETTINGS["ttt_eval_seq_len"],
    learning_rate=SETTINGS["ttt_lora_lr"],
    beta2=SETTINGS["ttt_beta2"],
    weight_decay=SETTINGS["ttt_weight_decay"],
    batch_documents=SETTINGS["ttt_batch_size"],
    phases=SETTINGS["phased_ttt_num_phases"],
    phase_documents=SETTINGS["phased_ttt_prefix_docs"],
    sgd=SGDConfig(
        learning_rate=SETTINGS["global_ttt_lr"],
        momentum=SETTINGS["global_ttt_momentum"],
        grad_clip=SETTINGS["global_ttt_grad_clip"],
        chunk_tokens=SETTINGS["global_ttt_chunk_tokens"],
        row_length=SETTINGS["eval_seq_len"],
        batch_rows=SETTINGS["global_ttt_batch_seqs"],
        num_ranks=1,
    ),
    widths=(96,),
    batch_tokens=96 * 4,
)
LORA = dataclasses.replace(PHASED, phase_documents=0)
RUNS = {
    "before": dataclasses.replace(LORA, learning_rate=0.0),
    "lora": LORA,
    "phased_lr0": dataclasses.replace(PHASED, sgd=dataclasses.replace(PHASED.sgd, learning_rate=0.0)),
    "phased": PHASED,
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "ttt" / "ttt.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def params(golden):
    return params_of(golden, "state/")


@pytest.fixture(scope="module")
def text():
    with np.load(GOLDEN / "packed_validation.npz") as arrays:
        return Text.of(arrays["tokens"], 1, arrays["sidecar"])


def recorded_downs():
    """Down-projections as the script's were made: one stream of numbers, kind after kind."""
    random, plan = np.random.default_rng(FACTS["fresh_seed"]), make_plan(MODEL)
    kinds = {HEAD: 1, **dict.fromkeys(("q", "v", "k", "mlp", "o"), len(plan))}
    bound, rest = MODEL.model_dim**-0.5, list(FACTS["fresh_documents"])

    def fresh(number, documents):
        assert documents == rest.pop(0)
        shape = (documents, PHASED.rank, MODEL.model_dim)
        return {
            kind: np.stack([random.uniform(-bound, bound, shape) for _ in range(slots)], 1).swapaxes(2, 3)
            for kind, slots in kinds.items()
        }

    return fresh


@pytest.fixture(scope="module")
def run(params, text):
    """Of a run, by its name, what it found, and what was to be seen on the way."""

    @cache
    def found(name):
        seen = {}

        def observe(what, place, value):
            if what == "adapters":
                seen[what, place, value[0]] = jax.tree.map(np.asarray, value[1].values)
            elif what == "weights":
                seen[what, place] = from_params({path: np.asarray(array) for path, array in value.items()})
            else:
                seen[what, place] = value

        downs = recorded_downs()
        return adapted(MODEL, params, text, 1, RUNS[name], fresh_downs=downs, observe=observe), seen

    return found


@pytest.mark.parametrize("name", ["before", "lora", pytest.param("phased_lr0", marks=pytest.mark.slow), "phased"])
def test_scores(name, run, golden, text):
    nats, expected = run(name)[0].nats, FACTS["results"][name]
    np.testing.assert_allclose(nats, golden[f"{name}/nll"], rtol=0, atol=2e-5)
    score = summarize(nats, text.target_bytes)
    assert score.tokens == len(text.tokens) - 1
    assert score.val_loss == pytest.approx(expected["val_loss"], abs=1e-5)
    assert score.val_bpb == pytest.approx(expected["val_bpb"], abs=1e-5)


def test_order_of_batches(text):
    documents = documents_of(text.starts, len(text.tokens))
    batches = batches_of(documents, PHASED.batch_documents)
    order = [batches[number].tolist() for number in queue_of(documents, batches)]
    assert all(order == FACTS["results"][name]["batch_order"] for name in RUNS)


def test_additions_on_the_way(run, golden, text):
    """Those of a document that has ended decay in the script at every step, here at the end of the batch."""
    documents = documents_of(text.starts, len(text.tokens))
    order = [np.array(batch) for batch in FACTS["results"]["lora"]["batch_order"]]
    for place, chunk in ((0, 0), (0, 1), (3, 1)):
        values = run("lora")[1]["adapters", place, chunk]
        own_steps = -(-documents.num_targets[order[place]] // PHASED.chunk) - 1
        decays = (1 - PHASED.learning_rate * PHASED.weight_decay) ** np.maximum(chunk + 1 - own_steps, 0)
        for module, kind in (("lm_head_lora", HEAD), ("q_loras.0", "q")):
            for factor, array in zip("AB", values[kind], strict=True):
                expected = golden[f"lora_trace/batch{place}_chunk{chunk}/{module}.{factor}"].swapaxes(1, 2)
                difference = decays[:, None, None] * array[: len(decays), 0] - expected
                assert np.mean(np.abs(difference) < 1e-5) > 0.998


def test_phases(run, golden, params):
    seen, start = run("phased")[1], from_params({path: np.asarray(value) for path, value in params.items()})
    places = [done - 1 for done in FACTS["phase_after_batches"]]
    assert sorted(place for what, place in (key for key in seen if len(key) == 2) if what == "sgd") == places
    log = [
        (phase, report.learning_rate, report.grad_norm, report.loss)
        for phase, place in enumerate(places)
        for report in seen["sgd", place]
    ]
    np.testing.assert_allclose(np.array(log, float), golden["sgd"], rtol=2e-4)
    before = start
    for phase, place in enumerate(places):
        np.testing.assert_array_equal(seen["tokens", place], golden[f"phase/{phase}/tokens"])
        after = seen["weights", place]
        norms = [np.linalg.norm(after[name].astype(np.float64)) for name in FACTS["param_names"]]
        np.testing.assert_allclose(norms, golden["phase_param_norms"][phase], rtol=1e-5)
        prefix = f"phase/{phase}/params/"
        for name in (name.removeprefix(prefix) for name in golden if name.startswith(prefix)):
            expected, had = golden[prefix + name], before[name].reshape(-1) if name == "kv_bank" else before[name]
            found = after[name].reshape(-1) if name == "kv_bank" else after[name]
            if name == "kv_bank":
                found, had = found[::11], had[::11]
            assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected - had), name
        before = after


def test_cuts_of_packed_rows(golden):
    """Where a phase's rows are cut: at every BOS and row length, seams of documents included."""
    cuts = []
    for phase in range(2):
        tokens, size = golden[f"phase/{phase}/tokens"], PHASED.sgd.chunk_tokens
        for chunk in range(-(-(len(tokens) - 1) // size) - 1):
            row = tokens[None, chunk * size : (chunk + 1) * size].astype(np.int32)
            begins = np.asarray(piece_starts(row, PHASED.sgd.row_length))[0]
            cuts.append([*np.flatnonzero(begins).tolist(), size])
    assert cuts == FACTS["sgd_segments"]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_standard_validation(num_ranks, params, text):
    facts = json.loads((GOLDEN / "packed_validation.json").read_text())
    expected = facts[f"world{num_ranks}"]
    found = reference_packed_score(MODEL, params, text, facts["seq_len"], facts["rows_per_batch"], num_ranks)
    assert (found.tokens, found.bytes) == (expected["tokens"], expected["bytes"])
    assert found.val_loss == pytest.approx(expected["val_loss"], abs=1e-5)
    assert found.val_bpb == pytest.approx(expected["val_bpb"], abs=1e-5)
