"""Artifacts of pull request #1855, written here as its script does, by PyTorch, brotli and the program lrzip."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest

pytest.importorskip("torch")
brotli = pytest.importorskip("brotli")

from jgolf.artifact.scoring import read_artifact  # noqa: E402
from jgolf.cli import main  # noqa: E402
from jgolf.errors import ArtifactError  # noqa: E402
from jgolf.load import load_model  # noqa: E402
from jgolf.torch_bridge import compressed, per_group, reference_artifact  # noqa: E402
from tests.artifact.stored_examples import assert_same_stored  # noqa: E402
from tests.pr1855 import MODEL  # noqa: E402
from tests.torch_bridge.per_group_files import as_torch, changed, packed, saved, state_of, stored_model  # noqa: E402

needs_lrzip = pytest.mark.skipif(shutil.which("lrzip") is None, reason="lrzip is not installed")


@pytest.fixture(scope="module")
def stored():
    return stored_model()


@pytest.fixture(scope="module")
def whole(stored, tmp_path_factory):
    return packed(stored, tmp_path_factory.mktemp("lrzip"))


@needs_lrzip
@pytest.mark.parametrize("how", [{}, {"asymmetric": False}, {"rank": 0}])
def test_every_form_is_read_as_it_was_written(tmp_path, how):
    expected = stored_model(**how)
    (tmp_path / "x.ptz").write_bytes(packed(expected, tmp_path))
    found, notices = reference_artifact.read(tmp_path / "x.ptz")
    assert notices == [] and sum(tensor.correction is not None for tensor in found.values()) == (
        0 if how.get("rank") == 0 else 3
    )
    assert {tensor.form for tensor in found.values()} == {"fp16", "int6", "int7", "int8"}
    assert_same_stored({path: found[path] for path in expected}, expected)


@needs_lrzip
def test_converted_it_keeps_integers_steps_and_corrections(stored, whole, tmp_path, capsys):
    (tmp_path / "final_model.int6.ptz").write_bytes(whole)
    told = {"loop_start": 2, "loop_end": 3, "num_loops": 2, "parallel_start_layer": 5, "rope_dims": 4}
    words = ["--config", json.dumps(told)]
    assert main(["convert", str(tmp_path / "final_model.int6.ptz"), str(tmp_path / "model.jgolf"), *words]) in (0, None)
    capsys.readouterr()
    artifact = read_artifact(tmp_path / "model.jgolf")
    assert_same_stored({path: artifact.stored[path] for path in stored}, stored)
    assert artifact.model.lanes_from == MODEL.lanes_from and artifact.model.attention_gate
    model = load_model(tmp_path / "model.jgolf")
    for path, tensor in stored.items():
        np.testing.assert_array_equal(model.params[path], tensor.dequantize())


def test_a_state_packed_as_a_whole_by_brotli(stored, tmp_path):
    tensors, marks = state_of(stored)
    content = brotli.compress(saved({"w": as_torch(tensors), "m": marks}), quality=5)
    (tmp_path / "x.ptz").write_bytes(content)
    assert_same_stored(reference_artifact.read(tmp_path / "x.ptz")[0], stored)
    for damaged in (content[:-40], b"\x00" * 99, content[:1000] + bytes(50) + content[1050:]):
        (tmp_path / "x.ptz").write_bytes(damaged)
        with pytest.raises(ArtifactError, match="x.ptz: "):
            load_model(tmp_path / "x.ptz")


def test_brotli_bombs_are_refused_before_they_go_off():
    bomb = brotli.compress(bytes(compressed.SMALL_BYTES + 1), quality=1)
    assert len(bomb) < 100_000
    with pytest.raises(ArtifactError, match="x: brotli data of .* expected at most 67,108,864"):
        compressed.unbrotli(bomb, "x")
    with pytest.raises(ArtifactError, match="expected 5, whole"):
        compressed.unbrotli(brotli.compress(b"123456"), "x", 5)
    with pytest.raises(ArtifactError, match="expected 7, whole"):
        compressed.unbrotli(brotli.compress(b"123456"), "x", 7)
    with pytest.raises(ArtifactError):
        compressed.unbrotli(brotli.compress(b"123456") + b"more", "x")
    assert compressed.unbrotli(brotli.compress(b"123456"), "x", 6) == b"123456"


def test_without_lrzip_it_says_what_to_install(whole_without_lrzip, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "x.ptz").write_bytes(whole_without_lrzip)
    with pytest.raises(ArtifactError, match="apt-get install lrzip"):
        load_model(tmp_path / "x.ptz")


@pytest.fixture(scope="module")
def whole_without_lrzip(stored, tmp_path_factory):
    """Its streams of integers have lrzip's header and nothing behind it."""

    def header(content, folder):
        return b"LRZI\x00\x06" + struct.pack("<Q", len(content)) + bytes(50) if content else b""

    return packed(stored, tmp_path_factory.mktemp("none"), header)


