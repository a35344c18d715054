"""The model's settings from shapes, --config and the recipe."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jgolf import config as configs
from jgolf.config import ModelConfig
from jgolf.errors import ArtifactError, ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.torch_bridge import names, reference_config
from tests.conftest import RECIPE

GOLDEN = Path(__file__).parents[1] / "golden"

ODD_MODELS = {
    "golden": dataclasses.replace(
        RECIPE.model,
        vocab_size=128,
        num_layers=4,
        model_dim=64,
        num_heads=4,
        num_kv_heads=2,
        bigram_buckets=97,
        bigram_dim=16,
        xsa_layers=(2, 3),
        rope_dims=8,
        value_embedding_layers=(2, 3),
        value_embedding_dim=16,
    ),
    "equal widths, full rotary": dataclasses.replace(
        RECIPE.model,
        vocab_size=50,
        num_layers=5,
        model_dim=48,
        num_heads=6,
        num_kv_heads=6,
        mlp_multiple=2.5,
        bigram_buckets=30,
        bigram_dim=48,
        xsa_layers=(0, 1, 2, 3, 4),
        rope_dims=0,
        value_embedding_layers=(0, 3),
        value_embedding_dim=48,
    ),
    "untied, no tables": dataclasses.replace(
        RECIPE.model,
        vocab_size=77,
        num_layers=3,
        model_dim=24,
        num_heads=3,
        num_kv_heads=1,
        mlp_multiple=1.3,
        tie_embeddings=False,
        bigram_buckets=0,
        xsa_layers=(),
        rope_dims=4,
        value_embedding_layers=(),
    ),
    "one layer": dataclasses.replace(
        RECIPE.model,
        vocab_size=20,
        num_layers=1,
        model_dim=16,
        num_heads=2,
        num_kv_heads=2,
        bigram_buckets=0,
        xsa_layers=(0,),
        rope_dims=0,
        value_embedding_layers=(0,),
        value_embedding_dim=4,
    ),
}
TOLD_BY_NO_SHAPE = ("xsa_layers", "rope_dims", "value_embedding_layers")


def resolve(model: ModelConfig, option: str | None) -> tuple[ModelConfig, list[str]]:
    resolved = reference_config.resolve(parameter_shapes(model), option, "x.pt")
    return resolved.config.model, resolved.notices


def untold(model: ModelConfig) -> str:
    """What shapes do not tell, by the reference's names."""
    return json.dumps(
        {
            "xsa_last_n": len(model.xsa_layers),
            "rope_dims": model.rope_dims,
            "ve_layers": ",".join(map(str, model.value_embedding_layers)),
            "ve_enabled": bool(model.value_embedding_layers),
            "ln_scale": True,
            "logit_softcap": 30,
            "rope_base": 10000.0,
            "rope_original_length": 1024,
        }
    )


@pytest.mark.parametrize("name", ODD_MODELS)
def test_shapes_tell_all_sizes(name):
    model = ODD_MODELS[name]
    found, notices = resolve(model, untold(model))
    assert parameter_shapes(found) == parameter_shapes(model)
    for setting in ("num_heads", "num_kv_heads", "mlp_dim", *TOLD_BY_NO_SHAPE):
        assert getattr(found, setting) == getattr(model, setting), setting
    assert notices == []


def test_what_nothing_tells_is_the_recipes_and_printed():
    found, (notice,) = resolve(ODD_MODELS["golden"], None)
    assert found.xsa_layers == (0, 1, 2, 3)
    assert found.rope_dims == 16
    assert found.value_embedding_layers == (2, 3)
    for part in ("x.pt", "pr592", "rope_dims 16", "xsa_layers 0,1,2,3", "ln_scale on", "logit_softcap 30"):
        assert part in notice


def test_the_recipe_itself_needs_no_config():
    for name in ("pr592", "pr414", "baseline", "pr1855"):
        model = configs.resolved(configs.load(name).model)
        found, _ = resolve(model, None)
        assert found == model, name


