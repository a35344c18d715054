"""Artifacts come back as they were written, or are refused with an ArtifactError: never anything else."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
import zstandard
from stored_examples import assert_same_stored, stored_example

from jgolf.artifact import container
from jgolf.errors import ArtifactError, MissingExtraError
from jgolf.quantize.stored import StoredTensor

METADATA = {"name": "pr592", "model": {"num_layers": 12, "layers": [1, 2]}, "tokenizer_fingerprint": "é"}
START_BYTES = 13  # magic, version, checksum


@pytest.fixture(params=["zstd", "range"])
def codec(request):
    if request.param == "range":
        pytest.importorskip("constriction")
    return request.param


def sealed(body):
    """An artifact with a right checksum around any body: what someone who means harm would send."""
    return b"JGLF\x01" + hashlib.blake2b(body, digest_size=8).digest() + body


def chunk(raw):
    frame = zstandard.compress(raw)
    return len(frame).to_bytes(4, "little") + frame


def with_header(tensors, codec="zstd", metadata=None, rest=b""):
    header = {"codec": codec, "metadata": metadata or {}, "tensors": tensors}
    return sealed(chunk(json.dumps(header).encode()) + rest)


def test_everything_comes_back(codec, tmp_path):
    stored = stored_example()
    container.write(tmp_path / "model.jgolf", container.pack(stored, METADATA, codec))
    found, metadata = container.read(tmp_path / "model.jgolf")
    assert_same_stored(found, stored)
    assert metadata == METADATA


def test_the_same_input_gives_the_same_bytes(codec):
    assert container.pack(stored_example(), METADATA, codec) == container.pack(stored_example(), METADATA, codec)


def test_an_artifact_without_tensors_comes_back(codec):
    assert container.unpack(container.pack({}, METADATA, codec)) == ({}, METADATA)


@pytest.mark.parametrize("spread", [0.1, 0.7, 3.0, 30.0, 100.0])
def test_matrices_of_any_spread_come_back(codec, spread):
    rng = np.random.default_rng(3)
    levels = rng.standard_t(2, (300, 200)) * spread * rng.exponential(size=(300, 1)) * rng.exponential(size=200)
    levels = np.clip(np.rint(levels), -128, 127).astype(np.int8)
    path = "blocks/3/mlp/up_proj/kernel"
    stored = {path: StoredTensor.integers(path, "int8", levels, np.ones(300, np.float16))}
    assert_same_stored(container.unpack(container.pack(stored, {}, codec, zstd_level=1))[0], stored)


def test_every_flipped_bit_is_noticed(codec):
    data = container.pack(stored_example(rows=3, columns=6), {}, codec)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(ArtifactError, match="model.jgolf"):
                container.unpack(bytes(damaged), "model.jgolf")


def test_every_truncation_and_anything_appended_is_noticed(codec):
    data = container.pack(stored_example(), METADATA, codec)
    for length in range(len(data)):
        with pytest.raises(ArtifactError, match="model.jgolf"):
            container.unpack(data[:length], "model.jgolf")
    with pytest.raises(ArtifactError):
        container.unpack(data + b"\0")
    with pytest.raises(ArtifactError, match="1 bytes follow the last tensor"):
        container.unpack(sealed(data[START_BYTES:] + b"\0"))


def test_damage_under_a_right_checksum_is_refused_or_harmless(codec):
    body = container.pack(stored_example(), METADATA, codec)[START_BYTES:]
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(300):
        damaged = bytearray(body)
        for position in rng.integers(len(body), size=rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            found, _ = container.unpack(sealed(bytes(damaged)))
        except ArtifactError:
            refused += 1
        else:
            assert all(np.isfinite(tensor.dequantize()).all() for tensor in found.values())
    assert refused > 100
    for length in range(0, len(body), 11):
        with pytest.raises(ArtifactError):
            container.unpack(sealed(body[:length]))


@pytest.mark.parametrize(
    "tensors",
    [
        [["embed/embedding", "fp16", [2**40, 2**40]]],
        [["embed/embedding", "fp16", [2**20, 2**20]]],
        [[f"blocks/{i}/mlp/up_proj/kernel", "int5", [2**12, 2**12]] for i in range(9)],
        [["embed/embedding", "fp16", [-1, -4]]],
        [["embed/embedding", "fp16", [0, 4]]],
        [["embed/embedding", "fp16", [2.0, 4]]],
        [["embed/embedding", "fp16", [True, 4]]],
        [["embed/embedding", "fp16", ["2", 4]]],
        [["embed/embedding", "fp16", [float("nan"), 4]]],
        [["embed/embedding", "fp16", 4]],
        [["embed/embedding", "fp16", [2, 2, 2]]],
        [["embed/embedding", "int8", [4]]],
        [["embed/embedding", "int3", [2, 4]]],
        [["embed/embedding", ["fp16"], [2, 4]]],
        [["nobody/kernel", "fp16", [2, 4]]],
        [["../../etc/passwd", "fp16", [2, 4]]],
        [[7, "fp16", [2, 4]]],
        [["embed/embedding", "fp16", [2, 4]]] * 2,
        [["embed/embedding", "fp16"]],
        [["embed/embedding", "fp16", [2, 4], [1, 1, 1, 4]]],
        [["embed/embedding", "int8", [2, 4], [1, 1, 1, 4], []]],
        [["embed/embedding", "int8", [2, 4], [3, 1, 1, 4]]],
        [["embed/embedding", "int8", [2, 4], [0, 1, 1, 4]]],
        [["embed/embedding", "int8", [2, 4], [1, 3, 1, 4]]],
        [["embed/embedding", "int8", [2, 4], [1, 1, 0, 4]]],
        [["embed/embedding", "int8", [2, 4], [1, 1, 1, 9]]],
        [["embed/embedding", "int8", [2, 4], [1, 1, 1]]],
        [["embed/embedding", "int8", [2, 4], [True, 1, 1, 4]]],
        [["embed/embedding", "int8", [2, 4], {}]],
        [["embed/embedding", "int8", [2**20, 64], [64, 2**26, 2**12, 4]]],
        [None],
        None,
        {},
        "embed/embedding",
    ],
)
def test_absurd_tensors_are_refused_before_memory_is_taken(tensors):
    data = with_header(tensors)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="model.jgolf: "):
        container.unpack(data, "model.jgolf")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_values_of_corrections_count():
    with pytest.raises(ArtifactError, match="of 134221824 values in all"):
        container.unpack(with_header([["embed/embedding", "int8", [2**20, 64], [64, 2**26, 2**12, 4]]]))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"7",
        b"9" * 10_000,
        b'{"codec": "zstd", "metadata": {}}',
        b'{"codec": "zstd", "metadata": {}, "tensors": [], "more": 1}',
        b'{"codec": "lzma", "metadata": {}, "tensors": []}',
        b'{"codec": ["zstd"], "metadata": {}, "tensors": []}',
        b'{"codec": "zstd", "metadata": [], "tensors": []}',
        b'{"codec": "zstd", "metadata": {"x": NaN}, "tensors": []}',
        b" " * ((1 << 20) + 1),
    ],
)
def test_headers_that_are_not_ours_are_refused(text):
    with pytest.raises(ArtifactError, match="model.jgolf"):
        container.unpack(sealed(chunk(text)), "model.jgolf")


@pytest.mark.parametrize("claimed", [None, 8, 1 << 40])
def test_decompression_bombs_are_refused_before_memory_is_taken(claimed):
    """64 MB of zeros where 8 bytes belong: undeclared, declared wrongly, or declared absurdly."""
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26))
    if claimed is not None:  # an 8-byte content size after magic and descriptor instead of the window's byte
        bomb = bomb[:4] + bytes([0b11000000]) + bomb[5:6] + claimed.to_bytes(8, "little") + bomb[6:]
    data = with_header([["embed/embedding", "fp16", [2, 4]]], rest=len(bomb).to_bytes(4, "little") + bomb)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="model.jgolf: the fp16 values, byte 0"):
        container.unpack(data, "model.jgolf")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_foreign_files_and_versions_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="not a jgolf artifact: starts with b'PK"):
        container.unpack(b"PK\x03\x04" + bytes(50))
    data = bytearray(container.pack({}, {}))
    data[4] = 3
    with pytest.raises(ArtifactError, match="format version 3, expected at most 2"):
        container.unpack(bytes(data))
    with pytest.raises(ArtifactError, match="nothing.jgolf: cannot be read: No such file"):
        container.read(tmp_path / "nothing.jgolf")
    with pytest.raises(ArtifactError, match="cannot be read"):
        container.read(tmp_path)


def test_what_could_not_be_read_back_is_not_written():
    with pytest.raises(ArtifactError, match="header needs"):
        container.pack({}, {"note": "x" * (1 << 20)})
    huge = np.broadcast_to(np.float16(0), (1 << 14, 1 << 14))
    with pytest.raises(ArtifactError, match="expected at most 134217728"):
        container.pack({"embed/embedding": StoredTensor("fp16", huge.shape, huge, None, False)}, {})


def test_the_range_codec_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"constriction.*jgolf\[entropy\]"):
        container.pack(stored_example(), {}, "range")
