"""Causal attention: kernels, rotary positions and XSA. Shapes as in layers.py."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jgolf.config import ModelConfig
from jgolf.errors import ConfigError
from jgolf.model import heads
from jgolf.model.gradients import matmul
from jgolf.model.kernels import rowwise
from jgolf.model.layers import RMS_EPSILON, Linear, rms_norm

Kernel = Literal["cudnn", "xla"]


def attention_kernel(config: ModelConfig) -> Kernel:
    """The kernel that `config.attention` stands for on this machine.

    Raises:
      ConfigError: cuDNN was asked for where it cannot run.
    """
    nvidia = jax.default_backend() == "gpu" and "nvidia" in jax.devices()[0].device_kind.lower()
    usable = nvidia and config.compute_dtype == "bfloat16" and config.head_dim % 8 == 0 and config.head_dim <= 128
    if config.attention == "cudnn" and not usable:
        raise ConfigError(
            f"model.attention is cudnn: expected an NVIDIA GPU, model.compute_dtype bfloat16 and a head width up to "
            f"128 that 8 divides; found {jax.devices()[0].device_kind}, {config.compute_dtype}, {config.head_dim}; "
            "use auto"
        )
    if config.attention == "auto":
        return "cudnn" if usable else "xla"
    return config.attention


def causal_attention(
    q: Float[Array, "B S N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], kernel: Kernel
) -> Float[Array, "B S N H"]:
    """softmax(q kᵀ / √H) v over the positions up to each one's own; query head n reads kv head ⌊n·K/N⌋.

    The queries are those of the last S positions.
    """
    num_queries, length = q.shape[1], k.shape[1]
    if num_queries < length:
        visible = jnp.arange(length) <= jnp.arange(length - num_queries, length)[:, None]
        return _attention(q, k, v, mask=visible[None, None])
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return _attention(q, k, v, is_causal=True)


def _attention(q: Array, k: Array, v: Array, **which: Array | bool) -> Array:
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else "default"):
        return jax.nn.dot_product_attention(q, k, v, implementation="xla", **which)


def rotary_base(config: ModelConfig, length: int) -> float:
    """Base of the rotary frequencies for sequences of `length` tokens.

    Past `rope_original_length` it grows by (length / original)^(d / (d − 2)), in training too.
    """
    dims = config.rope_dims or config.head_dim
    if length <= config.rope_original_length or dims <= 2:
        return config.rope_base
    return config.rope_base * (length / config.rope_original_length) ** (dims / (dims - 2))


def rotary_tables(config: ModelConfig, length: int) -> tuple[Float[Array, "T r"], Float[Array, "T r"]]:
    """Cosines and sines of the rotary angles, r = rotated dimensions / 2."""
    dims = config.rope_dims or config.head_dim
    frequencies = rotary_base(config, length) ** (-jnp.arange(0, dims, 2, dtype=jnp.float32) / dims)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(
    x: Float[Array, "B T N H"], cos: Float[Array, "T r"], sin: Float[Array, "T r"]
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + r) of the first 2r dimensions of every head."""
    r = cos.shape[-1]
    cos, sin = (table[None, :, None, :].astype(x.dtype) for table in (cos, sin))
    a, b, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return jnp.concatenate([a * cos + b * sin, b * cos - a * sin, rest], axis=-1)


def split_heads(
    config: ModelConfig,
    qkv: Float[Array, "B T E"],
    scale: Float[Array, "B T 1"],
    gain: Float[Array, N],
    rotary: tuple[Float[Array, "T r"], Float[Array, "T r"]],
    kernel: Kernel,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """q, k and v of `scale · qkv` for a constant scale: q and k normalised per head and rotated, q times `gain`."""
    shape = heads.HeadShape(config.num_heads, config.num_kv_heads, config.head_dim, RMS_EPSILON)
    if kernel == "cudnn" and heads.can_split_heads(shape, qkv.shape[1]):
        return heads.split_heads(shape, qkv, scale, gain, *rotary)
    x = (jax.lax.stop_gradient(scale) * qkv).reshape(*qkv.shape[:2], -1, config.head_dim)
    q, k, v = jnp.split(x, [config.num_heads, config.num_heads + config.num_kv_heads], axis=2)
    q, k = (apply_rotary(rms_norm(part), *rotary) for part in (q, k))
    return (gain[:, None] * q).astype(qkv.dtype), k.astype(qkv.dtype), v.astype(qkv.dtype)


def without_own_value(y: Float[Array, "n G*H"], v: Float[Array, "n H"]) -> tuple[Float[Array, "n G*H"]]:
    """XSA: takes from each head's output its component along that position's own value, y − (y·v̂) v̂.

    A row holds the query heads that read one key/value head.
    """
    grouped, v = y.reshape(len(y), -1, v.shape[1]), v[:, None, :]
    along = jnp.sum(grouped * v, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(v * v, axis=-1, keepdims=True), 1e-24)
    return ((grouped - along * v).reshape(y.shape),)


class Attention(nnx.Module):
    """Grouped-query causal self-attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig, layer: int):
        self.config = config
        self.removes_own_value = layer in config.xsa_layers
        self.q_proj = Linear(config.model_dim, config.model_dim)
        self.k_proj = Linear(config.model_dim, config.kv_dim)
        self.v_proj = Linear(config.model_dim, config.kv_dim)
        self.out_proj = Linear(config.model_dim, config.model_dim)
        self.q_gain = nnx.Param(jnp.zeros((config.num_heads,))) if config.q_gain else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        norm: Float[Array, "B T 1"],
        scale: Float[Array, " D"],
        value_embedding: Float[Array, "B T K*H"] | None,
        rotary: tuple[Float[Array, "T r"], Float[Array, "T r"]],
        kernel: Kernel,
        last: int,
    ) -> Float[Array, "B S D"]:
        """scale · Attention(norm · x) at the `last` positions.

        `norm` is one number a position, so it may as well multiply the product with the kernels.
        """
        config = self.config
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # One product instead of three; a slice of the result costs less than reading x again.
        qkv = matmul(x, jnp.concatenate([p.kernel[...] for p in projections], axis=1))
        gain = jnp.ones(config.num_heads) if self.q_gain is None else self.q_gain[...]
        q, k, v = split_heads(config, qkv, norm, gain, rotary, kernel)
        if value_embedding is not None:
            v = v + value_embedding.reshape(v.shape)
        y = causal_attention(q[:, -last:], k, v, kernel)
        if self.removes_own_value:
            v = v[:, -last:]
            y = rowwise(without_own_value, [y.reshape(*v.shape[:3], -1), v], fused=kernel == "cudnn")[0]
        return self.out_proj(y.reshape(*y.shape[:2], -1), scale)
