"""Artifacts made to do harm, checksum and all, at random: refused with an ArtifactError, or harmless.

`python -m tests.fuzz` tries many more, and every other kind of file.
"""

import copy
import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from stored_examples import stored_example

from jgolf.artifact import container
from jgolf.artifact.scoring import Artifact, read_artifact
from jgolf.errors import ArtifactError
from jgolf.model.functional import parameter_shapes
from jgolf.quantize.stored import StoredTensor
from tests.conftest import RECIPE
from tests.fuzz.mutations import changed_json, chunks_of, damaged_chunks, framed, sealed

MOST_BYTES = 64 << 20  # that reading these few kilobytes may take


def examples(codec):
    yield container.pack(stored_example(), {"name": "x", "model": {"layers": [1, 2]}}, codec)
    yield container.pack(stored_example(rows=1, columns=2), {}, codec)
    yield container.pack({}, {}, codec)


def refuses_or_reads(rng, chunks):
    """Whether it was refused; anything but a refusal or finite numbers, or a lot of memory, fails."""
    data = damaged_chunks(rng, chunks)
    tracemalloc.start()
    try:
        found, _ = container.unpack(data, "model.jgolf")
    except ArtifactError as error:
        assert str(error).startswith("model.jgolf: ") and len(str(error)) < 1000
        return True
    else:
        assert all(np.isfinite(tensor.dequantize()).all() for tensor in found.values())
        return False
    finally:
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        tracemalloc.stop()


@pytest.fixture(params=["zstd", "range"])
def codec(request):
    if request.param == "range":
        pytest.importorskip("constriction")
    return request.param


def test_damaged_artifacts_are_refused_or_harmless(codec):
    rng = np.random.default_rng(0)
    known = [chunks_of(data) for data in examples(codec)]
    refused = [refuses_or_reads(rng, known[i % len(known)]) for i in range(600)]
    assert 0.5 < np.mean(refused) < 1


MODEL = dataclasses.replace(
    RECIPE.model,
    vocab_size=16,
    num_layers=2,
    model_dim=8,
    num_heads=2,
    num_kv_heads=1,
    bigram_buckets=8,
    bigram_dim=4,
    xsa_layers=(1,),
    value_embedding_layers=(1,),
    value_embedding_dim=4,
    rope_dims=4,
)
STORED = {path: StoredTensor.floats("fp16", np.zeros(shape)) for path, shape in parameter_shapes(MODEL).items()}
METADATA = Artifact("tiny", MODEL, 64, False, "0" * 64, STORED).metadata()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seq_len": 0}, "seq_len 0"),
        ({"seq_len": "64"}, "seq_len is '64'"),
        ({"seq_len": True}, "seq_len is True"),
        ({"seq_len": 1 << 40}, "seq_len is 1099511627776, expected at most"),
        ({"tokenizer_fingerprint": 7}, "tokenizer_fingerprint is 7"),
        ({"name": ["x"]}, "name is"),
        ({"model": 7}, "do not describe a model"),
        ({"num_layers": 1_000_000}, "num_layers is 1000000: expected at most 1,000"),
        ({"num_layers": 1000}, "num_layers 1000 with"),
        ({"num_layers": 10**30}, "num_layers is 1000000000000000000000000000000, expected at most"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"num_heads": 0}, "model.num_heads is 0: expected at least 1"),
        ({"model_dim": 1_000_000}, "model.xsa|embed/embedding: found"),
        ({"xsa_layers": [5, 5]}, "different layers in rising order"),
        ({"mlp_multiple": 1e308}, "do not describe a model"),
        ({"logit_softcap": "nan"}, "logit_softcap is 'nan'"),
        ({"rope_base": 10**400}, "the header is damaged: a number of 401 characters"),
    ],
)
def test_metadata_from_which_no_network_should_be_built(changes, message, tmp_path):
    metadata = copy.deepcopy(METADATA)
    for name, value in changes.items():
        (metadata if name in metadata else metadata["model"])[name] = value
    container.write(tmp_path / "model.jgolf", container.pack(STORED, metadata, zstd_level=1))
    with pytest.raises(ArtifactError, match=message) as error:
        read_artifact(tmp_path / "model.jgolf")
    assert str(error.value).startswith(str(tmp_path))


def test_any_metadata_are_refused_or_describe_the_model(tmp_path):
    rng = np.random.default_rng(0)
    chunks = chunks_of(container.pack(STORED, METADATA))
    refused = 0
    for _ in range(300):
        header = {**json.loads(chunks[0]), "metadata": json.loads(changed_json(rng, json.dumps(METADATA)).decode())}
        text = json.dumps(header).encode().replace(b"Infinity", b"1e999")
        container.write(tmp_path / "model.jgolf", sealed(b"".join(map(framed, [text, *chunks[1:]]))))
        try:
            found = read_artifact(tmp_path / "model.jgolf")
        except ArtifactError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path))
        else:
            assert parameter_shapes(found.model) == parameter_shapes(MODEL)
    assert 150 < refused < 300
