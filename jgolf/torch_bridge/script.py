"""A user's training script, imported without being run, and its model with given settings and weights."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import torch

from jgolf.config import ModelConfig, resolved
from jgolf.errors import ConfigError, JgolfError, error_in_file
from jgolf.torch_bridge import main_function, names, source, stand_ins

NEUTRAL = (0, 0.0, False, "", None)  # values that leave a feature out
NOT_SCORED = ("mtp_num_heads", "dtg")  # a checkpoint that jgolf reads has no parameters of these
ONLY_AT_THE_START = ("tied_embed_init_std", "qk_gain_init")  # the weights are given
ANOTHER_NAME = ("embedding_dim",)  # of a setting that has one
VARIADIC, VARIADIC_NAMES = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_numbers = itertools.count()


class ScriptError(JgolfError):
    """A training script that cannot be imported, or does not have what the cross-check needs."""


@contextlib.contextmanager
def imported(path: str | Path, float32_only: bool, on_cpu: bool, compiled: bool = False) -> Iterator[ModuleType]:
    """Yields the script as a module; while the block lasts, the stand-ins it may need are installed.

    Its `main` is not run: the module's name is not "__main__". Environment variables, `sys.argv` and
    `sys.path` are as before afterwards, and nothing is written beside the script.

    Args:
      path: the script.
      float32_only: whether what it would cast to bfloat16 is to stay in float32.
      on_cpu: whether it is to run on the CPU even where there is a GPU.
      compiled: whether what it compiles is compiled; for a comparison of numbers it is not.

    Raises:
      ScriptError: there is no such file, it fails while it is imported, or it has no module GPT.
    """
    path = Path(path)
    if not path.is_file():
        raise ScriptError(f"{path}: no such file; --reference takes a Python training script")
    name = f"jgolf_reference_script_{next(_numbers)}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path, loader=loader))
    with (
        stand_ins.installed(_text(path), float32_only, on_cpu, compiled),
        stand_ins.modules_added({name: module}),
        mock.patch.object(sys, "argv", [str(path)]),
        mock.patch.object(sys, "path", [str(path.parent.resolve()), *sys.path]),
        mock.patch.object(sys, "dont_write_bytecode", True),
        _matmul_precision(),
    ):
        try:
            loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ScriptError(f"{path}: cannot be imported: {error_in_file(error, path)}") from None
        if float32_only:
            torch.set_float32_matmul_precision("highest")
        gpt = getattr(module, "GPT", None)
        if not (isinstance(gpt, type) and issubclass(gpt, torch.nn.Module)):
            raise ScriptError(f"{path}: expected a class GPT, a torch.nn.Module, found none")
        yield module


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # the import says what is wrong
        return ""


@contextlib.contextmanager
def _matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def build_model(
    module: ModuleType, path: str | Path, config: ModelConfig, params: Mapping[str, np.ndarray], device: str
) -> tuple[torch.nn.Module, list[str]]:
    """The script's GPT with these settings and weights, on `device`, in evaluation mode.

    Returns:
      The model, and a notice for each setting that its constructor does not take.

    Raises:
      ScriptError: the constructor needs an argument that nobody knows, or fails.
      ConfigError: a setting cannot be expressed in the reference's terms.
      ArtifactError: the model's parameters are others than those in `params`.
    """
    arguments, notices = constructor_arguments(module, path, config)
    try:
        model = module.GPT(**arguments)
    except Exception as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ScriptError(f"{path}: GPT({shown}) failed: {error_in_file(error, path)}") from None
    state = names.from_params(params)
    own = {name: value for name, value in names.canonical(dict(model.named_parameters()))[0].items() if value.numel()}
    names.check(
        {name: array.shape for name, array in state.items()},
        {name: tuple(value.shape) for name, value in own.items()},
        f"the checkpoint, for the GPT of {path}",
    )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(np.array(state[name])))
    if main_function.settings_parameter(module) and source.casts_model_to_bfloat16(module):
        _cast_to_bfloat16(model)
    return model.to(device).eval(), notices


def _cast_to_bfloat16(model: torch.nn.Module) -> None:
    """What is left of sending a model to bfloat16 once its parameters are restored but for the embedding.

    That are its buffers: rotary frequencies, whose rounding is part of the model whatever it computes in.
    """
    for value in model.buffers():
        if value.is_floating_point():
            rounded = value.detach().cpu().numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
            value.data.copy_(torch.from_numpy(rounded))
    for part in model.modules():
        if isinstance(part, torch.nn.Embedding):
            part.bfloat16()


def reference_settings(config: ModelConfig) -> dict[str, Any]:
    """The settings by the reference's names.

    Raises:
      ConfigError: XSA is on other layers than the last ones.
    """
    config = resolved(config)
    num_xsa, loop = len(config.xsa_layers), config.loop_layers
    if config.xsa_layers != tuple(range(config.num_layers - num_xsa, config.num_layers)):
        raise ConfigError(f"model.xsa_layers is {config.xsa_layers}: the PyTorch reference knows last layers only")
    multiple = config.mlp_multiple
    return {
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "model_dim": config.model_dim,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "mlp_mult": int(multiple) if multiple == int(multiple) else multiple,
        "tie_embeddings": config.tie_embeddings,
        "tied_embed_init_std": config.embedding_init_std,
        "logit_softcap": config.logit_softcap,
        "rope_base": config.rope_base,
        "qk_gain_init": config.q_gain,
        "mtp_num_heads": 0,
        "mtp_loss_weight": 0.0,
        "bigram_vocab_size": config.bigram_buckets,
        "bigram_dim": config.bigram_dim,
        "xsa_last_n": num_xsa,
        "rope_dims": config.rope_dims,
        "ln_scale": config.ln_scale,
        "dtg": False,
        "ve_enabled": bool(config.value_embedding_layers),
        "ve_dim": config.value_embedding_dim,
        "ve_layers": ",".join(map(str, config.value_embedding_layers)),
        "embedding_dim": config.model_dim,
        "smear_gate_enabled": config.gated_smear,
        "skip_gates_enabled": config.skip_gates,
        "sparse_attn_gate_enabled": config.attention_gate,
        "sparse_attn_gate_scale": config.attention_gate_scale if config.attention_gate else 0.0,
        "gate_window": config.gate_window if config.attention_gate or config.gated_smear else 0,
        "num_loops": config.num_loops if loop else 0,
        "loop_start": loop[0] if loop else 0,
        "loop_end": loop[-1] if loop else 0,
        "parallel_start_layer": config.lanes_from,
    }


def constructor_arguments(
    module: ModuleType, path: str | Path, config: ModelConfig
) -> tuple[dict[str, Any], list[str]]:
    """What to call the script's GPT with, by name, and a notice for each setting that it does not take.

    An argument that is not one of the reference's gets what the script itself gives, or the value of that name
    in the script's Hyperparameters, or keeps its default; an argument for all of them gets such an object.
    """
    settings = reference_settings(config)
    hyperparameters = getattr(module, "Hyperparameters", None)
    parameters = inspect.signature(module.GPT).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind not in (VARIADIC_NAMES, VARIADIC)]
    arguments = {parameter.name: settings[parameter.name] for parameter in named if parameter.name in settings}
    rest = {name: value for name, value in settings.items() if name not in arguments}
    if any(parameter.kind is VARIADIC_NAMES for parameter in parameters):
        arguments, rest = settings, {}
    by_main = main_function.arguments_of_model(module) or {}
    takes_all, unknown = main_function.settings_parameter(module), []
    for parameter in (parameter for parameter in named if parameter.name not in arguments):
        name, needed = parameter.name, parameter.default is parameter.empty
        if name == takes_all:
            arguments[name], rest = main_function.hyperparameters(module, settings), {}
        elif name in by_main and (needed or by_main[name] != parameter.default):
            arguments[name] = by_main[name]
        elif needed and hasattr(hyperparameters, name):
            arguments[name] = getattr(hyperparameters, name)
        elif needed:
            unknown.append(name)
    if unknown:
        raise ScriptError(
            f"{path}: GPT needs {', '.join(unknown)}, which the cross-check does not know; "
            f"it gives {', '.join(settings)}, and values of that name in a class Hyperparameters"
        )
    told = {name: value for name, value in rest.items() if name not in (*ONLY_AT_THE_START, *ANOTHER_NAME)}
    used = {name: value for name, value in told.items() if value not in NEUTRAL}
    notices = [f"{path}: GPT takes no {name}; the model has {value}" for name, value in used.items()]
    further = {name: by_main[name] for name in NOT_SCORED if by_main.get(name) not in NEUTRAL}
    notices += [f"{path}: its own {name} is {value}; both sides are without" for name, value in further.items()]
    return arguments, notices
