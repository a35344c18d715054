"""A final_model.pt of pull request #1855's script, with its banks: read, converted, scored with, started from."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf import config as configs  # noqa: E402
from jgolf.artifact.scoring import read_artifact  # noqa: E402
from jgolf.cli import main  # noqa: E402
from jgolf.errors import ArtifactError, ConfigError  # noqa: E402
from jgolf.load import load_model, load_params  # noqa: E402
from jgolf.model.functional import apply, parameter_shapes  # noqa: E402
from jgolf.torch_bridge import names, reference_config  # noqa: E402
from tests.pr1855 import MODEL, RECORD, SETTINGS, arrays_of  # noqa: E402

NETWORK = [*SETTINGS][1 : [*SETTINGS].index("train_seq_len")]  # the number of parameters, the network, its training
OPTION = json.dumps({name: SETTINGS[name] for name in NETWORK})
"""The script's own settings of its network."""
HERE = {"kernels": "auto", "compute_dtype": "bfloat16", "repeatable": False}


def write(path, state):
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, path)
    return path


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    return arrays_of("model.npz", "params/")


@pytest.fixture
def checkpoint(tmp_path, state):
    """As the script saves it: the token embedding in bfloat16."""
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    tensors["tok_emb.weight"] = tensors["tok_emb.weight"].bfloat16()
    torch.save(tensors, tmp_path / "final_model.pt")
    return tmp_path / "final_model.pt"


def test_the_script_s_settings_give_its_network(checkpoint, capsys):
    model = load_model(checkpoint, OPTION)
    assert model.config.model == dataclasses.replace(MODEL, **HERE)
    notice = capsys.readouterr().err
    assert "taken as in the recipe pr1855" in notice
    for untold in ("rope_frequency_dtype bfloat16", "activation_slope 0.5"):
        assert untold in notice
    assert "gate" not in notice and "loop" not in notice
    golden = arrays_of("model.npz", "")
    found = apply(dataclasses.replace(model.config.model, compute_dtype="float32"), model.params, golden["dense_x"])
    difference = np.abs(np.asarray(found) - golden["dense_logits_on"]).max()
    assert difference < 1e-2 * np.abs(golden["dense_logits_on"]).max()  # the embedding is rounded


def test_to_an_artifact_and_back(checkpoint, tmp_path, state):
    assert main(["convert", str(checkpoint), str(tmp_path / "x.jgolf"), "--config", OPTION]) == 0
    assert read_artifact(tmp_path / "x.jgolf").model == dataclasses.replace(MODEL, **HERE)
    assert main(["convert", str(tmp_path / "x.jgolf"), str(tmp_path / "x.pt")]) == 0
    assert main(["convert", str(checkpoint), str(tmp_path / "y.pt"), "--config", OPTION]) == 0
    from_artifact, directly = (torch.load(tmp_path / name) for name in ("x.pt", "y.pt"))
    stored = load_model(tmp_path / "x.jgolf").params
    rounded = {**state, "tok_emb.weight": torch.from_numpy(state["tok_emb.weight"]).bfloat16().float().numpy()}
    assert from_artifact.keys() == directly.keys() == state.keys()
    for name, array in rounded.items():
        assert directly[name].dtype == from_artifact[name].dtype == torch.float32
        np.testing.assert_array_equal(directly[name].numpy(), array, err_msg=name)
    for path, array in names.to_params({name: value.numpy() for name, value in from_artifact.items()})[0].items():
        np.testing.assert_array_equal(array, stored[path], err_msg=path)


def test_weights_for_a_run(checkpoint):
    params = load_params(checkpoint, MODEL)
    assert {path: value.shape for path, value in params.items()} == parameter_shapes(MODEL)
    with pytest.raises(ArtifactError) as error:
        load_params(checkpoint, dataclasses.replace(MODEL, num_loops=1, model_dim=16))
    for line in ("skip_gates: found [5, 32], expected [4, 16]", "qo_bank: found [14, 32, 32], expected [14, 16, 16]"):
        assert line in str(error.value)


@pytest.mark.parametrize("layers", [11, 13])
def test_the_record_needs_no_option(layers):
    """What no tensor tells is the recipe's, in another depth too."""
    model = configs.resolved(dataclasses.replace(RECORD.model, num_layers=layers))
    model = dataclasses.replace(model, xsa_layers=tuple(range(layers)), vocab_size=model.vocab_size or 8192)
    found = reference_config.fit(names.by_torch_name(parameter_shapes(model), banks=True), None, "x.pt")
    assert found.config.model == model
    for setting in ("loop_layers", "num_loops", "lanes_from", "xsa_layers", "attention_gate_scale", "activation_slope"):
        assert setting in found.assumed
    assert found.config.name == "pr1855"


