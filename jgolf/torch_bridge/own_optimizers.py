"""The optimizers of a training script, and jgolf's with the same settings."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch

from jgolf import config as configs
from jgolf.config import AdamWConfig, Config, OptimConfig
from jgolf.errors import error_in_file
from jgolf.torch_bridge import main_function, names
from jgolf.torch_bridge.script import ScriptError, reference_settings
from jgolf.torch_bridge.torch_model import TorchModel

HYPERPARAMETERS = {
    "muon.learning_rate": ("matrix_lr",),
    "muon.momentum": ("muon_momentum",),
    "muon.momentum_warmup_start": ("muon_momentum_warmup_start",),
    "muon.momentum_warmup_steps": ("muon_momentum_warmup_steps",),
    "muon.newton_schulz_steps": ("muon_backend_steps",),
    "muon.weight_decay": ("muon_wd", "weight_decay"),
    "muon.row_normalization": ("muon_row_normalize",),
    "adamw.scalar_learning_rate": ("scalar_lr",),
    "adamw.head_learning_rate": ("head_lr",),
    "adamw.beta1": ("beta1",),
    "adamw.beta2": ("beta2",),
    "adamw.epsilon": ("adam_eps",),
    "adamw.token_weight_decay": ("embed_wd", "adam_wd", "weight_decay"),
    "adamw.scalar_weight_decay": ("adam_wd", "weight_decay"),
    "grad_clip": ("grad_clip_norm",),
}
"""Setting of OptimConfig → names that scripts give it."""


class Update(NamedTuple):
    """How one parameter is updated.

    Attributes:
      kind: "Muon", "Adam", or the name of another class; "" for none.
      settings: learning rate, weight decay and the kind's own, by name.
    """

    kind: str
    settings: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        if not self.kind:
            return "not at all"
        return f"by {self.kind} ({', '.join(f'{name} {value:g}' for name, value in self.settings)})"


@dataclass(frozen=True)
class OwnOptimizers:
    """A script's optimizers.

    Attributes:
      optimizers: they hold the model's parameters.
      config: the settings with which jgolf's optimizer does the same.
      notices: where the settings come from, and which are others than the config's.
      problems: a line for each parameter that jgolf's optimizer updates otherwise whatever its settings.
    """

    optimizers: list[torch.optim.Optimizer]
    config: OptimConfig
    notices: list[str]
    problems: list[str]


def of_script(module: ModuleType, torch_model: TorchModel, config: Config) -> OwnOptimizers:
    """The optimizers that the script makes, with its own settings and groups.

    They are made by the script's own statements. Where those cannot be run without the rest of its `main`, they
    are made by jgolf's groups, with the settings in the script's Hyperparameters.

    Raises:
      ScriptError: the script has no class Muon, or not one that the settings suit.
    """
    _class_muon(module, torch_model)
    settings = _by_hyperparameters(module, config)
    made = main_function.optimizers(module, torch_model.model, reference_settings(config.model))
    if made is None:
        optimizers, problems = make_optimizers(module, torch_model, replace(config, optim=settings)), []
        notices = [
            f"{torch_model.script}: its optimizers cannot be made without running its main; taken by jgolf's groups, "
            "with the settings in its Hyperparameters"
        ]
    else:
        optimizers, notices = made, [f"{torch_model.script}: its own optimizers and groups"]
        updates = _updates(module, made, _named(torch_model.model))
        settings = _by_updates(settings, updates)
        rows = {
            bool(value) for one in made for group in one.param_groups for name, value in group.items() if "row" in name
        }
        if len(rows) == 1:
            settings = configs.replace_all(settings, {"muon.row_normalization": rows.pop()})
        problems = [
            f"{name}: the script updates it {update}, jgolf {expected}"
            for name, update in updates.items()
            if update != (expected := _expected(name, settings))
        ]
    ours, theirs = configs.leaves(config.optim), configs.leaves(settings)
    changed = [f"optim.{name} {theirs[name]:g} ({ours[name]:g})" for name in theirs if theirs[name] != ours[name]]
    if changed:
        notices.append(f"{torch_model.script}: other than in {config.name}, whose values follow: {', '.join(changed)}")
    return OwnOptimizers(optimizers, settings, notices, problems)


def make_optimizers(
    module: ModuleType, torch_model: TorchModel, config: Config, **adamw_options: bool
) -> list[torch.optim.Optimizer]:
    """Muon for its group of the rules, AdamW, with further options, for the others, by the config's settings.

    Raises:
      ScriptError: the script has no class Muon, or not one that the config's settings suit.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in _named(torch_model.model).items():
        groups.setdefault(names.group_of(name), []).append(parameter)
    adamw = config.optim.adamw
    make: Callable = partial(torch.optim.AdamW, betas=(adamw.beta1, adamw.beta2), eps=adamw.epsilon, **adamw_options)
    optimizers = [
        make(groups[group], lr=rate, weight_decay=decay)
        for group, (rate, decay) in _rates_and_decays(adamw).items()
        if group in groups
    ]
    return [*optimizers, _muon(module, torch_model, config, groups["muon"])]


