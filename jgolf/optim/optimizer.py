"""The whole update: clipping, Muon and AdamW by the rules, one learning-rate multiplier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jgolf.config import AdamWConfig, MuonConfig, OptimConfig
from jgolf.model.functional import Params
from jgolf.optim.muon import COEFFICIENTS, look_ahead, normalize_neurons, scale_by_muon
from jgolf.optim.schedule import is_on, momentum_schedule
from jgolf.rules import rule_of

CLIP_EPSILON = 1e-6
SMALL = 16_384
"""Values of an array up to which reading it takes a GPU no longer than starting a kernel for it."""


class UpdateRule(NamedTuple):
    """What updates a parameter: its group, and multipliers of the group's learning rate and weight decay."""

    group: str
    learning_rate: float = 1.0
    weight_decay: float = 1.0


def update_rule(path: str) -> UpdateRule:
    """The rules' word for a parameter path."""
    rule = rule_of(path)
    return UpdateRule(rule.group, rule.learning_rate, rule.weight_decay)


def make_optimizer(
    config: OptimConfig, axis_name: str | None = None, rule: Callable[[str], UpdateRule] = update_rule
) -> optax.GradientTransformationExtraArgs:
    """The recipe's optimizer over a flat parameter dictionary.

    Its `update(gradients, state, params, learning_rate_multiplier=1.0)` returns what is to be added to
    the parameters. Gradients that are clipped rank by rank come clipped; others are clipped here.

    Args:
      config: settings; their numbers, but for counts of steps, may be traced values.
      axis_name: mesh axis over which Muon's orthogonalization is shared, inside `shard_map`.
      rule: what updates the parameter of a path.
    """
    muon, adamw = config.muon, config.adamw

    def group(direction: optax.GradientTransformation, learning_rate: float, weight_decay: float):
        return optax.chain(
            direction,
            add_decayed_weights(lambda path: weight_decay * rule(path).weight_decay, config.cautious_decay),
            scale(lambda path: -learning_rate * rule(path).learning_rate),
        )

    if config.matrices == "muon":
        matrices = group(_muon(muon, axis_name), muon.learning_rate, muon.weight_decay)
    else:
        matrices = group(_adam(adamw), adamw.matrix_learning_rate, adamw.matrix_weight_decay)
    groups = {
        "muon": matrices,
        "adamw_token": group(_adam(adamw), adamw.token_learning_rate, adamw.token_weight_decay),
        "adamw_scalar": group(_adam(adamw), adamw.scalar_learning_rate, adamw.scalar_weight_decay),
        "adamw_head": group(_adam(adamw), adamw.head_learning_rate, adamw.head_weight_decay),
    }
    clipping = clip_by_global_norm(config.grad_clip) if config.clip == "mean" else optax.identity()
    updates = [clipping, partition(groups, lambda path: rule(path).group), scale_by_multiplier()]
    if config.matrices == "muon" and is_on(muon.look_ahead):
        ahead = dict.fromkeys(groups, optax.identity()) | {"muon": look_ahead(muon.look_ahead, muon.look_ahead_decay)}
        updates.append(partition(ahead, lambda path: rule(path).group))
    return optax.chain(*updates)


def global_norm(tree: Params) -> Float[Array, ""]:
    """The norm of all values of a tree."""
    leaves = jax.tree.leaves(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size <= SMALL]  # as one array
    large = [leaf for leaf in leaves if leaf.size > SMALL]
    return optax.tree.norm([*large, jnp.concatenate(small)] if small else large)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`clipped` as a transform."""

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        return clipped(updates, max_norm)[0], state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clipped(tree: Params, max_norm: float) -> tuple[Params, Float[Array, ""]]:
    """g ← g · min(1, max_norm / (‖g‖ + 1e-6)), as PyTorch clips, and ‖g‖; a max_norm of 0 changes nothing."""
    norm = global_norm(tree)
    factor = jnp.minimum(1.0, max_norm / (norm + CLIP_EPSILON))
    factor = jnp.where(max_norm > 0, factor, 1.0)
    return jax.tree.map(lambda g: _scaled(factor, g), tree), norm


def partition(
    groups: Mapping[str, optax.GradientTransformation], group_of: Callable[[str], str]
) -> optax.GradientTransformationExtraArgs:
    """`optax.partition` of a flat dictionary by path, without a state for groups that have no parameter."""

    def of(tree: Params) -> optax.GradientTransformationExtraArgs:
        labels = {path: group_of(path) for path in tree}
        return optax.partition({group: groups[group] for group in sorted(set(labels.values()))}, labels)

    def update(updates, state, params=None, **extra):
        return of(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: of(params).init(params), update)


def add_decayed_weights(
    weight_decay: Callable[[str], float | Array], cautious: bool = False
) -> optax.GradientTransformation:
    """u ← u + λ·p, with the weight decay λ of each path.

    `cautious` decays only where u·p ≥ 0, where subtracting u brings a weight towards 0, too (Chen et al., "Cautious
    Weight Decay", 2025).
    """

    def decayed(path: str, u: Array, p: Array) -> Array:
        decay = weight_decay(path) * p
        return (u + (jnp.where(u * p >= 0, decay, 0.0) if cautious else decay)).astype(u.dtype)

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params):
        return _by_path(decayed, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale(factor: Callable[[str], float | Array]) -> optax.GradientTransformation:
    """u ← c·u, with the factor c of each path."""

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        return _by_path(lambda path, u: _scaled(factor(path), u), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_multiplier() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by the extra argument `learning_rate_multiplier`."""

    def update(updates, state, params=None, *, learning_rate_multiplier: float | Array = 1.0, **extra):
        return jax.tree.map(lambda u: _scaled(learning_rate_multiplier, u), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scaled(factor: float | Array, u: Array) -> Array:
    """The product, in u's type also where the factor is an array of another."""
    return (factor * u).astype(u.dtype)


def _by_path(function: Callable[..., Array], *trees: optax.Updates) -> optax.Updates:
    """Maps over flat dictionaries, with each value's path; what a partition has masked stays as it is."""
    return jax.tree_util.tree_map_with_path(lambda keys, *values: function(keys[0].key, *values), *trees)


def _muon(config: MuonConfig, axis_name: str | None) -> optax.GradientTransformation:
    direction = scale_by_muon(
        momentum_schedule(config),
        config.newton_schulz_steps,
        config.newton_schulz_dtype,
        axis_name,
        COEFFICIENTS[config.newton_schulz_coefficients],
        config.row_normalization,
    )
    return optax.chain(direction, normalize_neurons(config.neuron_decay)) if config.neuron_normalization else direction


def _adam(config: AdamWConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