FC = "blocks.2.mlp.fc.weight"
BAD = {
    "cut off, or not 9 streams": lambda data: data[:30],
    "by the lengths of its streams": lambda data: data + b"x",
    "expected .* by the lengths": lambda data: data[:-1],
    "no shape of two sizes": lambda data: changed(data, s={FC + ".q": (1 << 20, 1 << 20)}),
    "has no shape": lambda data: changed(data, s={FC + ".q": (True, 32)}),
    "values in all": lambda data: changed(data, s={f"blocks.{i}.mlp.fc.weight.q": (65536, 65536) for i in range(9)}),
    "not one of the": lambda data: changed(data, streams={5: b"LRZI\x00\x06" + bytes(60)}),
    "is not lrzip's": lambda data: changed(data, streams={1: b"", 5: b"BZh9" + bytes(60)}),
    "does not name each row once": lambda data: _with_equal_rows(data),
    "brotli data of": lambda data: changed(data, streams={8: brotli.compress(bytes(10))}),
    "lrzip cannot unpack": lambda data: _with_damaged_stream(data),
}


def _with_equal_rows(data):
    count = struct.unpack_from("<I", data, 4)[0]
    last = struct.unpack_from(f"<{count}I", data, 8)[-1]
    orders = np.frombuffer(brotli.decompress(data[len(data) - last :]), "<u2").copy()
    orders[1] = orders[0]
    return changed(data, streams={8: brotli.compress(orders.tobytes())})


def _with_damaged_stream(data):
    lengths = struct.unpack_from("<9I", data, 8)
    start = 44 + sum(lengths[:5])
    stream = bytearray(data[start : start + lengths[5]])
    stream[40:] = bytes(len(stream) - 40)
    return changed(data, streams={5: bytes(stream)})


@pytest.mark.parametrize("message", BAD)
def test_damaged_files_are_refused_by_name(whole_without_lrzip, tmp_path, message):
    if "cannot unpack" in message and shutil.which("lrzip") is None:
        pytest.skip("lrzip is not installed")
    (tmp_path / "x.ptz").write_bytes(BAD[message](whole_without_lrzip))
    with pytest.raises(ArtifactError, match=f"x.ptz: .*{message}"):
        load_model(tmp_path / "x.ptz")


def test_factors_that_do_not_fit_are_named(stored, tmp_path):
    tensors, marks = state_of(stored)
    name = next(name for name, mark in marks.items() if mark.endswith("+lqer_asym"))
    for suffix, wrong in {
        ".lqA_a": np.zeros((3, 4), np.int8),
        ".lqB_a": np.zeros((3, tensors[name + ".lqB_a"].shape[1]), np.int8),
        ".lqAs_a": np.zeros(0, np.float16),
        ".lqBs_a": np.ones(7, np.float16),
        ".q": tensors[name + ".q"].astype(np.float32),
    }.items():
        content = {"w": as_torch({**tensors, name + suffix: wrong}), "m": marks}
        (tmp_path / "x.ptz").write_bytes(brotli.compress(saved(content), quality=1))
        with pytest.raises(ArtifactError, match=r"lq[AB]s?_a: found|\.q: found"):
            reference_artifact.read(tmp_path / "x.ptz")
    assert per_group.STREAMS == 9
