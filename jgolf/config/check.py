"""Refuses settings that make no sense, before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jgolf.config.marks import bounds
from jgolf.config.plan import plan_problems
from jgolf.config.resolve import LAYER_SETTINGS, counted_from_0, layers_from_0
from jgolf.config.settings import Config, ModelConfig
from jgolf.config.store import leaves
from jgolf.errors import ConfigError
from jgolf.reading import excerpt

POLAR_EXPRESS_STEPS = 5
LARGEST_INTEGER = 1 << 31  # arrays on the device count in int32
MOST_BLOCKS = 1000  # that run one after the other; each is a part of the program, which takes a while to compile


def validate(config: Config) -> Config:
    """Returns `config`, or raises one ConfigError that lists every setting that makes no sense."""
    return _checked(config, "", lambda config: (*_model_problems(config.model), *_run_problems(config)))


def validate_model(model: ModelConfig) -> ModelConfig:
    """`validate` of the network's settings alone."""
    return _checked(model, "model.", _model_problems)


def _checked(settings: Any, prefix: str, combination_problems: Callable[[Any], Iterable[tuple[str, str]]]) -> Any:
    """Returns settings whose names begin with `prefix`, or raises a ConfigError."""
    values, own_bounds = leaves(settings, prefix), bounds(type(settings)).items()
    problems = [
        (prefix + name, bound.expected) for name, bound in own_bounds if not bound.allowed(values[prefix + name])
    ]
    wrong = {name for name, _ in problems} | {"train.seed"}
    problems += [
        (name, f"below {LARGEST_INTEGER:,}")
        for name, value in values.items()
        if name not in wrong and any(_is_too_large(one) for one in (value if isinstance(value, tuple) else (value,)))
    ]
    # Combinations are looked at only where each part makes sense.
    problems = problems or [*combination_problems(settings)]
    if problems:
        lines = (f"  {name} is {excerpt(values[name])}: expected {expected}" for name, expected in problems)
        raise ConfigError("settings that cannot be used:\n" + "\n".join(lines))
    return settings


def _is_too_large(value: Any) -> bool:
    return isinstance(value, int) and value >= LARGEST_INTEGER


def _model_problems(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Pairs of a setting's name and what it should have been, given the network's others."""
    if model.model_dim % model.num_heads:
        yield "model.num_heads", _divisor("model_dim", model.model_dim, model.num_heads)
    if model.num_heads % model.num_kv_heads:
        yield "model.num_kv_heads", _divisor("num_heads", model.num_heads, model.num_kv_heads)
    rotated = model.rope_dims or model.head_dim
    if rotated % 2 or rotated > model.head_dim:
        yield "model.rope_dims", f"an even number up to the head width {model.head_dim}, or 0 for all of an even width"
    if not 1 <= model.mlp_multiple * model.model_dim < LARGEST_INTEGER:  # before it is made an integer
        yield "model.mlp_multiple", f"a hidden width from 1 to below {LARGEST_INTEGER:,}"
    layers_exist = True
    for name in LAYER_SETTINGS:
        value = counted_from_0(getattr(model, name), model.num_layers)
        layers = value if isinstance(value, tuple) else (value,)
        if any(not 0 <= layer < model.num_layers for layer in layers) or list(layers) != sorted(set(layers)):
            layers_exist = False
            what = "different layers in rising order, each" if isinstance(value, tuple) else "a layer,"
            last = model.num_layers - 1
            yield f"model.{name}", f"{what} from 0 to {last}, or from the end, {-model.num_layers} to -1"
    if model.lanes_from < 0 and model.lanes_from + model.num_layers == 0:
        yield "model.lanes_from", "a layer after the first, or 0 for one lane throughout"
    if model.skip_gates and not model.unet_skips:
        yield "model.skip_gates", "False without model.unet_skips: there are no skips to gate"
    if (model.attention_gate or model.gated_smear) and model.gate_window > model.model_dim:
        yield "model.gate_window", f"at most model_dim {model.model_dim}"
    blocks = model.num_layers + model.num_loops * len(model.loop_layers)
    if blocks > MOST_BLOCKS:
        name = "num_layers" if model.num_layers > MOST_BLOCKS else "num_loops"
        yield f"model.{name}", f"at most {MOST_BLOCKS:,} blocks in a row, the loop's runs included; it makes {blocks:,}"
    elif layers_exist:
        yield from plan_problems(layers_from_0(model))


def _run_problems(config: Config) -> Iterator[tuple[str, str]]:
    """The same of the other settings."""
    train, average = config.train, config.average
    if train.warmdown_fraction and train.warmdown_steps:
        yield "train.warmdown_steps", f"0 (off) where train.warmdown_fraction, {train.warmdown_fraction}, is set"
    muon = config.optim.muon
    if muon.newton_schulz_coefficients == "polar_express" and muon.newton_schulz_steps > POLAR_EXPRESS_STEPS:
        yield "optim.muon.newton_schulz_steps", f"at most the {POLAR_EXPRESS_STEPS} that polar_express is made of"
    if average.ema_share and average.ema_decay:
        yield "average.ema_decay", f"0 (off) where average.ema_share, {average.ema_share}, is set"
    for kept, name in ((average.keeps_ema, "ema"), (average.swa_start, "swa")):
        if name in average.export and not kept:
            yield "average.export", f"an average that the run keeps; {name} is switched off"
    unit = train.num_ranks * train.accumulation * train.run_multiple
    if train.batch_tokens % unit:
        nearest = max(unit, round(train.batch_tokens / unit) * unit)
        yield (
            "train.batch_tokens",
            f"a multiple of num_ranks {train.num_ranks} × accumulation {train.accumulation}"
            f"{'' if train.documents else f' × seq_len {train.seq_len}'} = {unit}, such as {nearest}",
        )


def _divisor(of: str, number: int, near: int) -> str:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    divisors = [*small, *(number // divisor for divisor in small)]
    return f"a divisor of {of} {number}, such as {min(divisors, key=lambda divisor: abs(divisor - near))}"
