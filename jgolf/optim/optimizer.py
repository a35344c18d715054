"""The whole update: clipping, Muon and Adam for the groups of the rules, one learning-rate multiplier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jgolf.config import AdamWConfig, MuonConfig, OptimConfig
from jgolf.model.functional import Params
from jgolf.optim.muon import scale_by_muon
from jgolf.optim.schedule import momentum_schedule
from jgolf.rules import rule_of

CLIP_EPSILON = 1e-6


def make_optimizer(config: OptimConfig, axis_name: str | None = None) -> optax.GradientTransformationExtraArgs:
    """The recipe's optimizer over a flat parameter dictionary.

    Its `update(gradients, state, params, learning_rate_multiplier=1.0)` returns what is to be added to
    the parameters.

    Args:
      config: settings; their numbers, but for counts of steps, may be traced values.
      axis_name: mesh axis over which Muon's orthogonalization is shared, inside `shard_map`.
    """
    adamw = config.adamw
    muon = _muon(config.muon, axis_name)
    groups = {
        "muon": muon if config.matrices == "muon" else _adamw(adamw, adamw.matrix_learning_rate),
        "adamw_token": _adamw(adamw, adamw.token_learning_rate),
        "adamw_scalar": _adamw(adamw, adamw.scalar_learning_rate),
        "adam_head": _adamw(dataclasses.replace(adamw, weight_decay=0.0), adamw.head_learning_rate),
    }
    return optax.chain(clip_by_global_norm(config.grad_clip), by_group(groups), scale_by_multiplier())


def by_group(groups: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Each parameter by the transformation of its group; a group without parameters has no state."""

    def partitioned(params: Params) -> optax.GradientTransformation:
        labels = {path: rule_of(path).group for path in params}
        used = {name: own for name, own in groups.items() if name in labels.values()}
        return optax.partition(used, labels)

    def update(updates: Params, state: optax.OptState, params: Params | None = None):
        return partitioned(updates).update(updates, state, params)

    return optax.GradientTransformation(lambda params: partitioned(params).init(params), update)


def global_norm(tree: Params) -> Float[Array, ""]:
    """The norm of all values of a tree."""
    return optax.tree.norm(tree)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g ← g · min(1, max_norm / (‖g‖ + 1e-6)), as PyTorch clips; a max_norm of 0 changes nothing."""

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        factor = jnp.minimum(1.0, max_norm / (global_norm(updates) + CLIP_EPSILON))
        factor = jnp.where(max_norm > 0, factor, 1.0)
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_multiplier() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by the extra argument `learning_rate_multiplier`."""

    def update(updates, state, params=None, *, learning_rate_multiplier: float | Array = 1.0, **extra):
        return jax.tree.map(lambda u: u * learning_rate_multiplier, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _muon(config: MuonConfig, axis_name: str | None) -> optax.GradientTransformation:
    return optax.chain(
        scale_by_muon(
            momentum_schedule(config), config.newton_schulz_steps, config.newton_schulz_dtype, axis_name=axis_name
        ),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale(-config.learning_rate),
    )


def _adamw(config: AdamWConfig, learning_rate: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale(-learning_rate),
    )
