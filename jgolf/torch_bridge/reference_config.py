"""The settings of a PyTorch checkpoint's model: from its tensors' shapes, `--config`, its script, or the recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jgolf import config as configs
from jgolf.config import Config, ModelConfig
from jgolf.config.resolve import counted_from_0
from jgolf.errors import ArtifactError, ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.torch_bridge import config_option, names, shapes
from jgolf.torch_bridge.config_option import LAST_LAYERS, Given
from jgolf.torch_bridge.families import pr592
from jgolf.torch_bridge.families.common import Family
from jgolf.torch_bridge.shapes import Shape, Told

PLAIN_RECIPE = "baseline"
RECIPE_HEAD_DIM = 64
TABLE_SIZES = ("bigram_buckets", "bigram_dim", "value_embedding_dim")
GATES = ("gated_smear", "skip_gates", "attention_gate")
"""There where their tensors are."""
ORDER = ("loop_layers", "num_loops", "lanes_from")
"""Where layers run, of which tensors tell little."""
SWITCHES = {
    "smear/gate": ("smear_gate", '"smear_gate": false'),
    "skip_weights": ("unet_skips", '"unet_skips": false'),
    "q_gain": ("q_gain", '"q_gain": 0'),
}
"""End of the path of a parameter → the setting that leaves it out, which no tensor tells, and how to give it."""


class Resolved(NamedTuple):
    """A config, and how it came about.

    Attributes:
      config: its `model` is the checkpoint's.
      notices: for the user: which settings had to be assumed.
      assumed: the names, of ModelConfig, of those settings.
    """

    config: Config
    notices: list[str]
    assumed: tuple[str, ...]


def fit(tensors: Mapping[str, Shape], option: str | None, source: str, own: Given | None = None) -> Resolved:
    """As `resolve`, and checks that the tensors are exactly those of the model.

    Args:
      tensors: PyTorch name → shape of each tensor; those without values are passed over.
      option: the value of `--config`, if given.
      source: what the tensors were read from, for messages.
      own: settings of the script that the checkpoint belongs to, if known.

    Raises:
      ArtifactError: names missing, extra and misshapen tensors; and the errors of `resolve`.
    """
    given = config_option.parse(option)
    tensors = _with_values(tensors)
    found, _ = names.by_path(tensors)
    try:
        resolved = _resolve(found, names.family_of(tensors), given, source, own)
    except (ArtifactError, ConfigError):
        if foreign := names.foreign_names(tensors):  # what the shapes seem to say is then of no use
            raise ArtifactError(f"{source}: {names.another_architecture(foreign)}") from None
        raise
    wanted = parameter_shapes(resolved.config.model)
    _check(tensors, wanted, source, _advice(found, wanted))
    return resolved


def check(tensors: Mapping[str, Shape], model: ModelConfig, source: str) -> None:
    """Checks that the tensors are exactly those of `model`; arguments and errors as of `fit`."""
    advice = "The settings of the network, --model.…, have to be those of the file."
    _check(_with_values(tensors), parameter_shapes(model), source, advice)


def _check(tensors: Mapping[str, Shape], wanted: Mapping[str, Shape], source: str, advice: str) -> None:
    banks = any(name in names.BANKS for name in tensors)
    names.check(tensors, names.by_torch_name(wanted, banks), source, advice)


def _with_values(tensors: Mapping[str, Shape]) -> dict[str, Shape]:
    """Without tensors such as the skip weights of a network of one block."""
    return {name: shape for name, shape in tensors.items() if 0 not in shape}


def _advice(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    """What `--config` may say so that the tensors are those of the model."""
    advice = []
    if switches := [text for end, (_, text) in SWITCHES.items() if _left_out(end, found, wanted)]:
        advice.append(f"If the model has no such parts, say so with --config '{{{', '.join(switches)}}}'")
    if found.get("skip_weights", ())[:1] != wanted.get("skip_weights", ())[:1] and "skip_weights" in found:
        settings = '{"loop_start": …, "loop_end": …, "num_loops": …}'
        advice.append(f"If layers run more than once, say which with --config '{settings}'")
    if "lanes/post" in found and "lanes/post" not in wanted:
        advice.append("Say from which layer on there are two lanes with --config '{\"parallel_start_layer\": …}'")
    return "\n".join(advice)


def _left_out(end: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> bool:
    """Whether parameters that end like this are wanted, and none is there."""
    return any(path.endswith(end) for path in wanted) and not any(path.endswith(end) for path in found)


def resolve(found: Mapping[str, Shape], option: str | None, source: str, own: Given | None = None) -> Resolved:
    """The config of the model whose parameters have these shapes.

    What neither shapes nor `--config` tell is taken from the script, and what that does not tell from the recipe of
    the family of scripts that has the most of these parameters, or from the challenge's baseline for a network without
    SmearGate and extra tables: how many of the last layers have XSA (or all), the value embedding on the last layers,
    rotary dimensions up to the head's width, a rotary base that rises past 1,024 tokens (pr592's alone), the loop where
    it suits the number of skips, where the second lane begins.

    Args:
      found: path → shape of each parameter.
      option: the value of `--config`, if given.
      source: what the tensors were read from, for messages.
      own: settings of the script that the checkpoint belongs to, if known; sizes among them do not count.

    Raises:
      ConfigError: `option` cannot be read, contradicts the shapes, or leaves a model that makes no sense.
      ArtifactError: the shapes are not those of such a model.
    """
    family = names.family_of(names.by_torch_name(found))
    return _resolve(found, family, config_option.parse(option), source, own)


def _resolve(found: Mapping[str, Shape], family: Family, given: Given, source: str, own: Given | None) -> Resolved:
    told = shapes.told_by(found, source)
    own = _suiting(own, told) if own is not None and given.base is None else Given("", {})
    plain = not any(told[feature].value for feature in ("smear_gate", "bigram", "value_embedding"))
    recipe = PLAIN_RECIPE if plain and family is pr592.FAMILY else family.recipe
    base = given.base or configs.load(recipe)
    untold = [*family.untold, *(["attention_gate_scale"] if told["attention_gate"].value else [])]
    by_script = {name: own.settings[name] for name in ("num_heads", *ORDER, *untold) if name in own.settings}
    values = {**dataclasses.asdict(base.model), **by_script, **given.settings}
    contradictions = _Contradictions(given, source)
    _set_features(values, told, contradictions)
    _set_sizes(values, told, contradictions, "num_heads" in by_script)
    assumed = [] if given.base else [name for name in untold if name not in given.settings]
    by_recipe = {name: getattr(configs.resolved(base.model), name) for name in (*ORDER, *untold)}
    by_recipe |= {"rope_dims": _rope_dims(values, base.model)}
    assumed += _place_layers(values, told, base.model, given, own, contradictions, by_recipe)
    assumed += _place_loop(values, told, contradictions) + _place_lanes(values, told, contradictions)
    if "num_heads" not in told and "num_heads" not in given.settings:
        assumed.append("num_heads")
    contradictions.raise_any()
    model = ModelConfig(**values)
    configs.validate(dataclasses.replace(Config(), model=model))
    config = dataclasses.replace(base, model=configs.resolved(model))
    notices = _notices(values, by_recipe, assumed, own, recipe, source)
    return Resolved(config, notices, tuple(assumed))


def _suiting(own: Given, told: Mapping[str, Told]) -> Given:
    """The script's settings as far as they suit the layers, skips and lanes that the tensors tell."""
    settings, num_layers = dict(own.settings), told["num_layers"].value
    layers = settings.pop("value_embedding_layers", ())
    if len(layers) == told["num_value_layers"].value and all(0 <= layer < num_layers for layer in layers):
        settings["value_embedding_layers"] = layers
    if LAST_LAYERS in settings:
        settings["xsa_layers"] = _last(settings.pop(LAST_LAYERS), num_layers)
    loop, num_loops = settings.get("loop_layers", ()), settings.get("num_loops", 0)
    if not _loop_suits(told, loop, num_loops) or (loop and loop[-1] >= num_layers):
        settings = {name: value for name, value in settings.items() if name not in ("loop_layers", "num_loops")}
    if bool(settings.get("lanes_from")) != told["lanes"].value:
        settings.pop("lanes_from", None)
    return Given(own.source, settings)


