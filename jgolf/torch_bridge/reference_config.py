"""The settings of a PyTorch checkpoint's model: from its tensors' shapes, from `--config`, from the recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jgolf import config as configs
from jgolf.config import Config, ModelConfig
from jgolf.errors import ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.torch_bridge import config_option, names, shapes
from jgolf.torch_bridge.config_option import LAST_LAYERS, Given
from jgolf.torch_bridge.shapes import Shape, Told

RECIPE, PLAIN_RECIPE = "pr592", "baseline"
RECIPE_XSA_LAYERS = 4
RECIPE_HEAD_DIM = 64
TABLE_SIZES = ("bigram_buckets", "bigram_dim", "value_embedding_dim")
UNTOLD = ("rope_dims", "rope_base", "ln_scale", "logit_softcap")  # no tensor's shape depends on these


def fit(
    found: Mapping[str, Shape], unknown: Mapping[str, Shape], option: str | None, source: str
) -> tuple[Config, list[str]]:
    """As `resolve`, and checks that the tensors are exactly those of the model.

    Args:
      found: path → shape of each parameter.
      unknown: PyTorch name → shape of each tensor that is none.
      option: the value of `--config`, if given.
      source: what the tensors were read from, for messages.

    Raises:
      ArtifactError: names every missing, extra and misshapen tensor; and the errors of `resolve`.
    """
    config, notices = resolve(found, option, source)
    check(found, unknown, config.model, source)
    return config, notices


def check(found: Mapping[str, Shape], unknown: Mapping[str, Shape], model: ModelConfig, source: str) -> None:
    """Checks that the tensors are exactly those of `model`; arguments and errors as of `fit`."""
    names.check({**names.by_torch_name(found), **unknown}, names.by_torch_name(parameter_shapes(model)), source)


def resolve(found: Mapping[str, Shape], option: str | None, source: str) -> tuple[Config, list[str]]:
    """The config of the model whose parameters have these shapes.

    What neither shapes nor `--config` tell is taken from the recipe pr592, or from the challenge's
    baseline for a network without SmearGate and extra tables: XSA on the last four layers, the value
    embedding on the last layers, rotary dimensions up to the head's width.

    Args:
      found: path → shape of each parameter.
      option: the value of `--config`, if given.
      source: what the tensors were read from, for messages.

    Returns:
      The config, and a notice that names the settings that had to be assumed.

    Raises:
      ConfigError: `option` cannot be read, contradicts the shapes, or leaves a model that makes no sense.
      ArtifactError: the shapes are not those of such a model.
    """
    given = config_option.parse(option)
    told = shapes.told_by(found, source)
    plain = not any(told[feature].value for feature in ("smear_gate", "bigram", "value_embedding"))
    recipe = PLAIN_RECIPE if plain else RECIPE
    base = given.base or configs.load(recipe)
    values = {**dataclasses.asdict(base.model), **given.settings}
    contradictions = _Contradictions(given, source)
    _set_features(values, told, contradictions)
    _set_sizes(values, told, contradictions)
    assumed = [] if given.base else [name for name in UNTOLD if name not in given.settings]
    assumed += _place_layers(values, told, given, contradictions)
    if "num_heads" not in told and "num_heads" not in given.settings:
        assumed.append("num_heads")
    contradictions.raise_any()
    model = ModelConfig(**values)
    configs.validate(dataclasses.replace(Config(), model=model))
    config = dataclasses.replace(base, model=configs.resolved(model))
    return config, _notices(values, assumed, recipe, source)


class _Contradictions:
    """Collects what `--config` says otherwise than the tensors."""

    def __init__(self, given: Given, source: str):
        self.given, self.source, self.found = given, source, []

    def note(self, name: str, says: Any, told: Told) -> None:
        """Adds that the tensors say `says` of this setting, if it was given."""
        if name in self.given.settings:
            given = _shown(self.given.settings[name])
            self.found.append(f"{name} is {given}, by the tensors it is {_shown(says)} ({told.by})")

    def raise_any(self) -> None:
        if self.found:
            lines = "\n".join(f"  {line}" for line in self.found)
            raise ConfigError(f"{self.given.source} and {self.source} contradict each other:\n{lines}")


def _set_features(values: dict[str, Any], told: Mapping[str, Told], contradictions: _Contradictions) -> None:
    """Which optional parts there are. An absent gate, gain or skip weight is missing unless a config leaves it out."""
    for name in ("smear_gate", "unet_skips", "q_gain"):
        if told[name].value and not values[name]:
            contradictions.note(name, True, told[name])
    tied = not told["head"].value
    if values["tie_embeddings"] != tied:
        contradictions.note("tie_embeddings", tied, told["head"])
    values["tie_embeddings"] = tied
    if not told["bigram"].value:
        if values["bigram_buckets"]:
            contradictions.note("bigram_buckets", 0, told["bigram"])
        values["bigram_buckets"] = 0


def _set_sizes(values: dict[str, Any], told: Mapping[str, Told], contradictions: _Contradictions) -> None:
    """Every width and count that a tensor tells; the rest stay as they are in `values`."""
    for name in ("vocab_size", "num_layers", "model_dim", "num_heads", *TABLE_SIZES):
        if name in told:
            if values[name] != told[name].value and (name, values[name]) != ("vocab_size", 0):
                contradictions.note(name, told[name].value, told[name])
            values[name] = told[name].value
    if not {"num_heads"} & (told.keys() | contradictions.given.settings.keys()):
        values["num_heads"] = max(1, values["model_dim"] // RECIPE_HEAD_DIM)
    dim = values["model_dim"]
    if "kv_dim" in told:
        kv_dim, head_dim = told["kv_dim"].value, dim // max(1, values["num_heads"])
        if not head_dim or kv_dim % head_dim:
            raise ConfigError(
                f"{contradictions.source}: {told['kv_dim'].by} does not divide into heads of width {head_dim} "
                f"(model_dim {dim}, num_heads {values['num_heads']}); give the number of heads with "
                "--config '{\"num_heads\": …}'"
            )
        if values["num_kv_heads"] * head_dim != kv_dim:
            contradictions.note("num_kv_heads", kv_dim // head_dim, told["kv_dim"])
        values["num_kv_heads"] = kv_dim // head_dim
    if "mlp_dim" in told and int(values["mlp_multiple"] * dim) != told["mlp_dim"].value:
        multiple = _multiple(told["mlp_dim"].value, dim)
        contradictions.note("mlp_multiple", multiple, told["mlp_dim"])
        values["mlp_multiple"] = multiple


def _multiple(width: int, dim: int) -> float:
    """The multiple of `dim` that truncates to `width`."""
    multiple = width / dim
    return multiple if int(multiple * dim) == width else math.nextafter(multiple, math.inf)


def _place_layers(
    values: dict[str, Any], told: Mapping[str, Told], given: Given, contradictions: _Contradictions
) -> list[str]:
    """Sets which layers have XSA and the value embedding; returns the names of those that are assumed."""
    assumed = []
    num_layers, count = values["num_layers"], told["num_value_layers"].value
    if "value_embedding_layers" in given.settings:
        listed = values["value_embedding_layers"]
        if bool(listed) != told["value_embedding"].value:
            says = "some" if told["value_embedding"].value else "none"
            contradictions.note("value_embedding_layers", says, told["value_embedding"])
        elif len(listed) != count:
            contradictions.note("value_embedding_layers", f"{count} layers", told["num_value_layers"])
    else:
        values["value_embedding_layers"] = tuple(range(max(0, num_layers - count), num_layers))
        assumed += ["value_embedding_layers"] if count else []
    last = values.pop(LAST_LAYERS, None)
    if last is None and "xsa_layers" not in given.settings:
        last = RECIPE_XSA_LAYERS if values["xsa_layers"] else 0
        assumed.append("xsa_layers")
    if last is not None:
        values["xsa_layers"] = tuple(range(max(0, num_layers - last), num_layers))
    if "rope_dims" not in given.settings and values["num_heads"]:
        values["rope_dims"] = min(values["rope_dims"], values["model_dim"] // values["num_heads"])
    return assumed


def _notices(values: Mapping[str, Any], assumed: list[str], recipe: str, source: str) -> list[str]:
    if not assumed:
        return []
    settings = ", ".join(f"{name} {_shown(values[name])}" for name in assumed)
    return [f"{source}: told by neither its tensors nor --config, taken as in the recipe {recipe}: {settings}"]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
