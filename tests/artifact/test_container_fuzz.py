"""Artifacts made to do harm, checksum and all, at random: refused with an ArtifactError, or harmless.

`python -m pytest -m slow tests/artifact/test_container_fuzz.py` goes on for as many seconds as the environment
variable FUZZ_SECONDS says, 60 by default.
"""

import copy
import hashlib
import itertools
import json
import os
import time
import tracemalloc

import numpy as np
import pytest
import zstandard
from stored_examples import stored_example

from jgolf.artifact import container
from jgolf.artifact.scoring import Artifact, read_artifact
from jgolf.config import ModelConfig
from jgolf.errors import ArtifactError
from jgolf.model.functional import parameter_shapes
from jgolf.quantize.stored import StoredTensor

START_BYTES = 13  # magic, version, checksum
MOST_BYTES = 64 << 20  # that reading these few kilobytes may take
ABSURD = [
    None, True, 0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), "", "fp16", "int8", "zstd", "range",
    "\0", "é" * 99, "../../x", "blocks/0/mlp/up_proj/kernel", "blocks/٣/mlp_scale", [], [[]], {}, {"a": 1}, [1] * 2000,
]  # fmt: skip


def sealed(body):
    return b"JGLF\x01" + hashlib.blake2b(body, digest_size=8).digest() + body


def framed(raw, level=1):
    frame = zstandard.ZstdCompressor(level=level).compress(raw)
    return len(frame).to_bytes(4, "little") + frame


def chunks_of(data):
    """The unpacked chunks of an artifact."""
    chunks, position = [], START_BYTES
    while position < len(data):
        end = position + 4 + int.from_bytes(data[position : position + 4], "little")
        chunks.append(zstandard.decompress(data[position + 4 : end]))
        position = end
    return chunks


def places(value, path=()):
    """The path of every entry of a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from places(entry, (*path, key))


def changed_json(rng, text):
    """With one to three entries replaced, removed, doubled, or swapped for another of the same header."""
    header = json.loads(text)
    for _ in range(rng.integers(1, 4)):
        known = list(places(header))
        *way, last = known[rng.integers(len(known))]
        parent = header
        for key in way:
            parent = parent[key]
        match rng.integers(4):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, list):
                parent.insert(last, copy.deepcopy(parent[rng.integers(len(parent))]))
            case 2 if isinstance(parent[last], int):
                parent[last] += int(rng.integers(-2, 3))
            case _:
                parent[last] = copy.deepcopy(ABSURD[rng.integers(len(ABSURD))])
        if not header:
            break
    text = json.dumps(header).encode()
    return text.replace(b"Infinity", b"1e999")  # what JSON allows and float cannot hold


def changed_bytes(rng, raw):
    """With some bytes overwritten, cut off, or added."""
    raw = bytearray(raw)
    match rng.integers(4):
        case 0:
            del raw[rng.integers(len(raw) + 1) :]
        case 1:
            raw += rng.bytes(int(rng.integers(1, 9)))
        case _:
            for position in rng.integers(len(raw), size=rng.integers(1, 9)) if raw else ():
                raw[position] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    return bytes(raw)


def damaged(rng, chunks):
    """A sealed artifact in which the header, some chunks, their order or their frames are not as they should be."""
    chunks = list(chunks)
    if rng.random() < 0.4:
        chunks[0] = changed_json(rng, chunks[0])
    for _ in range(rng.integers(0, 3)):
        i = rng.integers(len(chunks))
        match rng.integers(6):
            case 0 if len(chunks) > 1:
                del chunks[i]
            case 1:
                chunks.insert(i, chunks[rng.integers(len(chunks))])
            case _:
                chunks[i] = changed_bytes(rng, chunks[i])
    body = b"".join(map(framed, chunks))
    return sealed(changed_bytes(rng, body) if rng.random() < 0.2 else body)


def examples(codec):
    yield container.pack(stored_example(), {"name": "x", "model": {"layers": [1, 2]}}, codec)
    yield container.pack(stored_example(rows=1, columns=2), {}, codec)
    yield container.pack({}, {}, codec)


def refuses_or_reads(rng, chunks):
    """Whether it was refused; anything but a refusal or finite numbers, or a lot of memory, fails."""
    data = damaged(rng, chunks)
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


@pytest.mark.slow
def test_damaged_artifacts_are_refused_or_harmless_for_long(codec):
    known = [chunks_of(data) for data in examples(codec)]
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", 60))
    for seed in itertools.count(1):
        try:
            refuses_or_reads(np.random.default_rng(seed), known[seed % len(known)])
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        if time.monotonic() > end:
            break


MODEL = ModelConfig(
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
METADATA = Artifact("tiny", MODEL, 64, "0" * 64, STORED).metadata()


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
        ({"num_layers": 1_000_000}, "num_layers 1000000 with"),
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
        header = {**json.loads(chunks[0]), "metadata": json.loads(changed_json(rng, json.dumps(METADATA)))}
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