def _muon(
    module: ModuleType, torch_model: TorchModel, config: Config, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    kind, muon = _class_muon(module, torch_model), config.optim.muon
    settings = {
        "lr": muon.learning_rate,
        "momentum": muon.momentum,
        "backend_steps": muon.newton_schulz_steps,
        "ns_steps": muon.newton_schulz_steps,
        "nesterov": True,
        "weight_decay": muon.weight_decay,
        "row_normalize": muon.row_normalization,
    }
    taken = inspect.signature(kind).parameters
    if "weight_decay" not in taken and muon.weight_decay:
        raise ScriptError(
            f"{torch_model.script}: its Muon takes no weight_decay, the config has {muon.weight_decay}; "
            "give a config whose optim.muon.weight_decay is 0"
        )
    try:
        return kind(parameters, **{name: value for name, value in settings.items() if name in taken})
    except Exception as error:
        raise ScriptError(f"{torch_model.script}: Muon(…) failed: {error_in_file(error, torch_model.script)}") from None


def _class_muon(module: ModuleType, torch_model: TorchModel) -> type[torch.optim.Optimizer]:
    """The script's Muon; ScriptError where it has none."""
    kind = main_function.muon_class(module)
    if kind is None:
        raise ScriptError(
            f"{torch_model.script}: has no class Muon, which training steps need (looked for an optimizer of "
            "that name, for one with muon in its name, and for a single one of its own)"
        )
    return kind


def _named(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that have values, by their plain names."""
    named = names.canonical(dict(model.named_parameters()))[0]
    return {name: parameter for name, parameter in named.items() if parameter.numel()}


def _by_hyperparameters(module: ModuleType, config: Config) -> OptimConfig:
    """The config's settings with those that the script's Hyperparameters and calls tell."""
    values = main_function.hyperparameters(module)
    token = "tied_embed_lr" if config.model.tie_embeddings else "embed_lr"
    found = {}
    for setting, candidates in {**HYPERPARAMETERS, "adamw.token_learning_rate": (token,)}.items():
        value = next((getattr(values, name) for name in candidates if hasattr(values, name)), None)
        if isinstance(value, (int, float)):
            found[setting] = type(configs.leaves(config.optim)[setting])(value)
    if "weight_decay" not in inspect.signature(main_function.muon_class(module)).parameters:
        found["muon.weight_decay"] = 0.0
    if (clip := main_function.gradient_clip(module)) is not None:
        found["grad_clip"] = clip
    return configs.replace_all(config.optim, found)


def _updates(
    module: ModuleType, optimizers: Iterable[torch.optim.Optimizer], named: Mapping[str, torch.nn.Parameter]
) -> dict[str, Update]:
    """How each parameter is updated, by its name."""
    found: dict[int, Update] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            update = _update(module, optimizer, group)
            found |= {id(parameter): update for parameter in group["params"]}
    return {name: found.get(id(parameter), Update("", ())) for name, parameter in named.items()}


def _update(module: ModuleType, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Update:
    if isinstance(optimizer, main_function.muon_class(module)):
        steps = group.get("backend_steps", group.get("ns_steps", 5))
        return _muon_update(group["lr"], group.get("weight_decay", 0.0), steps, bool(group.get("nesterov", True)))
    decay = group.get("weight_decay", 0.0)
    decoupled = not decay or isinstance(optimizer, torch.optim.AdamW)
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) and decoupled and not group.get("amsgrad"):
        return _adam_update(group["lr"], decay, *group["betas"], group["eps"])
    return Update(type(optimizer).__name__, (("rate", group["lr"]), ("decay", decay)))


def _muon_update(rate: float, decay: float, steps: int, nesterov: bool = True) -> Update:
    return Update("Muon", (("rate", rate), ("decay", decay), ("steps", steps), ("nesterov", nesterov)))


def _adam_update(rate: float, decay: float, beta1: float, beta2: float, epsilon: float) -> Update:
    settings = {"rate": rate, "decay": decay, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
    return Update("Adam", tuple(settings.items()))


def _by_updates(optim: OptimConfig, updates: Mapping[str, Update]) -> OptimConfig:
    """The settings with which most parameters of each of jgolf's groups are updated as they are there."""
    found: dict[str, Any] = {}

    def most(group: str, kind: str) -> dict[str, Any]:
        own = [update for name, update in updates.items() if names.group_of(name) == group and update.kind == kind]
        return dict(Counter(own).most_common(1)[0][0].settings) if own else {}

    if muon := most("muon", "Muon"):
        found |= {"muon.learning_rate": muon["rate"], "muon.weight_decay": muon["decay"]}
        found["muon.newton_schulz_steps"] = muon["steps"]
    for group in ("head", "token", "scalar"):  # the last: most parameters are of this group
        if adam := most(f"adamw_{group}", "Adam"):
            found |= {f"adamw.{group}_learning_rate": adam["rate"], f"adamw.{group}_weight_decay": adam["decay"]}
            found |= {f"adamw.{name}": adam[name] for name in ("beta1", "beta2", "epsilon")}
    return configs.replace_all(optim, found)


def _expected(name: str, optim: OptimConfig) -> Update:
    """How jgolf's optimizer updates the parameter of this name."""
    muon, adamw = optim.muon, optim.adamw
    group = names.group_of(name)
    if group == "muon":
        return _muon_update(muon.learning_rate, muon.weight_decay, muon.newton_schulz_steps)
    rate, decay = _rates_and_decays(adamw)[group]
    return _adam_update(rate, decay, adamw.beta1, adamw.beta2, adamw.epsilon)


def _rates_and_decays(adamw: AdamWConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each of AdamW's groups."""
    return {
        "adamw_token": (adamw.token_learning_rate, adamw.token_weight_decay),
        "adamw_scalar": (adamw.scalar_learning_rate, adamw.scalar_weight_decay),
        "adamw_head": (adamw.head_learning_rate, adamw.head_weight_decay),
    }