def _loop_suits(told: Mapping[str, Told], layers: tuple[int, ...], num_loops: int) -> bool:
    """Whether the skips have as many rows as layers that run more than once make."""
    rows = told["num_skips"].value if "num_skips" in told else None
    return rows in (None, (told["num_layers"].value + len(layers) * num_loops) // 2)


class _Contradictions:
    """Collects what `--config` says otherwise than the tensors."""

    def __init__(self, given: Given, source: str):
        self.given, self.source, self.found = given, source, []

    def note(self, name: str, says: Any, told: Told) -> None:
        """Adds that the tensors say `says` of this setting, if it was given."""
        if name in self.given.settings:
            given = shown(self.given.settings[name])
            self.found.append(f"{name} is {given}, by the tensors it is {shown(says)} ({told.by})")

    def raise_any(self) -> None:
        if self.found:
            lines = "\n".join(f"  {line}" for line in self.found)
            raise ConfigError(f"{self.given.source} and {self.source} contradict each other:\n{lines}")


def _set_features(values: dict[str, Any], told: Mapping[str, Told], contradictions: _Contradictions) -> None:
    """Which optional parts there are. An absent gate, gain or skip weight is missing unless a config leaves it out."""
    for name in ("smear_gate", "unet_skips", "q_gain"):
        if told[name].value and not values[name]:
            contradictions.note(name, True, told[name])
    for name in ("smear_gate", "unet_skips"):
        values[name] = values[name] or told[name].value
    tied = not told["head"].value
    if values["tie_embeddings"] != tied:
        contradictions.note("tie_embeddings", tied, told["head"])
    values["tie_embeddings"] = tied
    for name in GATES:
        if values[name] != told[name].value:
            contradictions.note(name, told[name].value, told[name])
        values[name] = told[name].value
    if not told["bigram"].value:
        if values["bigram_buckets"]:
            contradictions.note("bigram_buckets", 0, told["bigram"])
        values["bigram_buckets"] = 0


def _set_sizes(
    values: dict[str, Any], told: Mapping[str, Told], contradictions: _Contradictions, heads_known: bool
) -> None:
    """Every width and count that a tensor tells; the rest stay as they are in `values`."""
    for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "gate_window", *TABLE_SIZES):
        if name in told:
            if values[name] != told[name].value and (name, values[name]) != ("vocab_size", 0):
                contradictions.note(name, told[name].value, told[name])
            values[name] = told[name].value
    if not heads_known and "num_heads" not in told.keys() | contradictions.given.settings.keys():
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
    values: dict[str, Any],
    told: Mapping[str, Told],
    recipe: ModelConfig,
    given: Given,
    own: Given,
    contradictions: _Contradictions,
    by_recipe: dict[str, Any],
) -> list[str]:
    """Sets which layers have XSA and the value embedding; returns the names of those that are assumed.

    What the recipe has for these is added to `by_recipe`.
    """
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
        by_recipe["value_embedding_layers"] = _last(count, num_layers)
        values["value_embedding_layers"] = (by_recipe | own.settings)["value_embedding_layers"]
        assumed += ["value_embedding_layers"] if count else []
    num_xsa = len(recipe.xsa_layers)
    by_recipe["xsa_layers"] = _last(num_layers if num_xsa == recipe.num_layers else num_xsa, num_layers)
    last = values.pop(LAST_LAYERS, None)
    if last is not None:
        values["xsa_layers"] = _last(last, num_layers)
    elif "xsa_layers" not in given.settings:
        assumed.append("xsa_layers")
        values["xsa_layers"] = (by_recipe | own.settings)["xsa_layers"]
    if "rope_dims" not in given.settings and values["num_heads"]:
        values["rope_dims"] = min(values["rope_dims"], values["model_dim"] // values["num_heads"])
    return assumed


def _place_loop(values: dict[str, Any], told: Mapping[str, Told], contradictions: _Contradictions) -> list[str]:
    """Sets which layers run more than once; returns the names of the settings that are assumed.

    The skips' rows tell how often layers run in all, not which. The recipe's loop is taken where it suits them.
    """
    given, layers, num_layers = contradictions.given.settings, values["loop_layers"], values["num_layers"]
    suits = _loop_suits(told, layers, values["num_loops"])
    if "loop_layers" in given:
        if not suits:
            rows = told["num_skips"].value
            says = f"layers that make {2 * rows - num_layers} or {2 * rows + 1 - num_layers} more runs"
            contradictions.note("loop_layers", says, told["num_skips"])
        return []
    if layers and (not suits or layers[-1] >= num_layers):
        values["loop_layers"] = ()
    return [name for name in ("loop_layers", "num_loops") if layers and name not in given]


def _place_lanes(values: dict[str, Any], told: Mapping[str, Told], contradictions: _Contradictions) -> list[str]:
    """Sets where the second lane begins, if there is one; returns the setting's name where it is assumed."""
    if bool(values["lanes_from"]) != told["lanes"].value:
        contradictions.note("lanes_from", "a layer" if told["lanes"].value else 0, told["lanes"])
    if not told["lanes"].value:
        values["lanes_from"] = 0
    values["lanes_from"] = counted_from_0(values["lanes_from"], values["num_layers"])
    return ["lanes_from"] if values["lanes_from"] and "lanes_from" not in contradictions.given.settings else []


def _last(count: int, num_layers: int) -> tuple[int, ...]:
    return tuple(range(max(0, num_layers - count), num_layers))


def _rope_dims(values: Mapping[str, Any], model: ModelConfig) -> int:
    """The recipe's rotated dimensions, as far as the heads are wide."""
    return min(model.rope_dims, values["model_dim"] // max(1, values["num_heads"]))


def _notices(
    values: Mapping[str, Any],
    by_recipe: Mapping[str, Any],
    assumed: list[str],
    own: Given,
    recipe: str,
    source: str,
) -> list[str]:
    by_script, by_default = [], []
    for name in assumed:
        text = f"{name} {shown(values[name])}"
        if name not in own.settings:
            by_default.append(text)
        elif by_recipe.get(name, values[name]) != values[name]:
            by_script.append(f"{text} (the recipe {recipe} has {shown(by_recipe[name])})")
        else:
            by_script.append(text)
    untold = f"{source}: told by neither its tensors nor --config, taken"
    notices = [f"{untold} from {own.source}: {', '.join(by_script)}"] if by_script else []
    return notices + ([f"{untold} as in the recipe {recipe}: {', '.join(by_default)}"] if by_default else [])


def shown(value: Any) -> str:
    """A setting's value, for a message."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
