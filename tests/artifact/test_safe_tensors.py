"""Models as .safetensors: the format as it is specified, and what cannot be read."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import api
from jgolf.artifact import container, safe_tensors
from jgolf.artifact.scoring import Artifact
from jgolf.cli import main
from jgolf.errors import ArtifactError, MissingExtraError
from jgolf.load import kind_of, load_model
from jgolf.model.initial import init
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import dequantize
from tests.conftest import NANO, RECIPE

CONFIG = dataclasses.replace(
    RECIPE, name="little", model=NANO, quantize=dataclasses.replace(RECIPE.quantize, mlp="int7", small_size=100)
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = {path: np.asarray(array) for path, array in init(NANO, jax.random.key(0)).items()}
    stored = quantize(params, CONFIG.quantize)
    path = tmp_path_factory.mktemp("artifact") / "model.jgolf"
    container.write(path, container.pack(stored, Artifact.of_run(CONFIG, stored, "abc").metadata()))
    return path


def pieces(path: Path) -> tuple[dict, bytes]:
    """Header and data, by the format's specification."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(path: Path, header: dict, data: bytes) -> Path:
    """Writes a file of these."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_loaded_model_runs_in_three_lines(artifact: Path) -> None:
    model = api.load_model(artifact)
    tokens = jax.numpy.array([[1, 5, 9, 300]])
    apply = jax.jit(api.apply, static_argnums=0)
    logits = apply(model.config.model, model.params, tokens)
    expected = apply(NANO, dequantize(container.read(artifact)[0]), tokens)
    assert logits.shape == (1, 4, NANO.vocab_size)
    np.testing.assert_array_equal(logits, expected)


def test_tensors_lie_as_the_format_says(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    assert main(["convert", str(artifact), str(tmp_path / "m.safetensors")]) == 0
    header, data = pieces(tmp_path / "m.safetensors")
    said = json.loads(header.pop("__metadata__")["jgolf"])
    assert said["model"]["num_layers"] == 2 and said["tokenizer_fingerprint"] == "abc"
    original = load_model(artifact)
    assert header.keys() == original.params.keys()
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        found = np.frombuffer(data[first:end], "<f4").reshape(entry["shape"])
        assert entry["dtype"] == "F32"
        np.testing.assert_array_equal(found, original.params[name], err_msg=name)


def test_there_and_back(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    assert main(["convert", str(artifact), str(tmp_path / "m"), "--to", "safetensors"]) == 0
    assert kind_of(tmp_path / "m") == "safetensors"
    original, back = load_model(artifact), load_model(tmp_path / "m")
    assert (back.config.model, back.config.name) == (original.config.model, "little")
    assert (back.config.train.seq_len, back.tokenizer_fingerprint) == (CONFIG.train.seq_len, "abc")
    assert back.config.quantize == original.config.quantize and back.stored is None
    for name, values in original.params.items():
        np.testing.assert_array_equal(back.params[name], values, err_msg=name)
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "again.jgolf")]) == 0
    expected = quantize(original.params, original.config.quantize)
    for name, tensor in load_model(tmp_path / "again.jgolf").stored.items():
        np.testing.assert_array_equal(tensor.values, expected[name].values, err_msg=name)


def test_how_a_model_is_stored_goes_with_it(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    params = {path: np.asarray(array) for path, array in init(NANO, jax.random.key(1)).items()}
    artifact = Artifact.of_run(CONFIG, quantize(params, CONFIG.quantize), None)
    safe_tensors.write(tmp_path / "m.safetensors", artifact, CONFIG.quantize)
    assert load_model(tmp_path / "m.safetensors").config.quantize == CONFIG.quantize


def test_files_that_cannot_be_read(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    good = tmp_path / "good.safetensors"
    assert main(["convert", str(artifact), str(good)]) == 0
    header, data = pieces(good)
    name = next(key for key in header if key != "__metadata__")

    def refused(message: str, content: bytes = data, **changes: object) -> None:
        path = joined(tmp_path / "bad.safetensors", {**header, **changes}, content)
        with pytest.raises(ArtifactError, match=rf"bad\.safetensors: {message}"):
            load_model(path)

    refused("not a safetensors file that we can read", data[:-4])
    refused("says nothing of the model", __metadata__={"format": "pt"})
    refused("its metadata are damaged: not JSON", __metadata__={"jgolf": "{"})
    refused("its metadata are damaged: expected a JSON object", __metadata__={"jgolf": "5"})
    refused("its metadata do not say how it is quantized", __metadata__={"jgolf": "{}"})
    said = json.loads(header["__metadata__"]["jgolf"])
    other = json.dumps({**said, "model": {**said["model"], "model_dim": 64}})
    refused("the parameters do not fit the model", __metadata__={"jgolf": other})
    refused("expected float32, found", **{name: {**header[name], "dtype": "I32"}})
    refused("not a safetensors file", **{name: {**header[name], "data_offsets": [0, 1 << 60]}})
    infinite = np.full(len(data) // 4, np.inf, "<f4").tobytes()
    refused("weights that are infinite or NaN", infinite)


def test_without_its_extra(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert main(["convert", str(artifact), str(tmp_path / "m.safetensors")]) == 2
    assert "jgolf[safetensors]" in capsys.readouterr().err and not (tmp_path / "m.safetensors").exists()
    joined(tmp_path / "m.safetensors", {"__metadata__": {}}, b"")
    with pytest.raises(MissingExtraError, match=r"jgolf\[safetensors\]"):
        load_model(tmp_path / "m.safetensors")
