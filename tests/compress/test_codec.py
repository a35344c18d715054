"""Files by a model, and back: the same bytes, the size that its probabilities predict, and nothing else ever."""

from __future__ import annotations

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.compress import codec as codec_module
from jgolf.compress.codec import Codec
from jgolf.compress.coding import Coder, num_streams
from jgolf.compress.container import Reader
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.shards import BOS_ID
from jgolf.data.tokenizer import load_tokenizer
from jgolf.errors import ArtifactError
from jgolf.model.functional import token_losses
from tests.compress.examples import EXAMPLES, letters, letters_model

STREAMS = 20  # two lanes, ten turns


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    path.write_bytes(byte_tokenizer_file())
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def codec(byte_tokenizer):
    return Codec(*letters_model(byte_tokenizer), byte_tokenizer, "letters.jgolf")


def compressed(codec: Codec, data: bytes, streams: int = STREAMS, **how: int) -> tuple[bytes, codec_module.Report]:
    sink = io.BytesIO()
    report = codec.compress(io.BytesIO(data), len(data), sink, "a file", streams, **how)
    assert report.compressed == len(sink.getvalue())
    return sink.getvalue(), report


def decompressed(codec: Codec, data: bytes) -> bytes:
    sink = io.BytesIO()
    codec.decompress(Reader(io.BytesIO(data), "a file.jgz"), sink, "a file.jgz")
    return sink.getvalue()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_bytes_come_back(name, codec):
    data, report = compressed(codec, EXAMPLES[name])
    assert decompressed(codec, data) == EXAMPLES[name]
    assert report.without_model in (0, len(EXAMPLES[name]))
    assert len(data) < len(EXAMPLES[name]) + 300
    if name == "one long line":
        assert report.tokens == len(EXAMPLES[name]) and report.streams == STREAMS


def test_by_a_sentence_piece_tokenizer(nano_data):
    tokenizer = load_tokenizer(nano_data / "nano.model")
    codec = Codec(*letters_model(tokenizer), tokenizer, "letters.jgolf")
    text = "\n".join([letters(1200), "Ünïcode …", letters(900, 1)]).encode() + b"\xff"
    data, report = compressed(codec, text)
    assert report.tokens and decompressed(codec, data) == text


def test_the_size_is_what_the_probabilities_predict(codec):
    text = letters(15_000).encode()
    data, report = compressed(codec, text)
    assert 0 < report.overhead < 0.001 + 8 * 2 / report.predicted
    assert report.compressed - report.coded < 200 + report.rest
    assert report.without_model == 0
    assert report.early[0] == STREAMS * 16 and report.early[0] + report.late[0] == report.tokens == 15_000
    assert report.bits == pytest.approx([8 * report.predicted / report.tokens] * 2, rel=0.1)  # letters have no past
    assert decompressed(codec, data) == text


def test_predictions_are_those_of_whole_windows(byte_tokenizer):
    """Every stream's windows run over again, each in one pass: the second half of a window is new but for the first."""
    config, params = letters_model(byte_tokenizer)
    params = {path: jnp.asarray(value * (1 if path == "head/kernel" else 8)) for path, value in params.items()}
    tokens = np.random.default_rng(0).integers(4, 260, 3 * 70)
    _, nats = Coder(config.model, params, 3, 32, 32).encode(tokens)
    rows = np.concatenate([np.full((3, 1), BOS_ID), tokens.reshape(3, 70)], axis=1).astype(np.int32)
    expected = np.zeros((3, 70))
    rows = np.pad(rows, ((0, 0), (0, 32)))  # behind the end, where causality hides it
    losses = jax.jit(lambda *rows: token_losses(config.model, params, *rows))
    for start in (0, 16, 32, 48):
        first = 16 if start else 0
        found = np.asarray(losses(rows[:, start : start + 32], rows[:, start + 1 : start + 33]))
        expected[:, start + first : start + 32] = found[:, first : 70 - start]
    np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-4)


