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

import ml_dtypes
import numpy as np
import torch

from jgolf.config import ModelConfig
from jgolf.errors import ConfigError
from jgolf.torch_bridge import config_option, main_function, script
from jgolf.torch_bridge.config_option import FINAL_LANE, LAST_LAYERS, LOOP, SWITCH, Given
from jgolf.torch_bridge.reference_config import shown
from jgolf.torch_bridge.torch_model import TorchModel

LEFT_OUT = {"xsa_last_n": 0, "rope_dims": 0, "ln_scale": False}
"""What a script that does not know a setting is without."""
TOGETHER = ((SWITCH, "ve_layers"), (*LOOP, "num_loops"))
"""Settings that make sense together only."""
UNKNOWN_HERE = {"rope_yarn": False, FINAL_LANE: "mean"}
"""Settings of which jgolf's network knows one value only."""
NAMES = (
    *LEFT_OUT,
    "rope_base",
    "logit_softcap",
    "num_heads",
    "sparse_attn_gate_scale",
    "parallel_start_layer",
    *UNKNOWN_HERE,
    *(name for names in TOGETHER for name in names),
)
NEVER = 0
"""The `rope_original_length` of a base that does not rise."""
UNKNOWN = -1
FREQUENCY_DTYPES = ("float32", "bfloat16")
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
        seq_len = getattr(main_function.hyperparameters(module), "train_seq_len", 0)
    together = {name for names in TOGETHER for name in names}
    settings: dict[str, Any] = {}
    for names in (*((name,) for name in values if name not in together), *TOGETHER):
        settings |= _translated({name: values[name] for name in names if name in values}, str(reference))
    return Given(str(reference), settings, seq_len=seq_len if isinstance(seq_len, int) else 0)


def _translated(values: dict[str, Any], source: str) -> dict[str, Any]:
    try:
        return config_option.translate(values, source)
    except ConfigError:  # a value of a kind that jgolf's setting cannot have: the numbers will show
        return {}


def _reference_values(module: ModuleType) -> dict[str, Any]:
    arguments, values = main_function.arguments_of_model(module) or {}, main_function.hyperparameters(module)
    parameters = inspect.signature(module.GPT).parameters
    takes_all = main_function.settings_parameter(module) is not None or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )
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


def unknown_here(module: ModuleType, source: str) -> list[str]:
    """A notice for each setting of the script's whose value jgolf's network cannot have."""
    values = main_function.hyperparameters(module)
    found = {name: getattr(values, name) for name in UNKNOWN_HERE if hasattr(values, name)}
    return [
        f"{source}: its own {name} is {shown(value)}, which jgolf's network does not have; it has "
        f"{shown(UNKNOWN_HERE[name])}"
        for name, value in found.items()
        if value != UNKNOWN_HERE[name]
    ]


