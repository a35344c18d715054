"""A transformer block on one residual stream, or between two lanes. Shapes as in plain.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jgolf.config import ModelConfig
from jgolf.model.attention import Attention, AttentionInput, Update
from jgolf.model.context import Context
from jgolf.model.kernels.mlp import mlp
from jgolf.model.kernels.residual import normalised_stream, normalised_sum
from jgolf.model.kernels.rowwise import Rows, rowwise
from jgolf.model.layers import Linear
from jgolf.model.lora import LowRank, added
from jgolf.model.norm import factored_norm, normalised

Row = Float[Array, "1 D"]


class Skip(NamedTuple):
    """An encoder's output, and how it is blended in."""

    stream: Array | None
    """None where that output is what the block goes on from."""
    weight: Row
    gate: Row | None
    """The share of the stream that it is blended into; None where it is added."""


class Inputs(NamedTuple):
    """What all blocks of a pass read."""

    context: Context
    x0: Float[Array, "B T D"]
    """The first block's input, handed on from block to block: each adds its part of the gradient to the others'."""
    value_embeddings: dict[int, Float[Array, "B T K*H"]]
    """Additions to attention's values, by layer."""
    additions: dict[str, LowRank]
    """Low-rank additions of the block that runs now, by kind."""


def mixed(x: Float[Array, "n D"], x0: Float[Array, "n D"], own: Row, first: Row) -> tuple[Array, ...]:
    """`normalised` of own · x + first · x0, per channel."""
    return normalised(own * x + first * x0)


def lane_mixed(x: Array, x0: Array, own: Row, first: Row) -> tuple[Array, ...]:
    """x as it is for the lane, and `factored_norm` of own · x + first · x0 for attention."""
    return x, *factored_norm(own * x + first * x0)


def lanes_updated(
    a: Array, m: Array, f: Array, h: Array, keep_a: Row, keep_m: Row, f_to_a: Row, f_to_m: Row, h_to_a: Row, h_to_m: Row
) -> tuple[Array, Array]:
    """Both lanes after attention's update f and the MLP's h."""
    return keep_a * a + f_to_a * f + h_to_a * h, keep_m * m + f_to_m * f + h_to_m * h


def beginnings(begin: Callable[..., tuple[Array, ...]]) -> dict[str, Callable[..., tuple[Array, ...]]]:
    """What a block may begin with: `begin`, which may keep x for a later skip, or may have a skip blended in before.

    That of a block's own stream reads it once.
    """

    def kept(x: Array, x0: Array, own: Row, first: Row) -> tuple[Array, ...]:
        return *begin(x, x0, own, first), x

    def added(x: Array, skip: Array, x0: Array, weight: Row, own: Row, first: Row) -> tuple[Array, ...]:
        return begin(x + weight * skip, x0, own, first)

    def gated(x: Array, skip: Array, x0: Array, weight: Row, gate: Row, own: Row, first: Row) -> tuple[Array, ...]:
        return begin(gate * x + (1 - gate) * weight * skip, x0, own, first)

    def own_added(x: Array, *others: Array) -> tuple[Array, ...]:
        return added(x, x, *others)

    def own_gated(x: Array, *others: Array) -> tuple[Array, ...]:
        return gated(x, x, *others)

    functions = {function.__name__: function for function in (kept, added, gated, own_added, own_gated)}
    for name, function in functions.items():
        function.__name__ = f"{begin.__name__}_{name}"  # in profiles
    return {"none": begin, **functions}


ONE_STREAM = beginnings(mixed)
TWO_LANES = beginnings(lane_mixed)
KEPT = 3
"""Number of the result of `kept` that is x."""


