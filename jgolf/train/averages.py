"""The weights that a run can export: raw, EMA, SWA, or the mean of both averages."""

from __future__ import annotations

import jax.numpy as jnp

from jgolf.config import Average
from jgolf.errors import ConfigError
from jgolf.model.functional import Params
from jgolf.train.step import TrainState


def averaged_params(state: TrainState, average: Average) -> Params:
    """The parameters that `average` names.

    Raises:
      ConfigError: the run keeps no such average, or SWA has not begun.
    """
    if average == "raw":
        return state.params
    if average == "ema":
        if not state.ema:
            raise ConfigError(
                "average ema: the run kept none (average.ema_decay and average.ema_share are 0); use raw or swa"
            )
        return state.ema
    if average == "swa":
        if not state.swa_sum or not int(state.swa_count):
            raise ConfigError(
                f"average swa: no parameters were summed up to step {int(state.step)} (the learning-rate multiplier "
                "never fell below average.swa_start at a multiple of average.swa_every); use raw or ema"
            )
        return {path: value / state.swa_count for path, value in state.swa_sum.items()}
    ema, swa = averaged_params(state, "ema"), averaged_params(state, "swa")
    return {path: jnp.asarray(ema[path] + swa[path]) / 2 for path in ema}
