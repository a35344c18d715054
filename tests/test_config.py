import dataclasses
import json
from pathlib import Path

import pytest

from jgolf import config as configs
from jgolf.config import Config, Mark
from jgolf.config.marks import bounds
from jgolf.config.parts import UNET_SKIPS
from jgolf.errors import ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.optim.muon import COEFFICIENTS
from tests.conftest import RECIPE


@pytest.mark.parametrize("name", configs.config_names())
def test_configs_are_valid_and_survive_json(name, tmp_path):
    config = configs.validate(configs.load(name))
    assert config.name == name
    configs.write_json(config, tmp_path / "config.json")
    assert configs.load(str(tmp_path / "config.json")) == config


@pytest.mark.parametrize(("name", "expected"), [("pr592", 30_404_196), ("pr414", 26_993_756)])
def test_recipes_have_the_reference_number_of_parameters(name, expected):
    shapes = parameter_shapes(configs.load(name).model)
    total = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        total += size
    assert total == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model.num_heads", 7, "a divisor of model_dim 512, such as 8"),
        ("model.num_kv_heads", 3, "a divisor of num_heads 8"),
        ("model.xsa_layers", (3, 12), "each from 0 to 11"),
        ("model.value_embedding_layers", (-13,), "each from 0 to 11, or from the end, -12 to -1"),
        ("model.value_embedding_layers", (4, 4), "different layers"),
        ("model.rope_dims", 66, "up to the head width 64"),
        ("model.rope_dims", 15, "even"),
        ("model.lanes_from", -12, "a layer after the first"),
        ("model.num_layers", 10**9, "at most 1,000 blocks in a row"),
        ("model.vocab_size", 100_000, "from 1 to 65536"),
        ("train.batch_tokens", 786_433, "such as 786432"),
        ("train.seq_len", 0, "at least 1"),
        ("train.seed", 1 << 32, "from 0 to 4294967295"),
        ("train.steps", 10**20, "below 2,147,483,648"),
        ("evaluate.hints.orders", (1, 10**20), "below 2,147,483,648"),
        ("evaluate.adapted.widths", (10**20,), "below 2,147,483,648"),
        ("model.model_dim", 10**9 + 7, "a divisor of model_dim 1000000007, such as 1"),
        ("optim.muon.momentum", 1.0, "below 1"),
        ("optim.grad_clip", float("nan"), "0 (off) or more"),
        ("train.learning_rate_floor", 1.5, "a learning-rate multiplier"),
        ("train.warmdown_fraction", 1.5, "a part of the run"),
        ("average.ema_decay", 0.0, "ema is switched off"),
        ("average.ema_share", 0.3, "up to 0.28868"),
        ("quantize.clip_percentiles", (0.5, 1.5), "up to 1"),
        ("quantize.late_qat_start", 1.5, "multiplier"),
        ("quantize.control", "int8", "fp16 or fp32"),
        ("evaluate.adapted.additions", ("q", "q"), "different ones"),
        ("evaluate.adapted.widths", (512, 256), "rising"),
        ("evaluate.adapted.chunk_by_length", ((256, 8), (256, 24)), "pairs of a length, rising"),
        ("evaluate.adapted.learning_rate_by_length", ((256, -1.0),), "a learning rate of 0 or more"),
        ("evaluate.adapted.sgd.momentum", 1.0, "below 1"),
        ("evaluate.hints.orders", (), "one or more numbers of tokens"),
        ("evaluate.hints.orders", (8, 4), "rising"),
        ("evaluate.hints.share", 0.0, "a share above 0"),
        ("evaluate.hints.strengths", (0.5, -1.0), "from 0 to 100"),
    ],
)
def test_senseless_settings_are_refused_by_name(name, value, expected):
    config = configs.replace(RECIPE, name, value)
    with pytest.raises(ConfigError) as error:
        configs.validate(config)
    reported = {"average.ema_decay": "average.export", "model.model_dim": "model.num_heads"}.get(name, name)
    assert reported in str(error.value)
    assert expected in str(error.value)


def test_lists_of_pairs_survive_json(tmp_path):
    chunks = {"evaluate.adapted.chunk_by_length": ((256, 8), (2000, 24)), "evaluate.adapted.additions": ("k", "head")}
    config = configs.replace_all(RECIPE, chunks)
    configs.write_json(configs.validate(config), tmp_path / "config.json")
    assert configs.read_json(tmp_path / "config.json") == config


def test_a_loop_has_an_end():
    looped = configs.replace(RECIPE, "model.loop_layers", (3, 4))
    configs.validate(looped)
    with pytest.raises(ConfigError, match=r"model\.num_loops is 1000000000: expected at most .* makes 2,000,000,012"):
        configs.validate(configs.replace(looped, "model.num_loops", 10**9))


def test_a_layer_that_is_not_there_is_one_problem():
    with pytest.raises(ConfigError) as error:
        configs.validate(configs.replace(RECIPE, "model.loop_layers", (3, 12)))
    assert str(error.value).count("model.") == 1 and "each from 0 to 11" in str(error.value)


