"""The schedule: one multiplier for all learning rates, and Muon's momentum."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgolf.config import MuonConfig, TrainConfig


def learning_rate_multiplier(train: TrainConfig, step: Int[Array, ""], elapsed_s: Float[Array, ""]) -> Float[Array, ""]:
    """The multiplier of the step that follows `step` finished ones, from 1 down to 0.

    By steps: 1 until `warmdown_steps` before the last, then linear to 0. Under a time cap: the same with
    the time that remains over the time that `warmdown_steps` steps take at the mean pace so far. With
    both, the lower of the two. Without a warmdown it is 1 throughout.
    """
    warmdown = jnp.maximum(jnp.asarray(train.warmdown_steps, jnp.float32), 1.0)
    step = jnp.asarray(step, jnp.float32)
    multiplier = jnp.clip((train.steps - step) / warmdown, 0.0, 1.0)
    if train.time_cap_s:
        mean_s = elapsed_s / jnp.maximum(step, 1.0)
        remaining_s = jnp.maximum(train.time_cap_s - elapsed_s, 0.0)
        multiplier = jnp.minimum(multiplier, remaining_s / jnp.maximum(warmdown * mean_s, 1e-9))
    return jnp.where(jnp.asarray(train.warmdown_steps) > 0, multiplier, 1.0)


def momentum_schedule(muon: MuonConfig) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Muon's momentum over the steps taken: linear from its start to its full value, then constant."""

    def momentum(count: Int[Array, ""]) -> Float[Array, ""]:
        if not muon.momentum_warmup_steps:
            return jnp.asarray(muon.momentum, jnp.float32)
        done = jnp.minimum(jnp.asarray(count, jnp.float32) / muon.momentum_warmup_steps, 1.0)
        return muon.momentum_warmup_start + (muon.momentum - muon.momentum_warmup_start) * done

    return momentum
