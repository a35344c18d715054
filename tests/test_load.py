"""Models from every kind of file, told apart by content."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.artifact import container
from jgolf.artifact.scoring import Artifact
from jgolf.errors import ArtifactError, ConfigError, MissingExtraError
from jgolf.load import kind_of, load_model, load_params
from jgolf.model.initial import init
from jgolf.quantize.export import quantize
from tests.conftest import RECIPE

GOLDEN = Path(__file__).parent / "golden"
MODEL = dataclasses.replace(
    RECIPE.model,
    vocab_size=40,
    num_layers=3,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    bigram_buckets=11,
    bigram_dim=4,
    xsa_layers=(1,),
    rope_dims=4,
    value_embedding_layers=(0, 2),
    value_embedding_dim=4,
)
CONFIG = dataclasses.replace(RECIPE, name="little", model=MODEL)


def artifact_of(config, fingerprint, stored):
    return Artifact(config.name, config.model, config.train.seq_len, False, fingerprint, stored)


@pytest.fixture(scope="module")
def params():
    return {path: np.asarray(array) for path, array in init(MODEL, jax.random.key(0)).items()}


@pytest.fixture
def artifact(tmp_path, params):
    path = tmp_path / "model.jgolf"
    stored = quantize(params, CONFIG.quantize)
    container.write(path, container.pack(stored, artifact_of(CONFIG, "abc", stored).metadata()))
    return path


def test_artifact(artifact, params):
    model = load_model(artifact)
    assert model.config.model == MODEL
    assert model.config.name == "little"
    assert model.tokenizer_fingerprint == "abc"
    assert model.source == str(artifact)
    assert model.params.keys() == model.stored.keys() == params.keys()
    for path, array in model.params.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, params[path], atol=1e-3 * (1 + np.abs(params[path]).max()))


def test_artifact_of_another_model(tmp_path, params):
    stored = quantize(params, CONFIG.quantize)
    del stored["smear/gate"]
    other = configs.replace(CONFIG, "model.vocab_size", 41)
    container.write(tmp_path / "x.jgolf", container.pack(stored, artifact_of(other, None, stored).metadata()))
    with pytest.raises(ArtifactError) as error:
        load_model(tmp_path / "x.jgolf")
    assert "smear/gate: found none, expected (16,)" in str(error.value)
    assert "embed/embedding: found (40, 16), expected (41, 16)" in str(error.value)


@pytest.mark.parametrize(
    "metadata", [{}, {"name": "x", "model": {"vocab_size": "many"}, "tokenizer_fingerprint": None}]
)
def test_artifact_without_a_model_in_its_metadata(tmp_path, params, metadata):
    container.write(tmp_path / "x.jgolf", container.pack(quantize(params, CONFIG.quantize), metadata))
    with pytest.raises(ArtifactError, match=r"x\.jgolf: its metadata do not describe a model"):
        load_model(tmp_path / "x.jgolf")


def test_params_for_a_known_network(artifact, params):
    assert load_params(artifact, MODEL).keys() == params.keys()
    with pytest.raises(ArtifactError, match=r"model.jgolf: the parameters .*\n  embed/embedding: found \(40, 16\)"):
        load_params(artifact, dataclasses.replace(MODEL, vocab_size=41))


def test_pytorch_params_for_a_known_network(capsys):
    pytest.importorskip("torch")
    path = GOLDEN / "tiny" / "final_model.pt"
    model = load_model(path, str(GOLDEN / "tiny" / "config.json")).config.model
    capsys.readouterr()
    assert load_params(path, model).keys() == load_params(GOLDEN / "tiny" / "final_model.int6.ptz", model).keys()
    assert capsys.readouterr().err == ""
    with pytest.raises(ArtifactError, match=r"tok_emb.weight: found \[128, 64\], expected \[129, 64\]"):
        load_params(path, dataclasses.replace(model, vocab_size=129))


def test_kinds_are_told_by_content(tmp_path, artifact):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert kind_of(tmp_path / "run") == "run"
    assert kind_of(artifact.rename(tmp_path / "model.pt")) == "jgolf"
    assert kind_of(GOLDEN / "tiny" / "final_model.pt") == "pt"
    assert kind_of(GOLDEN / "tiny" / "final_model.int6.ptz") == "ptz"


def test_files_that_hold_no_model(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArtifactError, match="text: starts with b'hell', expected"):
        load_model(tmp_path / "text")
    with pytest.raises(ArtifactError, match="nowhere: cannot be read"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        load_model(tmp_path)


def test_options_that_do_not_apply(artifact):
    with pytest.raises(ConfigError, match="holds its own config"):
        load_model(artifact, config="pr592")
    with pytest.raises(ConfigError, match="holds one set of weights"):
        load_model(artifact, average="ema")
    with pytest.raises(ConfigError, match="expected one of raw, ema, swa"):
        load_model(artifact, average="mean")


@pytest.mark.parametrize("name", ["final_model.pt", "final_model.int6.ptz"])
def test_without_pytorch_the_message_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"final_model.*jgolf\[torch\]"):
        load_model(GOLDEN / "tiny" / name)


def test_state_dict_and_reference_artifact(capsys):
    pytest.importorskip("torch")
    arrays = np.load(GOLDEN / "tiny" / "model.npz")
    model = load_model(GOLDEN / "tiny" / "final_model.pt", str(GOLDEN / "tiny" / "config.json"))
    assert model.stored is None
    assert model.config.model.rope_dims == 8
    np.testing.assert_array_equal(model.params["smear/gate"], arrays["params/smear.gate"])
    np.testing.assert_array_equal(
        model.params["blocks/0/attn/k_proj/kernel"], arrays["params/blocks.0.attn.c_k.weight"].T
    )
    assert "rope_base 10000" in capsys.readouterr().err
    artifact = load_model(GOLDEN / "tiny" / "final_model.int6.ptz", str(GOLDEN / "tiny" / "config.json"))
    assert artifact.stored.keys() == artifact.params.keys() == model.params.keys()


def test_every_wrong_tensor_of_a_state_dict_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.load(GOLDEN / "tiny" / "final_model.pt", weights_only=True)
    del state["blocks.1.mlp.fc.weight"]
    state["smear.gate"] = state["smear.gate"][:7]
    state["extra.weight"] = torch.ones(2)
    state["mtp_heads.0.weight"] = torch.ones(2, 2)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ArtifactError) as error:
        load_model(tmp_path / "x.pt", json.dumps({"rope_dims": 8}))
    lines = [line.strip() for line in str(error.value).splitlines()[1:-1]]
    assert "extra.weight: no setting gives" in str(error.value).splitlines()[-1]
    assert lines == [
        "blocks.1.mlp.fc.weight: missing, expected [192, 64]",
        "smear.gate: found [7], expected [64]",
        "extra.weight: unexpected, found [2]; the model has no parameter of that name",
    ]


def test_weights_that_are_no_numbers_are_named(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    option = str(GOLDEN / "tiny" / "config.json")
    state = torch.load(GOLDEN / "tiny" / "final_model.pt", weights_only=True)
    state["smear.gate"][3] = float("nan")
    state["tok_emb.weight"] = state["tok_emb.weight"].double()
    state["tok_emb.weight"][1, :2] = torch.tensor([float("-inf"), 1e300])
    torch.save(state, tmp_path / "x.pt")
    said = r"x\.pt: weights that are infinite or NaN.*\n  tok_emb.weight: 2 of 8,192 .*\n  smear.gate: 1 of 64 values"
    with pytest.raises(ArtifactError, match=said):
        load_model(tmp_path / "x.pt", option)
    model = load_model(GOLDEN / "tiny" / "final_model.pt", option).config.model
    with pytest.raises(ArtifactError, match=said):
        load_params(tmp_path / "x.pt", model)


def test_starting_from_weights_that_are_no_numbers_names_the_file(tmp_path, capsys, params):
    torch = pytest.importorskip("torch")
    from jgolf.torch_bridge import names

    state = {name: torch.from_numpy(np.array(array)) for name, array in names.from_params(params).items()}
    state["blocks.1.mlp.fc.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=r"x\.pt: .*\n  blocks.1.mlp.fc.weight: 1 of 768 values"):
        load_params(tmp_path / "x.pt", MODEL)
    assert "learning" not in capsys.readouterr().err
