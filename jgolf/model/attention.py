"""Grouped-query causal self-attention of a block, with normalised queries and keys. Shapes as in plain.py."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jgolf.config import ModelConfig
from jgolf.model.context import Context
from jgolf.model.kernels.attention import causal_attention
from jgolf.model.kernels.heads import HeadShape, projected_heads, split_heads
from jgolf.model.kernels.products import matmul
from jgolf.model.kernels.rowwise import rowwise
from jgolf.model.layers import Linear
from jgolf.model.lora import LowRank, added_together


def without_own_value(y: Float[Array, "n G*H"], v: Float[Array, "n H"]) -> tuple[Float[Array, "n G*H"]]:
    """XSA: takes from each head's output its component along that position's own value, y − (y·v̂) v̂.

    A row holds the query heads that read one key/value head.
    """
    grouped, v = y.reshape(len(y), -1, v.shape[1]), v[:, None, :]
    along = jnp.sum(grouped * v, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(v * v, axis=-1, keepdims=True), 1e-24)
    return ((grouped - along * v).reshape(y.shape),)


def gated(y: Float[Array, "n G*H"], gate: Float[Array, "n G"]) -> tuple[Float[Array, "n G*H"]]:
    """Each head's output times its gate."""
    return ((y.reshape(*gate.shape, -1) * gate[:, :, None]).reshape(y.shape),)


def gated_without_own_value(
    y: Float[Array, "n G*H"], v: Float[Array, "n H"], gate: Float[Array, "n G"]
) -> tuple[Float[Array, "n G*H"]]:
    """`without_own_value`, then `gated`."""
    return gated(*without_own_value(y, v), gate)


class AttentionInput(NamedTuple):
    """norm · x, in its factors: the norm may as well multiply the product with the kernels."""

    x: Float[Array, "B T D"]
    norm: Float[Array, "B T 1"]
    window: Float[Array, "B T w"] | None = None
    """The columns of x that the gate reads, where there is one."""


class Update(NamedTuple):
    """What attention adds to a stream: y @ kernel, and a low-rank addition where there is one."""

    y: Float[Array, "B S N*H"]
    kernel: Float[Array, "N*H D"]
    addition: Float[Array, "B S D"] | None

    def total(self) -> Float[Array, "B S D"]:
        """As one array."""
        y = matmul(self.y, self.kernel)
        return y if self.addition is None else y + self.addition.astype(y.dtype)


class Attention(nnx.Module):
    """Attention of one block."""

    def __init__(self, config: ModelConfig, layer: int):
        self.config = config
        self.removes_own_value = layer in config.xsa_layers
        self.q_proj = Linear(config.model_dim, config.model_dim)
        self.k_proj = Linear(config.model_dim, config.kv_dim)
        self.v_proj = Linear(config.model_dim, config.kv_dim)
        self.out_proj = Linear(config.model_dim, config.model_dim)
        self.q_gain = nnx.Param(jnp.zeros((config.num_heads,))) if config.q_gain else None
        window = (config.num_heads, config.gate_window)
        self.gate = nnx.Param(jnp.zeros(window)) if config.attention_gate else None

    def __call__(
        self,
        context: Context,
        read: AttentionInput,
        scale: Float[Array, " D"],
        value_embedding: Float[Array, "B T K*H"] | None,
        additions: dict[str, LowRank],
        last: int,
    ) -> Update:
        """scale · Attention(norm · x) at the `last` positions; the scale is in the kernel, where it costs little."""
        config, (x, norm, window) = self.config, read
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # One product instead of three; a slice of the result costs less than reading x again.
        kernel = jnp.concatenate([p.kernel[...] for p in projections], axis=1)
        gain = jnp.ones(config.num_heads) if self.q_gain is None else self.q_gain[...]
        shape = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        more_of_heads = norm, gain, context.cos, context.sin, 2 if self.removes_own_value else 1
        # Linear in x, like the product, so norm multiplies them as well, afterwards.
        more = added_together(additions, "qkvo", x)
        if more.keys() & set("qkv"):
            widths = zip("qkv", (p.kernel.shape[1] for p in projections), strict=True)
            rest = {part: jnp.zeros((*x.shape[:2], width), x.dtype) for part, width in widths}
            qkv = matmul(x, kernel) + jnp.concatenate([more.get(part, rest[part]) for part in "qkv"], axis=2)
            q, k, *values = split_heads(config.kernels, shape, qkv, *more_of_heads)
        else:
            q, k, *values = projected_heads(config.kernels, shape, x, kernel, *more_of_heads)
        if value_embedding is not None:
            values = [v + value_embedding.reshape(v.shape) for v in values]
        documents = context.segments, context.longest_piece
        y = causal_attention(config.kernels, q[:, -last:], k, values[0], *documents, config.repeatable)
        y = self._after_heads(y, values[-1][:, -last:], None if window is None else (norm * window)[:, -last:])
        addition = (scale * norm * more["o"])[:, -last:] if "o" in more else None
        return Update(y.reshape(*y.shape[:2], -1), self.out_proj.kernel[...] * scale, addition)

    def _after_heads(self, y: Array, v: Array, window: Array | None) -> Float[Array, "B S K G*H"]:
        """The heads' outputs without their own values and gated, as far as either is asked for."""
        by_group = (*v.shape[:3], -1)
        function, rows = None, [y.reshape(by_group)]
        if self.removes_own_value:
            function = without_own_value
            rows.append(v)
        if self.gate is not None:
            function = gated_without_own_value if self.removes_own_value else gated
            rows.append(self._gates(window.astype(y.dtype)).reshape(by_group))
        return rows[0] if function is None else rowwise(self.config.kernels, function, rows)[0]

    def _gates(self, window: Float[Array, "B S w"]) -> Float[Array, "B S N"]:
        return jax.nn.sigmoid(self.config.attention_gate_scale * matmul(window, self.gate[...].T))