def test_gates_need_skips():
    gated = configs.replace(RECIPE, "model.skip_gates", True)
    configs.validate(gated)
    without = configs.replace(gated, "model.unet_skips", False)
    with pytest.raises(ConfigError, match=r"model\.skip_gates is True: expected False without model\.unet_skips"):
        configs.validate(without)
    configs.validate(UNET_SKIPS.left_out_of(gated))


def test_an_average_has_one_reach():
    config = configs.replace(RECIPE, "average.ema_share", 0.05)
    with pytest.raises(ConfigError, match=r"average\.ema_decay is 0\.997: expected 0 .*average\.ema_share, 0\.05"):
        configs.validate(config)
    configs.validate(configs.replace(config, "average.ema_decay", 0.0))


def test_a_warmdown_has_one_length():
    config = configs.replace(RECIPE, "train.warmdown_fraction", 0.85)
    with pytest.raises(ConfigError, match=r"train\.warmdown_steps is 3500: expected 0 .*warmdown_fraction, 0\.85"):
        configs.validate(config)
    configs.validate(configs.replace(config, "train.warmdown_steps", 0))


def test_polar_express_has_a_number_of_iterations():
    config = configs.replace(Config(), "optim.muon.newton_schulz_coefficients", "polar_express")
    steps = len(COEFFICIENTS["polar_express"])
    configs.validate(configs.replace(config, "optim.muon.newton_schulz_steps", steps))
    with pytest.raises(ConfigError, match=f"at most the {steps} "):
        configs.validate(configs.replace(config, "optim.muon.newton_schulz_steps", steps + 1))


def test_all_problems_are_reported_at_once():
    config = configs.replace(configs.replace(RECIPE, "train.steps", -1), "model.num_layers", 0)
    with pytest.raises(ConfigError) as error:
        configs.validate(config)
    assert "train.steps is -1" in str(error.value)
    assert "model.num_layers is 0" in str(error.value)


def test_replace_reaches_every_leaf_and_nothing_else():
    for name, value in configs.leaves(Config()).items():
        assert configs.leaves(configs.replace(Config(), name, value))[name] == value
    with pytest.raises(ConfigError, match=r"no setting 'optim\.muon\.lr'|no setting 'lr'"):
        configs.replace(Config(), "optim.muon.lr", 1.0)


def test_stored_config_with_unknown_or_mistyped_settings_is_refused(tmp_path):
    path = tmp_path / "config.json"
    values = dataclasses.asdict(RECIPE)
    path.write_text(json.dumps(values | {"colour": "red"}))
    with pytest.raises(ConfigError, match="colour"):
        configs.read_json(path)
    values["model"]["num_layers"] = "twelve"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"model\.num_layers"):
        configs.read_json(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not a jgolf config"):
        configs.read_json(path)
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="expected an object of settings, found a list"):
        configs.read_json(path)
    path.write_text('{"model": {"num_layrs": 3}}')
    with pytest.raises(ConfigError, match="no setting is called num_layrs; did you mean num_layers"):
        configs.read_json(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        configs.read_json(tmp_path)


def test_config_from_a_file_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("from jgolf.config import Config\ndef config():\n    return Config(name='mine')\n")
    assert configs.load(str(path)).name == "mine"
    header = "from jgolf.config import Config, ModelConfig\ndef config():\n"
    path.write_text(f"{header}    return Config(model=ModelConfig(xsa_layers=[1, 2]))\n")
    assert configs.load(str(path)).model.xsa_layers == (1, 2)
    for text, expected in (
        ("def config(:\n", r"mine\.py: cannot be used: SyntaxError.*line 1"),
        ("\nraise RuntimeError('boom')\n", r"RuntimeError: boom \(line 2\)"),
        ("def config():\n    return 1 / 0\n", r"ZeroDivisionError: division by zero \(line 2\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(line 2\)"),
        ("def config():\n    return {}\n", "found one that returns a dict"),
        (
            f"{header}    return Config(model=ModelConfig(num_layers='two'))\n",
            r"mine\.py: model\.num_layers is 'two': expected int",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            configs.load(str(path))
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"expected a function config\(\)"):
        configs.load(str(path))
    with pytest.raises(ConfigError, match="pr592"):
        configs.load("pr5920")


def test_every_number_has_a_bound_or_is_a_layer():
    numbers = {
        name
        for name, value in configs.leaves(Config()).items()
        if isinstance(value, int | float | tuple) and not isinstance(value, bool)
    }
    assert numbers <= bounds(Config).keys() | set(configs.marked(Config, Mark.LAYERS))


def test_a_long_value_is_told_in_short():
    config = configs.replace(RECIPE, "model.xsa_layers", (1,) * 2000)
    with pytest.raises(ConfigError, match=r"model\.xsa_layers is \(1, 1, 1.*…: expected different layers") as refusal:
        configs.validate(config)
    assert len(str(refusal.value)) < 400
