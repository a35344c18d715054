"""The network as pure functions over a flat dictionary of parameters, path → array."""

from __future__ import annotations

from functools import cache

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jgolf.config import ModelConfig, resolved
from jgolf.model.network import GPT

Params = dict[str, Array]


@cache
def _definition(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State, dict[str, tuple]]:
    """The static half of the network, its abstract state, and path → key tuple of each parameter."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: GPT(resolved(config))))
    flat = flax.traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return graphdef, state, {"/".join(map(str, keys)): keys for keys in flat}


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by path."""
    _, state, keys = _definition(config)
    flat = flax.traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {path: tuple(flat[key].shape) for path, key in keys.items()}


def merge(config: ModelConfig, params: Params) -> GPT:
    """The module with these parameters, for use inside a traced function."""
    graphdef, state, keys = _definition(config)
    nested = flax.traverse_util.unflatten_dict({key: params[path] for path, key in keys.items()})
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, nested)
    return nnx.merge(graphdef, state)


def apply(config: ModelConfig, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Float32 logits for the token after each position."""
    return merge(config, params)(tokens)


def token_losses(
    config: ModelConfig, params: Params, inputs: Int[Array, "B T"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Negative log likelihood of every target in nats, float32."""
    model = merge(config, params)
    return model.losses(model.hidden(inputs), targets)


def loss(
    config: ModelConfig, params: Params, inputs: Int[Array, "B T"], targets: Int[Array, "B T"]
) -> Float[Array, ""]:
    """Mean negative log likelihood in nats."""
    return jnp.mean(token_losses(config, params, inputs, targets))


def block_outputs(config: ModelConfig, params: Params, tokens: Int[Array, "B T"]) -> dict[str, Array]:
    """Every intermediate result by name, in order: "embedding", "block 0", …, "logits"."""
    seen: dict[str, Array] = {}
    model = merge(config, params)
    seen_hidden = model.hidden(tokens, seen.__setitem__)
    seen["logits"] = model.logits(seen_hidden)
    return seen
