"""The option `--config` of commands that read PyTorch checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jgolf import config as configs
from jgolf.config import Config, ModelConfig
from jgolf.errors import ConfigError
from jgolf.reading import Unreadable, excerpt, parse_json, read_json
from jgolf.torch_bridge.families.common import MOST_BLOCKS

RENAMED = {
    "mlp_mult": "mlp_multiple",
    "tied_embed_init_std": "embedding_init_std",
    "qk_gain_init": "q_gain",
    "bigram_vocab_size": "bigram_buckets",
    "ve_dim": "value_embedding_dim",
    "ve_layers": "value_embedding_layers",
    "smear_gate_enabled": "gated_smear",
    "skip_gates_enabled": "skip_gates",
    "sparse_attn_gate_enabled": "attention_gate",
    "sparse_attn_gate_scale": "attention_gate_scale",
    "parallel_start_layer": "lanes_from",
}
LAST_LAYERS = "xsa_last_n"
SWITCH = "ve_enabled"
TRAINING_ONLY = ("mtp_num_heads", "mtp_loss_weight", "enable_looping_at")
ABSENT_FEATURES = ("dtg", "dtg_enabled", "rope_yarn")
LOOP = ("loop_start", "loop_end")
FINAL_LANE = "parallel_final_lane"  # what the two lanes end in


@dataclass(frozen=True)
class Given:
    """What `--config` says.

    Attributes:
      source: how to call it in a message.
      settings: the name of a setting of ModelConfig, or `xsa_last_n` → value.
      base: the whole config where the option names one; None for a JSON object with some settings.
      seq_len: the longest sequence that is trained on, of a script that says so; 0 otherwise.
    """

    source: str
    settings: dict[str, Any]
    base: Config | None = None
    seq_len: int = 0


def parse(option: str | None) -> Given:
    """Reads a config's name, a run's config.json, or a JSON object (inline, or in a file).

    The object has the reference's own names, such as {"num_heads": 8, "xsa_last_n": 4,
    "ve_layers": "9,10"}, or those of `jgolf.config.ModelConfig`.

    Raises:
      ConfigError: it is none of these, or holds unknown names or values of the wrong type.
    """
    if option is None:
        return Given("--config", {})
    inline = option.lstrip().startswith("{")
    if not inline and not option.endswith(".json"):
        return _of_config(configs.load(option), f"the config {option}")
    source = "--config" if inline else option
    try:
        values = parse_json(option) if inline else read_json(option)
    except OSError as error:
        raise ConfigError(f"--config {option}: cannot be read: {error.strerror or error}") from None
    except Unreadable as error:
        raise ConfigError(f"{source}: {error}; expected a JSON object") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a JSON object, found {type(values).__name__}")
    if isinstance(values.get("model"), dict):
        try:
            return _of_config(configs.from_written(values), source)
        except ConfigError as error:
            raise ConfigError(f"{source}: not a jgolf config: {error}") from None
    return Given(source, translate(values, source))


def _of_config(config: Config, source: str) -> Given:
    return Given(source, dataclasses.asdict(config.model), config)


def translate(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The reference's names and values as those of ModelConfig; upper case, as in the environment, is taken too.

    Those of both families of scripts are taken; where the loop's layers are given by their ends, they are listed.
    """
    values = {key.lower(): value for key, value in values.items()}
    defaults = dataclasses.asdict(ModelConfig()) | {LAST_LAYERS: 0, SWITCH: True, FINAL_LANE: "mean"}
    defaults |= dict.fromkeys(ABSENT_FEATURES, False) | dict.fromkeys(LOOP, 0)
    settings: dict[str, Any] = {}
    unknown = []
    for key, value in values.items():
        name = RENAMED.get(key, key)
        if name in defaults:
            settings[name] = _convert(key, value, defaults[name], source)
        elif name not in TRAINING_ONLY:
            unknown.append(key)
    if unknown:
        known = ", ".join(sorted({*RENAMED, *defaults, *TRAINING_ONLY}))
        raise ConfigError(f"{source}: unknown settings {', '.join(unknown):.400}; expected some of {known}")
    for name in ABSENT_FEATURES:
        if settings.pop(name, False):
            raise ConfigError(f"{source}: {name} is on; this feature is not part of jgolf's network")
    if (lane := settings.pop(FINAL_LANE, "mean")) != "mean":
        raise ConfigError(f"{source}: {FINAL_LANE} is {lane!r}; in jgolf's network two lanes end in their mean")
    if not settings.pop(SWITCH, True):
        settings["value_embedding_layers"] = ()
    return _with_loop(settings, source)


def _with_loop(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings with the loop's layers in place of their ends; no further runs are no loop."""
    first, last = (settings.pop(name, None) for name in LOOP)
    if (first is None) != (last is None):
        raise ConfigError(f"{source}: one of {' and '.join(LOOP)} is given without the other; expected both or none")
    if first is not None:
        if not 0 <= first <= last < MOST_BLOCKS:
            raise ConfigError(
                f"{source}: loop_start is {first} and loop_end {last}: expected layers in rising order, "
                f"below {MOST_BLOCKS}"
            )
        settings["loop_layers"] = tuple(range(first, last + 1))
    if settings.get("num_loops") == 0:
        del settings["num_loops"]
        settings["loop_layers"] = ()
    return settings


def _convert(name: str, value: Any, like: Any, source: str) -> Any:
    """`value` in the type of the default `like`; numbers and truths written as strings are read."""
    try:
        if isinstance(like, bool):
            return {"0": False, "1": True, "false": False, "true": True}[str(value).lower()]
        if isinstance(like, tuple):
            items = value.split(",") if isinstance(value, str) else value
            return tuple(int(item) for item in items if str(item).strip())
        if isinstance(like, str):
            return str(value)
        number = float(value)
        if isinstance(value, bool) or number != type(like)(number):
            raise ValueError
        return type(like)(number)
    except (ValueError, TypeError, KeyError, OverflowError):
        kind = "layers such as 9,10" if isinstance(like, tuple) else f"a value of type {type(like).__name__}"
        raise ConfigError(f"{source}: {name} is {excerpt(value)}: expected {kind}") from None