class MLP(nnx.Module):
    """scale · W_out(activation(W_in (norm · x))), the activation being the square of a leaky ReLU."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.up_proj = Linear(config.model_dim, config.mlp_dim)
        self.down_proj = Linear(config.mlp_dim, config.model_dim)

    def __call__(
        self,
        x: Array,
        norm: Float[Array, "B T 1"],
        scale: Float[Array, " D"],
        additions: dict[str, LowRank],
        fp8: bool,
    ) -> Float[Array, "B T D"]:
        """`norm`, a constant, is one number a position: it may as well multiply the product with the kernel."""
        kernels = self.up_proj.kernel[...], self.down_proj.kernel[...] * scale
        y = mlp(self.config.kernels, self.config.activation_slope, fp8, x, norm, *kernels)
        addition = added(additions, "mlp", x)
        return y if addition is None else y + (scale * norm * addition).astype(y.dtype)


class Block(nnx.Module):
    """Mixes in the first block's input, then adds attention and MLP, each with a scale per channel."""

    def __init__(self, config: ModelConfig, layer: int):
        self.config, self.layer = config, layer
        self.norm_scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        self.resid_mix = nnx.Param(jnp.zeros((2, config.model_dim)))
        self.attn_scale = nnx.Param(jnp.zeros((config.model_dim,)))
        self.mlp_scale = nnx.Param(jnp.zeros((config.model_dim,)))
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def on_stream(
        self, x: Rows, skip: Skip | None, inputs: Inputs, last: int, keeps: bool = False
    ) -> tuple[Rows, Inputs, Array | None]:
        """The stream after this block, at the `last` positions.

        Args:
          x: the stream before it.
          skip: blended in first.
          inputs: of the pass.
          last: positions asked for.
          keeps: whether x will be a later block's skip.

        Returns:
          Also the inputs of the next block, and x as one array, where it is to be kept.
        """
        x, read, inputs, kept = self._begin(ONE_STREAM, x, skip, inputs, keeps, second_is_first=True)
        x, read, norm = self._updated(x[:, -last:], self._attention(read, inputs, last))
        return (x, self._mlp(read, self.norm_scale * norm, inputs)), inputs, kept

    def on_lanes(
        self,
        lanes: tuple[Rows, Rows],
        skip: Skip | None,
        inputs: Inputs,
        last: int,
        keeps: bool,
        keep: Array,
        post: Array,
    ) -> tuple[tuple[Rows, Rows], Inputs, Array | None]:
        """`on_stream` for both lanes: what attention reads, which a skip is blended into, and what the MLP does.

        `keep` [2] is how much of each lane stays, `post` [2, 2] how much of each update (attention's, the MLP's) goes
        to each lane.
        """
        a, read, inputs, kept = self._begin(TWO_LANES, lanes[0], skip, inputs, keeps)
        f = self._attention(read, inputs, last).total()
        m, read, norm = normalised_stream(self.config.kernels, lanes[1])
        m = m[:, -last:]
        read, norm = read[:, -last:], self.norm_scale * norm[:, -last:]
        h = self._mlp(read, norm, inputs)
        weights = [jnp.broadcast_to(weight, (1, self.config.model_dim)) for weight in (*keep, *post.reshape(-1))]
        return rowwise(self.config.kernels, lanes_updated, [a[:, -last:], m, f, h], weights), inputs, kept

    def _begin(
        self, functions: dict, x: Rows, skip: Skip | None, inputs: Inputs, keeps: bool, **how: bool
    ) -> tuple[Array, AttentionInput, Inputs, Array | None]:
        """The lane's stream and what attention reads of it; the last two as `on_stream` returns them."""
        config, mix = self.config, self.resid_mix[...]
        blend, rows, whole = "kept" if keeps else "none", [x], [mix[:1], mix[1:]]
        if skip is not None:
            blend, weights = ("added", [skip.weight]) if skip.gate is None else ("gated", [skip.weight, skip.gate])
            blend, streams = (f"own_{blend}", []) if skip.stream is None else (blend, [skip.stream])
            rows, whole = rows + streams, weights + whole
        window = config.gate_window if config.attention_gate else 0
        x, read, norm, *more, x0 = rowwise(
            config.kernels,
            functions[blend],
            [*rows, inputs.x0],
            whole,
            window=window,
            handed_on=len(rows),
            input_result=KEPT if keeps else None,
            **how,
        )
        kept = more.pop(0) if keeps else None
        return x, AttentionInput(read, self.norm_scale * norm, *more), inputs._replace(x0=x0), kept

    def _updated(self, x: Float[Array, "B S D"], update: Update) -> tuple[Array, ...]:
        """`normalised` of the stream with attention's update."""
        if update.addition is not None:
            return normalised_stream(self.config.kernels, (x, update.total()))
        return normalised_sum(self.config.kernels, x, update.y, update.kernel)

    def _mlp(self, read: Array, norm: Array, inputs: Inputs) -> Float[Array, "B S D"]:
        return self.mlp(read, norm, self.mlp_scale[...], inputs.additions, inputs.context.fp8)

    def _attention(self, read: AttentionInput, inputs: Inputs, last: int) -> Update:
        value_embedding = inputs.value_embeddings.get(self.layer)
        return self.attn(inputs.context, read, self.attn_scale[...], value_embedding, inputs.additions, last)
