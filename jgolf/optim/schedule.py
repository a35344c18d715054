"""The schedule: how much of a run is over, and what follows from it, the same on every device."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jgolf.config import AverageConfig, MuonConfig, TrainConfig


def fraction(train: TrainConfig, step: Int[Array, ""], elapsed_s: Float[Array, ""]) -> Float[Array, ""]:
    """How much of the run is over before the step that follows `step` finished ones, from 0 to 1.

    Of its steps or, under a time cap, of its time, whichever is more. It never falls while a run goes on.
    """
    over = jnp.asarray(step, jnp.float32) / max(train.steps, 1)
    if train.time_cap_s:
        over = jnp.maximum(over, jnp.asarray(elapsed_s, jnp.float32) / train.time_cap_s)
    return jnp.clip(over, 0.0, 1.0)


def learning_rate_multiplier(train: TrainConfig, step: Int[Array, ""], elapsed_s: Float[Array, ""]) -> Float[Array, ""]:
    """The multiplier of the step that follows `step` finished ones: 1, then linear to 0 over the warmdown.

    It does not fall below `train.learning_rate_floor`. Without a warmdown it stays 1.
    """
    by_steps = _warmdowns_left(train, step, elapsed_s)
    by_fraction = (1.0 - fraction(train, step, elapsed_s)) / jnp.maximum(train.warmdown_fraction, 1e-9)
    # Chosen by arrays, since the two lengths may be traced values.
    left = jnp.where(
        jnp.asarray(train.warmdown_fraction) > 0,
        by_fraction,
        jnp.where(jnp.asarray(train.warmdown_steps) > 0, by_steps, 1.0),
    )
    return jnp.maximum(jnp.clip(left, 0.0, 1.0), train.learning_rate_floor)


def loop_is_on(fraction: Float[Array, ""], loop_start_fraction: float) -> Bool[Array, ""]:
    """Whether a step trains the looped network: from the first one that begins at this fraction of the run or later.

    As the fraction, it is decided inside the step from one clock, so alike on all devices, and never taken back.
    """
    return fraction >= loop_start_fraction


def momentum_schedule(muon: MuonConfig) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Muon's momentum over the steps taken: linear from its start to its full value, then constant."""

    def momentum(count: Int[Array, ""]) -> Float[Array, ""]:
        if not muon.momentum_warmup_steps:
            return jnp.asarray(muon.momentum, jnp.float32)
        done = jnp.minimum(jnp.asarray(count, jnp.float32) / muon.momentum_warmup_steps, 1.0)
        return muon.momentum_warmup_start + (muon.momentum - muon.momentum_warmup_start) * done

    return momentum


def ema_decay(average: AverageConfig, step: Int[Array, ""]) -> float | Float[Array, ""]:
    """The decay β with which the average takes in the parameters after `step` finished steps: ema ← β·ema + (1 − β)·p.

    It is `average.ema_decay`. With an `average.ema_share` in its place, it is β_t = (1 − 1/t)^(γ + 1) after step t,
    so that the parameters of step s have a weight in proportion to s^γ, however many steps there are, and those from
    before the first step none (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
    2023, with γ from the share as `_ema_power` says).
    """
    if not is_on(average.ema_share):
        return average.ema_decay
    power = _ema_power(jnp.asarray(average.ema_share, jnp.float32))
    return jnp.exp((power + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))


def is_on(setting: float | Array) -> bool:
    """Whether a setting that 0 switches off is on; one that is a traced value is, or may as well be."""
    return isinstance(setting, jax.Array) or setting != 0


def _ema_power(share: Float[Array, ""]) -> Float[Array, ""]:
    """The γ ≥ 0 of weights s^γ whose standard deviation over s is `share` of the time so far, up to 1/√12, of γ = 0.

    share² = (γ + 1) / ((γ + 2)²(γ + 3)), so with x = γ + 2 and r = share⁻², x³ + x² − r·x + r = 0: γ is that of the
    largest of its three roots, 2·√((r + 1/3)/3)·cos(φ/3) − 1/3.
    """
    r = share**-2
    p, q = r + 1 / 3, 4 / 3 * r + 2 / 27
    angle = jnp.arccos(jnp.clip(-1.5 * q / p * jnp.sqrt(3 / p), -1.0, 1.0))
    return 2 * jnp.sqrt(p / 3) * jnp.cos(angle / 3) - 1 / 3 - 2


def _warmdowns_left(train: TrainConfig, step: Int[Array, ""], elapsed_s: Float[Array, ""]) -> Float[Array, ""]:
    """How many warmdowns of `train.warmdown_steps` steps would fit into what is left of the run.

    By steps, those that remain over those of the warmdown. Under a time cap: the time that remains over the
    time that the warmdown's steps take at the mean pace so far. With both, the lower of the two.
    """
    warmdown = jnp.maximum(jnp.asarray(train.warmdown_steps, jnp.float32), 1.0)
    step = jnp.asarray(step, jnp.float32)
    left = (train.steps - step) / warmdown
    if train.time_cap_s:
        mean_s = elapsed_s / jnp.maximum(step, 1.0)
        remaining_s = jnp.maximum(train.time_cap_s - elapsed_s, 0.0)
        left = jnp.minimum(left, remaining_s / jnp.maximum(warmdown * mean_s, 1e-9))
    return left
