import json

import pytest

from jgolf.errors import ArtifactError
from jgolf.model.functional import parameter_shapes
from jgolf.rules import fake_quantize_bits, rule_of, storage_form
from jgolf.torch_bridge.names import torch_name
from tests.conftest import RECIPE


def test_groups_are_the_reference_s(golden, tiny):
    groups = json.loads((golden / "tiny" / "groups.json").read_text())
    found = {group: set() for group in groups}
    for path in parameter_shapes(tiny):
        found[rule_of(path).group].add(torch_name(path))
    assert found == {group: set(names) for group, names in groups.items()}


def test_storage_forms_of_the_recipe():
    recipe = RECIPE.quantize
    forms = {path: storage_form(path, shape, recipe) for path, shape in parameter_shapes(RECIPE.model).items()}
    assert forms["blocks/3/mlp/up_proj/kernel"] == "int5"
    assert forms["blocks/3/attn/k_proj/kernel"] == "int6"
    assert forms["embed/embedding"] == "fp16"
    assert forms["bigram/embedding"] == forms["value_embed/embedding"] == "int8"
    assert forms["bigram/proj/kernel"] == "fp16"  # 65,536 values: not more
    assert storage_form("bigram/proj/kernel", (129, 512), recipe) == "int6"
    assert forms["blocks/3/resid_mix"] == forms["bigram/scale"] == "fp32"
    assert storage_form("head/kernel", (512, 1024), recipe) == "fp16"


def test_late_qat_takes_all_of_muon_s_matrices():
    bits = {path: fake_quantize_bits(path, RECIPE.quantize) for path in parameter_shapes(RECIPE.model)}
    assert bits["blocks/0/mlp/down_proj/kernel"] == 5
    assert bits["blocks/0/attn/out_proj/kernel"] == bits["value_embed/proj/kernel"] == 6
    assert all((value is not None) == (rule_of(path).group == "muon") for path, value in bits.items())


def test_unknown_path_is_named():
    with pytest.raises(ArtifactError, match="'blocks/0/attn/bias'"):
        rule_of("blocks/0/attn/bias")