def test_parts_that_the_script_is_run_without():
    without = dataclasses.replace(
        MODEL, gated_smear=False, skip_gates=False, attention_gate=False, lanes_from=0, loop_layers=(), q_gain=1.5
    )
    tensors = names.by_torch_name(parameter_shapes(without), banks=True)
    found = reference_config.fit(tensors, '{"rope_dims": 4, "qk_gain_init": 1.5}', "x.pt").config.model
    expected = dataclasses.replace(without, attention_gate_scale=RECORD.model.attention_gate_scale, **HERE)
    assert dataclasses.replace(found, embedding_init_std=expected.embedding_init_std) == expected


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"kv_bank": (12, 16, 32)}, "kv_bank: found [12, 16, 32], expected [14, 16, 32]"),
        ({"qo_bank": (13, 32, 32)}, "qo_bank: found [13, 32, 32], expected [14, 32, 32]"),
        ({"mlp_down_bank": (7, 32)}, "mlp_down_bank: found [7, 32], expected [7, 32, 128]"),
        ({"smear_lambda": None}, "smear_lambda: missing, expected [1]"),
        ({"blocks.3.attn.attn_gate_w": None}, "blocks.3.attn.attn_gate_w: missing, expected [4, 12]"),
        ({"parallel_post_lambdas": (7, 4)}, "parallel_post_lambdas: found [7, 4], expected [7, 2, 2]"),
        ({"blocks.0.mlp.fc.weight": (128, 32)}, "blocks.0.mlp.fc.weight: unexpected, found [128, 32]"),
        ({"bigram.scale": ()}, "bigram."),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, line):
    tensors = names.by_torch_name(parameter_shapes(MODEL), banks=True) | change
    tensors = {name: shape for name, shape in tensors.items() if shape is not None}
    with pytest.raises((ArtifactError, ConfigError)) as error:
        reference_config.fit(tensors, OPTION, "x.pt")
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"loop_end": 4}, "loop_layers is 2,3,4, by the tensors it is layers that make 3 or 4 more runs (skip_weights"),
        ({"num_loops": 0}, "loop_layers is none, by the tensors"),
        ({"loop_end": None}, "one of loop_start and loop_end is given without the other"),
        ({"loop_start": 4}, "loop_start is 4 and loop_end 3: expected layers in rising order"),
        ({"loop_end": 10**12}, "loop_end 1000000000000: expected layers"),
        (
            {"parallel_start_layer": 0},
            "lanes_from is 0, by the tensors it is a layer (parallel_post_lambdas",
        ),
        ({"parallel_start_layer": 3}, "model.lanes_from is 3: expected a layer after the loop"),
        ({"parallel_final_lane": "mlp"}, "parallel_final_lane is 'mlp'"),
        ({"rope_yarn": True}, "rope_yarn is on"),
        ({"gate_window": 8}, "gate_window is 8, by the tensors it is 12 (blocks.0.attn.attn_gate_w [4, 12])"),
        ({"sparse_attn_gate_enabled": 0}, "attention_gate is off, by the tensors it is on"),
        ({"smear_gate_enabled": 0}, "gated_smear is off, by the tensors it is on"),
        ({"skip_gates_enabled": 0}, "skip_gates is off, by the tensors it is on (skip_gates [5, 32])"),
        ({"mlp_mult": 3}, "mlp_multiple is 3, by the tensors it is 4"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, part):
    settings = {name: value for name, value in (json.loads(OPTION) | change).items() if value is not None}
    with pytest.raises(ConfigError) as error:
        reference_config.fit(names.by_torch_name(parameter_shapes(MODEL), banks=True), json.dumps(settings), "x.pt")
    assert part in str(error.value)


def test_which_layers_run_more_than_once_has_to_be_said():
    tensors = names.by_torch_name(parameter_shapes(MODEL), banks=True)
    with pytest.raises(ArtifactError, match=r"say which with --config '\{\"loop_start\": …, \"loop_end\": …"):
        reference_config.fit(tensors, '{"rope_dims": 4}', "x.pt")


def test_what_cannot_be_written(checkpoint, tmp_path, capsys):
    assert main(["convert", str(checkpoint), str(tmp_path / "x.ptz"), "--config", OPTION]) == 2
    assert "family of pr1855, whose parameters these are, have artifacts of another kind" in capsys.readouterr().err
    mixed = dataclasses.replace(MODEL, smear_gate=True)
    params = {path: np.ones(shape, np.float32) for path, shape in parameter_shapes(mixed).items()}
    write(tmp_path / "mixed.pt", {names.torch_name(path): names.to_layout(path, params[path]) for path in params})
    for suffix in (".pt", ".ptz"):
        assert main(["convert", str(tmp_path / "mixed.pt"), str(tmp_path / f"y{suffix}"), "--config", OPTION]) == 2
        message = capsys.readouterr().err
        assert "those of pr592 have no blocks/0/attn/gate; those of pr1855 have no smear/gate." in message
        assert not (tmp_path / f"y{suffix}").exists()
    assert main(["convert", str(tmp_path / "mixed.pt"), str(tmp_path / "y.jgolf"), "--config", OPTION]) == 0
    assert load_model(tmp_path / "y.jgolf").config.model == dataclasses.replace(mixed, **HERE)