def test_several_segments(codec, monkeypatch):
    monkeypatch.setattr(codec_module, "SEGMENT_BYTES", 700)
    text = letters(700).encode() + np.random.default_rng(2).bytes(700) + letters(690).encode()
    told = []
    data, report = compressed(codec, text, advance=told.append)
    assert report.without_model in (696, 697) and report.tokens > 1300
    assert sum(told) == len(text)
    assert decompressed(codec, data) == text


@pytest.mark.parametrize(
    ("tokens", "context", "most", "expected"),
    [
        (0, 32, 99, 1),
        (33, 32, 99, 2),
        (512, 32, 99, 16),
        (700, 32, 99, 16),
        (10**6, 2048, 999, 496),
        (10**8, 32, 40, 32),
    ],
)
def test_number_of_streams(tokens, context, most, expected):
    assert num_streams(tokens, context, most) == expected


# --- refusals ------------------------------------------------------------------------------------


def test_damage_is_refused(codec):
    data, _ = compressed(codec, letters(500).encode())
    for place in (0, 4, 5, 30, len(data) // 2, len(data) - 1):
        bad = bytearray(data)
        bad[place] ^= 1
        with pytest.raises(ArtifactError, match="a file.jgz: "):
            decompressed(codec, bytes(bad))
    for size in (0, 3, 20, len(data) - 1):
        with pytest.raises(ArtifactError, match="a file.jgz: "):
            decompressed(codec, data[:size])
    with pytest.raises(ArtifactError, match="a file.jgz: damaged or cut off"):
        decompressed(codec, data + b"\0")


def test_another_model_is_refused_by_name(codec, byte_tokenizer):
    data, _ = compressed(codec, letters(500).encode())
    other = Codec(*letters_model(byte_tokenizer, seed=1), byte_tokenizer, "other.jgolf")
    with pytest.raises(ArtifactError, match=r"compressed by the model letters \(letters.jgolf, .*not by other.jgolf"):
        decompressed(other, data)


def test_a_machine_with_other_numbers_is_refused(byte_tokenizer, codec, monkeypatch):
    data, _ = compressed(codec, letters(500).encode())
    config, params = letters_model(byte_tokenizer)
    params["head/kernel"] = params["head/kernel"] * np.float32(1 + 1e-5)
    other = Codec(config, params, byte_tokenizer, "letters.jgolf")
    monkeypatch.setattr(other, "_hash", codec._hash)
    with pytest.raises(ArtifactError, match=r"compressed on cpu cpu, jax .*the model's numbers differ"):
        decompressed(other, data)
    # One that the probe does not find out.
    monkeypatch.setattr(other._coder, "probe", codec._coder.probe)
    with pytest.raises(ArtifactError, match="is not what was compressed"):
        decompressed(other, data)


def test_a_model_without_finite_probabilities(byte_tokenizer):
    config, params = letters_model(byte_tokenizer)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, logit_softcap=0.0))
    params["head/kernel"] = params["head/kernel"] * np.float32(3e38)
    with pytest.raises(ArtifactError, match="probabilities are not finite"):
        compressed(Codec(config, params, byte_tokenizer, "x"), letters(100).encode())


@pytest.mark.parametrize("size", [0, 599])
def test_a_file_that_goes_on(codec, size):
    """It grows, or tells no size, as those of /proc: what is left out would be lost."""
    with pytest.raises(ArtifactError, match=f"a file: goes on after its {size} bytes: .* compress a copy of it"):
        codec.compress(io.BytesIO(letters(600).encode()), size, io.BytesIO(), "a file", STREAMS)


def test_a_file_that_ends_too_early(codec):
    with pytest.raises(ArtifactError, match="a file: ends before its 600 bytes"):
        codec.compress(io.BytesIO(b"x" * 500), 600, io.BytesIO(), "a file", STREAMS)
