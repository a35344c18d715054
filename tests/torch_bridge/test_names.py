import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jgolf import rules
from jgolf.errors import ArtifactError
from jgolf.model.functional import parameter_shapes
from jgolf.torch_bridge import names
from tests.conftest import RECIPE
from tests.pr1855 import MODEL, SETTINGS, arrays_of

GOLDEN = Path(__file__).parents[1] / "golden"


def test_there_and_back(golden_state):
    params, unknown = names.to_params(golden_state)
    assert unknown == {}
    assert len(params) == len(golden_state)
    back = names.from_params(params)
    assert back.keys() == golden_state.keys()
    for name, array in golden_state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_kernels_are_transposed_and_tables_are_not(golden_state):
    params, _ = names.to_params(golden_state)
    np.testing.assert_array_equal(params["blocks/1/mlp/up_proj/kernel"], golden_state["blocks.1.mlp.fc.weight"].T)
    np.testing.assert_array_equal(params["embed/embedding"], golden_state["tok_emb.weight"])
    assert params["blocks/1/mlp/up_proj/kernel"].shape == (64, 192)


def test_every_parameter_of_the_rules_has_a_name():
    for path in (rule.path.format(3) for rule in rules.RULES):
        assert names.path_of_torch_name(names.torch_name(path)) == path
    assert {name for family in names.FAMILIES for name in family.names} == {rule.path for rule in rules.RULES}
    for name in ("blocks.0.attn.c_q.bias", "qo_bank", "blocks.x.attn_scale"):
        assert names.path_of_torch_name(name) is None
    with pytest.raises(ArtifactError, match="has a parameter 'blocks/0/attn/bias'"):
        names.torch_name("blocks/0/attn/bias")


@pytest.mark.parametrize("folder", ["tiny", "pr1855"])
def test_optimizer_groups(folder):
    """The PyTorch scripts' own assignment of parameters to optimizers."""
    groups = json.loads((GOLDEN / folder / "groups.json").read_text())
    groups = {group: members.get("parameters") if folder == "pr1855" else members for group, members in groups.items()}
    expected = {name: group for group, members in groups.items() for name in members}
    assert {name: names.group_of(name) for name in expected} == expected


def test_banks_are_taken_apart_and_put_together():
    state = arrays_of("model.npz", "params/")
    layers = SETTINGS["num_layers"]
    params, unknown = names.to_params(state)
    assert unknown == {}
    assert {path: value.shape for path, value in params.items()} == parameter_shapes(MODEL)
    for layer in range(layers):
        for part, matrix in (("q", state["qo_bank"][layer]), ("v", state["kv_bank"][layers + layer])):
            np.testing.assert_array_equal(params[f"blocks/{layer}/attn/{part}_proj/kernel"], matrix.T)
        np.testing.assert_array_equal(
            params[f"blocks/{layer}/attn/out_proj/kernel"], state["qo_bank"][layers + layer].T
        )
        np.testing.assert_array_equal(params[f"blocks/{layer}/mlp/down_proj/kernel"], state["mlp_down_bank"][layer].T)
    back = names.from_params(params)
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
        assert back[name].dtype == np.float32
    assert {name: list(shape) for name, shape in names.by_torch_name(parameter_shapes(MODEL), banks=True).items()} == (
        SETTINGS["shapes"]
    )


def test_the_names_of_single_matrices_are_read_too():
    single = names.by_torch_name(parameter_shapes(MODEL))
    assert "blocks.6.mlp.proj.weight" in single and "qo_bank" not in single
    assert names.by_path(single) == (parameter_shapes(MODEL), {})


def test_a_bank_that_blocks_cannot_share():
    for shape in ((13, 32, 32), (14, 32), (0, 32, 32), (10**12, 0, 32)):
        assert names.by_path({"qo_bank": shape}) == ({}, {"qo_bank": shape})
        params, unknown = names.to_params({"qo_bank": np.zeros(shape, np.float32)})
        assert (params, unknown) == ({}, {"qo_bank": shape})


def test_a_family_is_told_by_its_names():
    pr592, pr1855 = names.FAMILIES
    common = ["tok_emb.weight", "blocks.0.attn.c_q.weight", "skip_weights"]
    assert names.family_of(common) is pr592
    assert names.family_of([*common, "smear_lambda"]) is pr1855
    assert names.family_of(["tok_emb.weight", "qo_bank"]) is pr1855
    assert names.family_of([*common, "smear.gate"]) is pr592


def test_a_model_that_no_family_has():
    mixed = dataclasses.replace(RECIPE.model, skip_gates=True)
    params = {path: np.zeros(shape, np.float32) for path, shape in parameter_shapes(mixed).items()}
    with pytest.raises(ArtifactError) as error:
        names.from_params(params)
    assert "no family of PyTorch scripts has all parameters of this model" in str(error.value)
    assert "those of pr592 have no skip_gates; those of pr1855 have no bigram/" in str(error.value)


def test_wrappers_and_unscored_tensors():
    state = {
        "module.smear.gate": 1,
        "_orig_mod.module.skip_weights": 2,
        "mtp_heads.0.weight": 3,
        "blocks.0.attn.rotary.inv_freq": 4,
        "lm_head.weight": 5,
    }
    kept, notices = names.canonical(state)
    assert kept == {"smear.gate": 1, "skip_weights": 2, "lm_head.weight": 5}
    assert notices == [
        "mtp_heads.0.weight is left out: heads for further tokens take no part in the scored model",
        "blocks.0.attn.rotary.inv_freq is left out: rotary tables are computed",
    ]


def test_tensors_without_values_and_unknown_names():
    state = {"skip_weights": np.zeros((0, 4)), "what": np.zeros(3), "smear.gate": np.ones(4, np.float64)}
    params, unknown = names.to_params(state)
    assert list(params) == ["smear/gate"]
    assert params["smear/gate"].dtype == np.float32
    assert unknown == {"what": (3,)}