def test_golden_config_files():
    for folder in ("tiny", "small"):
        option = str(GOLDEN / folder / "config.json")
        given = json.loads(Path(option).read_text())
        model = dataclasses.replace(
            RECIPE.model,
            vocab_size=given["vocab_size"],
            num_layers=given["num_layers"],
            model_dim=given["model_dim"],
            num_heads=given["num_heads"],
            num_kv_heads=given["num_kv_heads"],
            bigram_buckets=given["bigram_vocab_size"],
            bigram_dim=given["bigram_dim"],
            xsa_layers=tuple(range(given["num_layers"]))[-given["xsa_last_n"] :],
            rope_dims=given["rope_dims"],
            value_embedding_layers=tuple(map(int, given["ve_layers"].split(","))),
            value_embedding_dim=given["ve_dim"],
        )
        assert resolve(model, option)[0] == model


def test_a_runs_config_and_a_configs_name(tmp_path):
    config = configs.replace(dataclasses.replace(RECIPE, name="mine"), "model", ODD_MODELS["equal widths, full rotary"])
    configs.write_json(config, tmp_path / "config.json")
    found, notices, assumed = reference_config.resolve(
        parameter_shapes(config.model), str(tmp_path / "config.json"), "x.pt"
    )
    assert assumed == ()
    assert found == config
    assert notices == []
    recipe = configs.load("pr414")
    recipe = dataclasses.replace(recipe, model=configs.resolved(recipe.model))
    assert reference_config.resolve(parameter_shapes(recipe.model), "pr414", "x.pt") == (recipe, [], ())


@pytest.mark.parametrize(
    ("setting", "value", "tensor"),
    [
        ("num_layers", 5, "blocks.3."),
        ("vocab_size", 1024, "tok_emb.weight [128, 64]"),
        ("model_dim", 32, "blocks.0.attn_scale [64]"),
        ("num_heads", 8, "blocks.0.attn.q_gain [4]"),
        ("num_kv_heads", 4, "blocks.0.attn.c_k.weight [32, 64]"),
        ("mlp_mult", 2, "blocks.0.mlp.fc.weight [192, 64]"),
        ("bigram_vocab_size", 0, "bigram.embed.weight [97, 16]"),
        ("bigram_dim", 64, "bigram.embed.weight [97, 16]"),
        ("ve_enabled", 0, "ve_shared."),
        ("ve_layers", "1,2,3", "ve_layer_scales.1 [1]"),
        ("ve_dim", 64, "ve_shared.embed.weight [128, 16]"),
        ("tie_embeddings", 0, "by the tensors it is on (there is no lm_head.weight)"),
        ("smear_gate", 0, "smear.gate [64]"),
    ],
)
def test_a_contradiction_names_both(setting, value, tensor):
    with pytest.raises(ConfigError) as error:
        resolve(ODD_MODELS["golden"], json.dumps({setting: value}))
    assert "--config and x.pt contradict each other" in str(error.value)
    assert tensor in str(error.value)


def test_a_feature_that_is_not_there_but_given():
    with pytest.raises(ConfigError, match=r"bigram_buckets is 10, by the tensors it is 0 \(there is no bigram"):
        resolve(ODD_MODELS["untied, no tables"], '{"bigram_vocab_size": 10}')
    with pytest.raises(ConfigError, match=r"value_embedding_layers is 1, by the tensors it is none \(there is no ve_"):
        resolve(ODD_MODELS["untied, no tables"], '{"ve_layers": "1"}')


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("nonsense", "no config 'nonsense'"),
        ("nowhere.json", "nowhere.json: cannot be read"),
        ("{", "--config: not JSON: expecting property name"),
        ('{"xsa": 4}', "unknown settings xsa"),
        ('{"xsa_last_n": "four"}', "xsa_last_n is 'four'"),
        ('{"num_layers": 4.5}', "num_layers is 4.5"),
        ('{"ve_layers": "a"}', "ve_layers is 'a'"),
        ('{"ln_scale": "maybe"}', "ln_scale is 'maybe'"),
        ('{"dtg": true}', "dtg is on"),
        ('{"rope_dims": 7}', "model.rope_dims is 7"),
        ('{"ve_layers": "2,9"}', "model.value_embedding_layers is (2, 9)"),
    ],
)
def test_options_that_cannot_be_used(option, part):
    with pytest.raises(ConfigError) as error:
        resolve(ODD_MODELS["golden"], option)
    assert part in str(error.value)


