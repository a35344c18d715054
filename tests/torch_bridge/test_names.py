import json
from pathlib import Path

import numpy as np

from jgolf import rules
from jgolf.torch_bridge import names

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


def test_optimizer_groups(golden_state):
    """The PyTorch reference's own assignment of parameters to optimizers."""
    groups = json.loads((GOLDEN / "tiny" / "groups.json").read_text())
    found = {name: rules.rule_of(rules.path_of_torch_name(name)).group for name in golden_state}
    assert found == {name: group for group, members in groups.items() for name in members}


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