def differences(own: Given, model: ModelConfig, assumed: Iterable[str]) -> list[str]:
    """A notice for each setting that `model` has by its file or by `--config`, and the script otherwise."""
    settings = {name: value for name, value in own.settings.items() if name not in ("num_heads", LAST_LAYERS)}
    if LAST_LAYERS in own.settings:
        first = max(0, model.num_layers - own.settings[LAST_LAYERS])
        settings["xsa_layers"] = tuple(range(first, model.num_layers))
    if not model.attention_gate:
        settings.pop("attention_gate_scale", None)
    if not model.loop_layers and not settings.get("loop_layers"):
        settings.pop("num_loops", None)
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
      frequencies: of a half of the rotated dimensions, for short sequences.
      original_length: past which the base rises as jgolf has it; NEVER where it does not rise, UNKNOWN where that
        cannot be told, None where it rises by another rule.
    """

    frequencies: np.ndarray
    original_length: int | None

    @property
    def dims(self) -> int:
        """Dimensions of a head that are rotated."""
        return 2 * len(self.frequencies)

    @property
    def base(self) -> float | None:
        """base^(−2i/d) are the frequencies, and the last one tells the base best; None where there is a single one."""
        last = len(self.frequencies) - 1
        return float(self.frequencies[-1] ** (-self.dims / (2 * last))) if last else None

    def has(self, base: float, dtype: str) -> bool:
        """Whether the frequencies are those of `base`, rounded to `dtype`."""
        exact = base ** (-2 * np.arange(len(self.frequencies)) / self.dims)
        return np.allclose(_rounded(exact, dtype), self.frequencies, rtol=5e-5, atol=0)

    def base_and_dtype(self, base: float, dtype: str) -> tuple[float, str]:
        """These two where the frequencies are theirs; otherwise those that they are of."""
        for other in (dtype, *FREQUENCY_DTYPES):
            if self.base is None or self.has(base, other):
                return base, other
        is_rounded = np.allclose(_rounded(self.frequencies, "bfloat16"), self.frequencies, rtol=1e-6, atol=0)
        return round(self.base, 3), FREQUENCY_DTYPES[is_rounded]


def _rounded(frequencies: np.ndarray, dtype: str) -> np.ndarray:
    return frequencies.astype(np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)


def rotary_of(model: TorchModel) -> Rotary | None:
    """Reads them off the tables themselves; None where the model has no module for them that gives any."""
    parts = (part for part in model.model.modules() if "rotary" in type(part).__name__.lower())
    rotary = next(parts, None)
    if rotary is None:
        return _of_buffer(model)
    seen: list[tuple] = []
    hook = rotary.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    try:
        model.logits(np.zeros((1, 2), np.int32))
        rest = [torch.float32 if isinstance(value, torch.dtype) else value for value in seen[0][1:]]
        short, *long = (_frequencies(rotary(length, *rest)) for length in (seen[0][0], *PROBED_LENGTHS))
        return Rotary(short, _original_length(short, long))
    except Exception:  # tables of another kind
        return _of_buffer(model)
    finally:
        hook.remove()


def _of_buffer(model: TorchModel) -> Rotary | None:
    """By the frequencies that a model keeps under the usual name."""
    kept = [value for name, value in model.model.named_buffers() if name.rpartition(".")[2] == "inv_freq"]
    return Rotary(kept[0].detach().double().cpu().flatten().numpy(), UNKNOWN) if kept else None


def _frequencies(tables: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    """Of cosines and sines [..., T, frequencies]: the angles of the second position."""
    cosines, sines = (table.detach().double().cpu().squeeze().numpy() for table in tables)
    angles = np.arctan2(sines.reshape(len(sines), -1)[1], cosines.reshape(len(cosines), -1)[1])
    half = len(angles) // 2
    return angles[:half] if half and np.array_equal(angles[:half], angles[half:]) else angles


def _original_length(short: np.ndarray, long: list[np.ndarray]) -> int | None:
    dims, last = 2 * len(short), len(short) - 1
    if not last:
        return NEVER
    rises = [float((frequencies[-1] / short[-1]) ** (-dims / (2 * last))) for frequencies in long]
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
    base, dtype = rotary.base_and_dtype(model.rope_base, model.rope_frequency_dtype)
    found = {"rope_dims": rotary.dims, "rope_base": base, "rope_frequency_dtype": dtype}
    ours = {"rope_dims": model.rope_dims or model.head_dim}
    notices = []
    if rotary.original_length is None:
        notices.append(f"{source}: its rotary base rises with the length by another rule than jgolf's")
    elif rotary.original_length != UNKNOWN:
        found["rope_original_length"] = rotary.original_length
    for name, theirs in found.items():
        here = ours.get(name, getattr(model, name))
        if theirs == here:
            continue
        if name in assumed:
            model = dataclasses.replace(model, **{name: theirs})
            notices.append(
                f"{source}: its rotary tables have {_told(name, theirs)}, taken for the assumed {shown(here)}"
            )
        else:
            notices.append(f"{source}: its rotary tables have {_told(name, theirs)}; the model has {shown(here)}")
    return model, notices


def _told(name: str, value: Any) -> str:
    never = name == "rope_original_length" and value == NEVER
    return f"{name} {shown(value)}" + (" (the base never rises)" if never else "")