def test_environment_style_values():
    found, _ = resolve(
        ODD_MODELS["golden"], '{"XSA_LAST_N": "1", "LN_SCALE": "0", "VE_LAYERS": "0,3", "MLP_MULT": "3"}'
    )
    assert (found.xsa_layers, found.ln_scale, found.value_embedding_layers) == ((3,), False, (0, 3))


def test_heads_without_a_gain():
    shapes = {path: shape for path, shape in parameter_shapes(ODD_MODELS["golden"]).items() if "q_gain" not in path}
    config = reference_config.resolve(shapes, '{"q_gain": 0, "num_heads": 8}', "x.pt").config
    assert (config.model.num_heads, config.model.num_kv_heads, config.model.q_gain) == (8, 4, 0)
    with pytest.raises(ConfigError, match=r"c_k.weight \[32, 64\] does not divide into heads of width 64"):
        reference_config.resolve(shapes, '{"q_gain": 0}', "x.pt")


def test_every_wrong_tensor_is_named():
    shapes = parameter_shapes(ODD_MODELS["golden"])
    for path in ("smear/gate", "blocks/2/attn/q_gain", "skip_weights", "embed/embedding"):
        del shapes[path]
    shapes["blocks/1/mlp/up_proj/kernel"] = (64, 5)
    shapes["blocks/0/attn_scale"] = (63,)
    with pytest.raises(ArtifactError) as error:
        reference_config.fit(names.by_torch_name(shapes) | {"blocks.0.dtg_gate.weight": (1, 64)}, None, "x.pt")
    lines = [line.strip() for line in str(error.value).splitlines()[1:-1]]
    assert sorted(lines) == [
        "blocks.0.attn_scale: found [63], expected [64]",
        "blocks.0.dtg_gate.weight: unexpected, found [1, 64]; the model has no parameter of that name",
        "blocks.1.mlp.fc.weight: found [5, 64], expected [192, 64]",
        "blocks.2.attn.q_gain: missing, expected [4]",
        "skip_weights: missing, expected [2, 64]",
        "smear.gate: missing, expected [64]",
        "tok_emb.weight: missing, expected [128, 64]",
    ]
    assert "blocks.0.dtg_gate.weight: no setting gives jgolf's network such parameters" in str(error.value)


def test_another_familys_checkpoint():
    with pytest.raises(ArtifactError, match=r"x\.pt: no tensor of it is called blocks"):
        reference_config.fit({"smear.gate": (3,)}, None, "x.pt")
    others = {f"transformer.h.{layer}.weight": (3, 3) for layer in range(41)}
    with pytest.raises(ArtifactError, match=r"x\.pt: transformer.h.0.weight and 40 more names: no setting gives"):
        reference_config.fit(others, None, "x.pt")
    with pytest.raises(ArtifactError) as error:
        reference_config.fit(
            names.by_torch_name(parameter_shapes(ODD_MODELS["golden"])) | others, '{"rope_dims": 8}', "x.pt"
        )
    text = str(error.value)
    assert len(text.splitlines()) == 13 and "… and 31 more" in text
    assert text.endswith("a model of another architecture") and "--config" not in text


def test_advice_is_given_where_it_helps():
    model = ODD_MODELS["golden"]
    shapes = {path: shape for path, shape in parameter_shapes(model).items() if path != "smear/gate"}
    with pytest.raises(ArtifactError, match="""--config '{"smear_gate": false}'$"""):
        reference_config.fit(names.by_torch_name(shapes), None, "x.pt")
    found = reference_config.fit(names.by_torch_name(shapes), '{"smear_gate": false}', "x.pt").config.model
    assert not found.smear_gate
    shapes = parameter_shapes(model) | {"blocks/0/attn_scale": (63,)}
    with pytest.raises(ArtifactError, match=r"blocks.0.attn_scale: found \[63\], expected \[64\]$"):
        reference_config.fit(names.by_torch_name(shapes), None, "x.pt")


def test_mlp_widths_survive_their_multiple():
    for width in np.random.default_rng(0).integers(1, 3000, 200):
        dim = 640
        model = dataclasses.replace(
            RECIPE.model, model_dim=dim, mlp_multiple=reference_config._multiple(int(width), dim)
        )
        assert model.mlp_dim == width
