"""A transformer block on one residual stream, or between two lanes. Shapes as in plain.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jgolf.config import ModelConfig
from jgolf.model.attention import Attention
from jgolf.model.context import Context
from jgolf.model.kernels.mlp import mlp
from jgolf.model.kernels.rowwise import Rows, rowwise
from jgolf.model.layers import Linear
from jgolf.model.lora import LowRank, added
from jgolf.model.norm import factored_norm

Row = Float[Array, "1 D"]


class Skip(NamedTuple):
    """An encoder's output, and how it is blended in."""

    stream: Rows
    weight: Row
    gate: Row | None
    """The share of the stream that it is blended into; None where it is added."""


class Inputs(NamedTuple):
    """What all blocks of a pass read."""

    context: Context
    x0: Float[Array, "B T D"]
    """The first block's input."""
    value_embeddings: dict[int, Float[Array, "B T K*H"]]
    """Additions to attention's values, by layer."""
    additions: dict[str, LowRank]
    """Low-rank additions of the block that runs now, by kind."""


def normalised(x: Float[Array, "n D"]) -> tuple[Array, Array, Float[Array, "n 1"]]:
    """x for the residual stream, and `factored_norm` of it for a layer."""
    return x, *factored_norm(x)


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
    """What a block may begin with, by how a skip is blended into x before `begin`, or none is."""

    def added(x: Array, skip: Array, x0: Array, weight: Row, own: Row, first: Row) -> tuple[Array, ...]:
        return begin(x + weight * skip, x0, own, first)

    def gated(x: Array, skip: Array, x0: Array, weight: Row, gate: Row, own: Row, first: Row) -> tuple[Array, ...]:
        return begin(gate * x + (1 - gate) * weight * skip, x0, own, first)

    added.__name__, gated.__name__ = (f"{begin.__name__}_with_{skip}" for skip in ("skip", "gated_skip"))  # in profiles
    return {"none": begin, "added": added, "gated": gated}


ONE_STREAM = beginnings(mixed)
TWO_LANES = beginnings(lane_mixed)


class MLP(nnx.Module):
    """scale · W_out(activation(W_in (norm · x))), the activation being the square of a leaky ReLU."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.up_proj = Linear(config.model_dim, config.mlp_dim)
        self.down_proj = Linear(config.mlp_dim, config.model_dim)

    def __call__(
        self, x: Array, norm: Float[Array, "B T 1"], scale: Float[Array, " D"], additions: dict[str, LowRank]
    ) -> Float[Array, "B T D"]:
        """`norm`, a constant, is one number a position: it may as well multiply the product with the kernel."""
        kernels = self.up_proj.kernel[...], self.down_proj.kernel[...] * scale
        y = mlp(self.config.kernels, self.config.activation_slope, x, norm, *kernels)
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

    def on_stream(self, x: Rows, skip: Skip | None, inputs: Inputs, last: int) -> Rows:
        """The stream after this block, at the `last` positions."""
        x, read, norm = self._begin(ONE_STREAM, x, skip, inputs, second_is_first=True)
        x = x[:, -last:], self._attention(read, norm, inputs, last)
        x, read, norm = self._normalised(x)
        return x, self.mlp(read, self.norm_scale * norm, self.mlp_scale[...], inputs.additions)

    def on_lanes(
        self, lanes: tuple[Rows, Rows], skip: Skip | None, inputs: Inputs, keep: Array, post: Array, last: int
    ) -> tuple[Rows, Rows]:
        """Both lanes after this block, at the `last` positions.

        Args:
          lanes: what attention reads, and what the MLP does.
          skip: blended into attention's lane.
          inputs: of the pass.
          keep: [2], how much of each lane stays.
          post: [2, 2], how much of each update (attention's, the MLP's) goes to each lane.
          last: positions asked for.
        """
        a, read, norm = self._begin(TWO_LANES, lanes[0], skip, inputs)
        f = self._attention(read, norm, inputs, last)
        m, read, norm = self._normalised(lanes[1])
        m = m[:, -last:]
        read, norm = read[:, -last:], self.norm_scale * norm[:, -last:]
        h = self.mlp(read, norm, self.mlp_scale[...], inputs.additions)
        weights = [jnp.broadcast_to(weight, (1, self.config.model_dim)) for weight in (*keep, *post.reshape(-1))]
        return rowwise(self.config.kernels, lanes_updated, [a[:, -last:], m, f, h], weights)

    def _begin(self, functions: dict, x: Rows, skip: Skip | None, inputs: Inputs, **how: bool) -> tuple[Array, ...]:
        mix = self.resid_mix[...]
        rows, whole = [x, inputs.x0], [mix[:1], mix[1:]]
        if skip is None:
            return rowwise(self.config.kernels, functions["none"], rows, whole, **how)
        rows.insert(1, skip.stream)
        if skip.gate is None:
            return rowwise(self.config.kernels, functions["added"], rows, [skip.weight, *whole], **how)
        return rowwise(self.config.kernels, functions["gated"], rows, [skip.weight, skip.gate, *whole], **how)

    def _normalised(self, x: Rows) -> tuple[Array, ...]:
        return rowwise(self.config.kernels, normalised, [x], second_is_first=True, first_is_input=True)

    def _attention(self, read: Array, norm: Array, inputs: Inputs, last: int) -> Float[Array, "B S D"]:
        value_embedding, additions = inputs.value_embeddings.get(self.layer), inputs.additions
        norm = self.norm_scale * norm
        return self.attn(inputs.context, read, norm, self.attn_scale[...], value_embedding, additions, last)
