"""The network as pure functions over a flat dictionary of parameters, path → array.

Every function takes `looped`, whether the loop's layers run more than once (without such layers it changes
nothing), and `piece_length`: where it is not 0, attention stays within documents, and within pieces of that many
tokens of longer ones. `additions` are low-rank additions to the matrices, a pair of factors for each row of the batch
(`jgolf.model.lora`), and `rotary_length` the length by which the rotary base is chosen, 0 for the longest piece. With
`fp8` some products of the MLPs have operands of eight bits (`jgolf.model.kernels.fp8`).
"""

from __future__ import annotations

from functools import cache

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jgolf.config import ModelConfig, resolved
from jgolf.config.plan import make_plan
from jgolf.model import plain
from jgolf.model.context import make_context
from jgolf.model.kernels import door
from jgolf.model.kernels.attention import attention_name
from jgolf.model.kernels.loss import token_nll
from jgolf.model.lora import NO_ADDITIONS, Additions
from jgolf.model.network import GPT
from jgolf.model.plain import Observer, Params


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


def runs_as_written(config: ModelConfig) -> bool:
    """Whether the network runs as plain.py has it: where that is asked for, and where there is nothing to run kernels.

    It can then be differentiated any number of times, and in forward mode, too.
    """
    return config.kernels == "plain" or (config.kernels == "auto" and door.gpu() is None)


def description(config: ModelConfig, documents: bool) -> str:
    """Which forms of the operations the network runs in here, in a few words."""
    if runs_as_written(config):
        return "no kernels" if config.kernels == "plain" else "no kernels without an NVIDIA GPU"
    attention = attention_name(config.compute_dtype, config.head_dim, documents)
    return f"kernels of our own, attention by {attention}"


def hidden(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    looped: bool = True,
    piece_length: int = 0,
    rotary_length: int = 0,
    additions: Additions = NO_ADDITIONS,
    fp8: bool = False,
    last: int = 0,
    observe: Observer = lambda name, value: None,
) -> Float[Array, "B S D"]:
    """The normalised output of the last block.

    Args:
      config: the network.
      params: its parameters.
      tokens: ids.
      looped, piece_length, rotary_length, additions, fp8: see the module.
      last: positions at the end of each row that are asked for; 0 for all.
      observe: is given intermediate results by name, in order; the written network gives it what each kernel is
        multiplied with, too, by the kernel's path.
    """
    config = resolved(config)
    context = make_context(config, tokens, piece_length, rotary_length, additions, fp8)
    plan = make_plan(config, looped)
    last = last or tokens.shape[1]
    if runs_as_written(config):
        return plain.hidden(config, params, context, plan, observe, last)
    return merge(config, params).hidden(context, plan, observe, last)


def logits_of(config: ModelConfig, params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Float32 logits of normalised hidden states."""
    if runs_as_written(config):
        return plain.logits(config, params, hidden)
    return merge(config, params).logits(hidden)


def apply(config: ModelConfig, params: Params, tokens: Int[Array, "B T"], **how: bool | int) -> Float[Array, "B T V"]:
    """Float32 logits for the token after each position."""
    return logits_of(config, params, hidden(config, params, tokens, **how))


def token_losses(
    config: ModelConfig,
    params: Params,
    inputs: Int[Array, "B T"],
    targets: Int[Array, "B S *n"],
    positions: Int[Array, "B S"] | None = None,
    additions: Additions = NO_ADDITIONS,
    **how: bool | int,
) -> Float[Array, "B S *n"]:
    """Negative log likelihood in nats of S targets of each row, float32: the last ones, or those of `positions`.

    Where targets have a further axis, that of each of several tokens in a target's place. The head runs on these
    positions only, and the last layer too where they are the last.
    """
    if positions is None:
        x = hidden(config, params, inputs, last=targets.shape[1], additions=additions, **how)
    else:
        x = hidden(config, params, inputs, additions=additions, **how)
        x = jnp.take_along_axis(x, positions[..., None], axis=1, mode="clip")
    if runs_as_written(config):
        return token_nll(plain.logits(config, params, x, additions), targets)
    return merge(config, params).losses(x, targets, additions)


def loss(
    config: ModelConfig,
    params: Params,
    inputs: Int[Array, "B T"],
    targets: Int[Array, "B S"],
    additions: Additions = NO_ADDITIONS,
    **how: bool | int,
) -> Float[Array, ""]:
    """Mean of `token_losses` of the last targets of each row."""
    x = hidden(config, params, inputs, last=targets.shape[1], additions=additions, **how)
    if runs_as_written(config):
        return jnp.mean(token_nll(plain.logits(config, params, x, additions), targets))
    return merge(config, params).mean_loss(x, targets, additions)


def block_outputs(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], **how: bool | int
) -> dict[str, Array]:
    """Every intermediate result by name, in order: "embedding", "block 0", …, "logits"."""
    seen: dict[str, Array] = {}
    x = hidden(config, params, tokens, observe=seen.__setitem__, **how)
    seen["logits"] = logits_of(config, params, x)
    return {name: value for name, value in seen.items() if name not in params}
