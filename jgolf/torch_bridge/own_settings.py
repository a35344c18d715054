"""A training script's own settings of its model: those that no tensor of a checkpoint tells."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from jgolf.config import ModelConfig
from jgolf.errors import ConfigError
from jgolf.torch_bridge import config_option, main_function, script
from jgolf.torch_bridge.config_option import LAST_LAYERS, SWITCH, Given
from jgolf.torch_bridge.reference_config import shown
from jgolf.torch_bridge.torch_model import TorchModel

LEFT_OUT = {"xsa_last_n": 0, "rope_dims": 0, "ln_scale": False}
"""What a script that does not know a setting is without."""
NAMES = (*LEFT_OUT, "rope_base", "logit_softcap", "num_heads", SWITCH, "ve_layers")
NEVER = 0
"""The `rope_original_length` of a base that does not rise."""
PROBED_LENGTHS = (4096, 16384)


def of_script(reference: str | Path) -> Given:
    """The settings in `NAMES` that the script's GPT gets when the script runs, in jgolf's terms.

    They come from the call of GPT in the script, else from its Hyperparameters (and so from the environment, as
    for the script itself), else from GPT's defaults. What GPT cannot be told is left out of its network.

    Raises:
      ScriptError: the script cannot be used.
    """
    with script.imported(reference, float32_only=True, on_cpu=True) as module:
        values = _reference_values(module)
    settings: dict[str, Any] = {}
    for name in (name for name in values if name not in (SWITCH, "ve_layers")):
        settings |= _translated({name: values[name]}, str(reference))
    settings |= _translated({name: values[name] for name in (SWITCH, "ve_layers") if name in values}, str(reference))
    return Given(str(reference), settings)


def _translated(values: dict[str, Any], source: str) -> dict[str, Any]:
    try:
        return config_option.translate(values, source)
    except ConfigError:  # a value of a kind that jgolf's setting cannot have: the numbers will show
        return {}


def _reference_values(module: ModuleType) -> dict[str, Any]:
    arguments, values = main_function.arguments_of_model(module) or {}, main_function.hyperparameters(module)
    parameters = inspect.signature(module.GPT).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    found: dict[str, Any] = {}
    for name in NAMES:
        if name in arguments:
            found[name] = arguments[name]
        elif hasattr(values, name):
            found[name] = getattr(values, name)
        elif name in parameters:
            default = parameters[name].default
            found |= {} if default is inspect.Parameter.empty else {name: default}
        elif name in LEFT_OUT and not takes_all:
            found[name] = LEFT_OUT[name]
    return found


def differences(own: Given, model: ModelConfig, assumed: Iterable[str]) -> list[str]:
    """A notice for each setting that `model` has by its file or by `--config`, and the script otherwise."""
    settings = {name: value for name, value in own.settings.items() if name not in ("num_heads", LAST_LAYERS)}
    if LAST_LAYERS in own.settings:
        first = max(0, model.num_layers - own.settings[LAST_LAYERS])
        settings["xsa_layers"] = tuple(range(first, model.num_layers))
    if len(settings.get("value_embedding_layers", ())) != len(model.value_embedding_layers):
        settings.pop("value_embedding_layers", None)  # tensors tell how many there are
    if "rope_dims" in settings:
        settings["rope_dims"] = min(settings["rope_dims"] or model.head_dim, model.head_dim)
    ours = dataclasses.asdict(model) | {"rope_dims": model.rope_dims or model.head_dim}
    return [
        f"{own.source}: its own {name} is {shown(value)}; both have {shown(ours[name])}, by the model or --config"
        for name, value in settings.items()
        if name not in assumed and value != ours[name]
    ]


# --- rotary tables ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rotary:
    """What a model's rotary tables are.

    Attributes:
      dims: dimensions of a head that are rotated.
      base: of the frequencies, for short sequences; None where there is a single frequency.
      original_length: past which the base rises as jgolf has it; NEVER where it does not rise, None where it does
        by another rule.
    """

    dims: int
    base: float | None
    original_length: int | None


def rotary_of(model: TorchModel) -> Rotary | None:
    """Reads them off the tables themselves; None where the model has no module for them that gives any."""
    parts = (part for part in model.model.modules() if "rotary" in type(part).__name__.lower())
    rotary = next(parts, None)
    if rotary is None:
        return None
    seen: list[tuple] = []
    hook = rotary.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    try:
        model.logits(np.zeros((1, 2), np.int32))
        rest = [torch.float32 if isinstance(value, torch.dtype) else value for value in seen[0][1:]]
        short, *long = (_frequencies(rotary(length, *rest)) for length in (seen[0][0], *PROBED_LENGTHS))
    except Exception:  # tables of another kind
        return None
    finally:
        hook.remove()
    return Rotary(2 * len(short), _base(short), _original_length(short, long))


def _frequencies(tables: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    """Of cosines and sines [..., T, frequencies]: the angles of the second position."""
    cosines, sines = (table.detach().double().cpu().squeeze().numpy() for table in tables)
    angles = np.arctan2(sines.reshape(len(sines), -1)[1], cosines.reshape(len(cosines), -1)[1])
    half = len(angles) // 2
    return angles[:half] if half and np.array_equal(angles[:half], angles[half:]) else angles


def _base(frequencies: np.ndarray) -> float | None:
    """base^(−2i/d) are the frequencies; the last one tells the base best."""
    last, dims = len(frequencies) - 1, 2 * len(frequencies)
    return float(frequencies[-1] ** (-dims / (2 * last))) if last else None


def _original_length(short: np.ndarray, long: list[np.ndarray]) -> int | None:
    dims, base = 2 * len(short), _base(short)
    if base is None:
        return NEVER
    rises = [_base(frequencies) / base for frequencies in long]
    if all(math.isclose(rise, 1, rel_tol=1e-5) for rise in rises):
        return NEVER
    lengths = [length / rise ** ((dims - 2) / dims) for length, rise in zip(PROBED_LENGTHS, rises, strict=True)]
    return round(lengths[-1]) if math.isclose(*lengths, rel_tol=1e-3) else None


def with_rotary_of(
    model: ModelConfig, rotary: Rotary | None, assumed: Iterable[str], source: str
) -> tuple[ModelConfig, list[str]]:
    """`model` with what was only assumed of its rotary tables as the script has it, and notices of what differs."""
    if rotary is None:
        return model, []
    found = {"rope_dims": (rotary.dims, model.rope_dims or model.head_dim, rotary.dims)}
    if rotary.base is not None:
        found["rope_base"] = (rotary.base, model.rope_base, round(rotary.base, 3))
    notices = []
    if rotary.original_length is None:
        notices.append(f"{source}: its rotary base rises with the length by another rule than jgolf's")
    else:
        found["rope_original_length"] = (rotary.original_length, model.rope_original_length, rotary.original_length)
    for name, (theirs, ours, value) in found.items():
        if math.isclose(theirs, ours, rel_tol=1e-4):
            continue
        if name in assumed:
            model = dataclasses.replace(model, **{name: value})
            notices.append(
                f"{source}: its rotary tables have {_told(name, value)}, taken for the assumed {shown(ours)}"
            )
        else:
            notices.append(f"{source}: its rotary tables have {_told(name, value)}; the model has {shown(ours)}")
    return model, notices


def _told(name: str, value: float) -> str:
    return f"{name} {shown(value)}" + (
        " (the base never rises)" if name == "rope_original_length" and value == NEVER else ""
    )
