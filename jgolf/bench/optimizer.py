"""`jgolf bench optimizer`: clipping, Muon, AdamW and EMA, together and each alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jgolf import compiling
from jgolf.bench.flops import newton_schulz_flops
from jgolf.bench.report import Figure, Report, beside, command_line, publish, timed
from jgolf.bench.running import AVERAGED_STEP, bench_config, prepare_reference, random_params
from jgolf.bench.timing import Timing, measure
from jgolf.config import Config, MuonConfig, OptimConfig
from jgolf.model.functional import Params, parameter_shapes
from jgolf.optim.muon import COEFFICIENTS, newton_schulz
from jgolf.optim.optimizer import clip_by_global_norm, make_optimizer
from jgolf.optim.schedule import ema_decay
from jgolf.rules import rule_of

WHOLE_UPDATE = "clipping + optimizers + EMA"


def optimizer(
    config: str = "pr592",
    runs: int = 10,
    reference: Path | None = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Time an optimizer step on given gradients, and its parts.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      runs: How often to measure.
      reference: A PyTorch training script to run beside it.
      json: Print JSON instead of a table.
    """
    prepare_reference(reference)
    command = command_line("optimizer", config=config, runs=runs, reference=reference)
    publish(measure_optimizer(bench_config(config), runs, command, reference), json)


def measure_optimizer(config: Config, runs: int, command: str, reference: Path | None = None) -> Report:
    """Times the update of all parameters, and its parts, each a program of its own."""
    params = jax.device_put(random_params(config.model))
    theirs = _measure_reference(config, params, runs, reference) if reference else {}
    decay = ema_decay(config.average, AVERAGED_STEP)
    parts = {
        WHOLE_UPDATE: measure_update(config, params, runs),
        "clipping": measure(_fixed(_clip(config.optim), gradients_like(params)), runs),
        "Muon": _measure_group(config.optim, params, True, runs),
        "AdamW": _measure_group(config.optim, params, False, runs),
        "EMA": measure(_Flowing(partial(moving_average, decay), _copy(params), params), runs),
    }
    figures = [timed(name, timing) for name, timing in parts.items()]
    shapes = parameter_shapes(config.model)
    matrices = Counter(shape for path, shape in shapes.items() if rule_of(path).group == "muon")
    figures += [
        _newton_schulz_figure(config.optim.muon, count, shape, runs) for shape, count in sorted(matrices.items())
    ]
    return Report("optimizer", f"{config.name}: one optimizer step", command, beside(figures, theirs))


def _measure_reference(config: Config, params: Params, runs: int, script: Path) -> dict[str, float]:
    from jgolf.bench.reference import opened  # PyTorch is optional

    with opened(script, config, params) as theirs:
        return {WHOLE_UPDATE: theirs.measure_update(runs)}


def measure_update(config: Config, params: Params, runs: int) -> Timing:
    """Times all of a training step that follows its gradients."""
    state = make_optimizer(config.optim).init(params)
    average = _copy(params) if config.average.keeps_ema else {}
    return measure(_Flowing(partial(update, config), (_copy(params), state, average), gradients_like(params)), runs)


def update(
    config: Config, flowing: tuple[Params, optax.OptState, Params], gradients: Params
) -> tuple[Params, optax.OptState, Params]:
    """Parameters, optimizer state and EMA after a step with these gradients at the full learning rate."""
    params, state, average = flowing
    updates, state = make_optimizer(config.optim).update(gradients, state, params, learning_rate_multiplier=1.0)
    params = optax.apply_updates(params, updates)
    return params, state, moving_average(ema_decay(config.average, AVERAGED_STEP), average, params)


def moving_average(decay: float, average: Params, params: Params) -> Params:
    """One step of the exponential moving average."""
    return {path: decay * value + (1 - decay) * params[path] for path, value in average.items()}


def gradients_like(params: Params) -> Params:
    """Random gradients, not zeros."""
    rng = np.random.default_rng(0)
    return {path: jnp.asarray(0.01 * rng.standard_normal(value.shape), value.dtype) for path, value in params.items()}


class _Flowing:
    """Calls of a function whose result is its next first argument, which is donated."""

    def __init__(self, function: Callable, flowing, fixed):
        self._function = jax.jit(function, donate_argnums=0, compiler_options=compiling.options())
        self._flowing, self._fixed = flowing, fixed

    def __call__(self):
        self._flowing = self._function(self._flowing, self._fixed)
        return self._flowing


def _fixed(function: Callable, *arguments) -> Callable:
    """Calls of a function with the same arguments."""
    return partial(jax.jit(function, compiler_options=compiling.options()), *arguments)


def _copy(params: Params) -> Params:
    return {path: jnp.array(value) for path, value in params.items()}


def _clip(config: OptimConfig) -> Callable[[Params], Params]:
    return lambda gradients: clip_by_global_norm(config.grad_clip).update(gradients, optax.EmptyState())[0]


def _measure_group(config: OptimConfig, params: Params, matrices: bool, runs: int) -> Timing:
    """Times the update of Muon's parameters or of all others, without clipping."""
    config = replace(config, grad_clip=0.0, matrices="muon")
    own = {path: value for path, value in params.items() if (rule_of(path).group == "muon") == matrices}

    def step(flowing, gradients):
        params, state = flowing
        updates, state = make_optimizer(config).update(gradients, state, params, learning_rate_multiplier=1.0)
        return optax.apply_updates(params, updates), state

    return measure(_Flowing(step, (_copy(own), make_optimizer(config).init(own)), gradients_like(own)), runs)


def _newton_schulz_figure(muon: MuonConfig, count: int, shape: tuple[int, int], runs: int) -> Figure:
    steps, coefficients = muon.newton_schulz_steps, COEFFICIENTS[muon.newton_schulz_coefficients]
    matrices = jax.random.normal(jax.random.key(0), (count, *shape))
    run = _fixed(lambda matrices: newton_schulz(matrices, steps, muon.newton_schulz_dtype, coefficients), matrices)
    timing = measure(run, runs)
    return timed(f"Newton-Schulz, {count} × {shape}", timing, newton_schulz_flops(count, *shape, steps))
