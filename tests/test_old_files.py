"""Runs and artifacts from before configs had a version: tests/old was written by the jgolf of that time."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from jgolf import config as configs
from jgolf.artifact import container
from jgolf.config import ModelConfig, versions
from jgolf.errors import ArtifactError, ConfigError
from jgolf.load import load_model
from jgolf.model.functional import apply

OLD = Path(__file__).parent / "old"
RECIPE = json.loads((OLD / "recipes.json").read_text())["pr592"]
LAST_LOGITS = [[-0.00647, 0.00494, 0.01953, 0.01990], [0.02234, -0.01172, 0.00074, -0.02405]]
"""The first of the last positions, as the jgolf of that time computed them from the artifact, in bfloat16."""


def without(values: dict, name: str) -> dict:
    """A copy that lacks the setting of this dotted name."""
    values = copy.deepcopy(values)
    *parts, last = name.split(".")
    holder = values
    for part in parts:
        holder = holder[part]
    del holder[last]
    return values


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_what_an_old_config_left_unsaid_is_pr592s(tmp_path):
    whole, recipe, path = json.loads((OLD / "config.json").read_text()), flat(RECIPE), tmp_path / "config.json"
    assert "version" not in whole and flat(whole).keys() == recipe.keys()
    for name in recipe:
        path.write_text(json.dumps(without(whole, name)))
        found = configs.leaves(configs.read_json(path))
        assert {key: found[key] for key in recipe} == {**flat(whole), name: recipe[name]}
    for text, said in (("{}", {}), ('{"optim": {"muon": {"momentum": 0.9}}}', {"optim.muon.momentum": 0.9})):
        path.write_text(text)
        found = configs.leaves(configs.read_json(path))
        assert {key: found[key] for key in recipe} == {**recipe, **said}


def test_what_a_config_with_a_version_leaves_unsaid_is_off(tmp_path):
    path = tmp_path / "config.json"
    config = configs.read_json(OLD / "config.json")
    configs.write_json(config, path)
    written = json.loads(path.read_text())
    assert written["version"] == versions.VERSION and configs.read_json(path) == config
    path.write_text(json.dumps(without(written, "model.bigram_buckets")))
    assert configs.read_json(path).model.bigram_buckets == ModelConfig().bigram_buckets == 0


@pytest.mark.parametrize("version", [versions.VERSION + 1, -1, "1", 1.0, None, True, [1]])
def test_versions_that_cannot_be_read(version, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"version": version}))
    expected = rf"version is .*, expected at most {versions.VERSION}: use the jgolf that wrote it"
    with pytest.raises(ConfigError, match=rf"config\.json.*{expected}"):
        configs.read_json(path)
    stored, metadata = container.read(OLD / "model.jgolf")
    container.write(tmp_path / "x.jgolf", container.pack(stored, {**metadata, "version": version}))
    with pytest.raises(ArtifactError, match=rf"x\.jgolf.*{expected}"):
        load_model(tmp_path / "x.jgolf")


def test_an_old_artifact_is_the_model_that_it_was(tmp_path):
    loaded = load_model(OLD / "model.jgolf")
    expected = flat(json.loads((OLD / "config.json").read_text()))
    found = configs.leaves(loaded.config)
    assert {name: found[name] for name in expected} == expected
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    logits = np.asarray(apply(loaded.config.model, loaded.params, tokens))
    np.testing.assert_allclose(logits[:, -1, :4], LAST_LOGITS, atol=1e-3)
    stored, metadata = container.read(OLD / "model.jgolf")
    assert "version" not in metadata
    recipe = flat(RECIPE["model"])
    for name in ("smear_gate", "ln_scale", "logit_softcap", "rope_base", "unet_skips", "compute_dtype"):
        container.write(tmp_path / "x.jgolf", container.pack(stored, without(metadata, f"model.{name}"), zstd_level=1))
        assert getattr(load_model(tmp_path / "x.jgolf").config.model, name) == recipe[name]
