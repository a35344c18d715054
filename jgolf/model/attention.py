"""Causal attention: kernels, rotary positions and XSA. Shapes as in layers.py."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jgolf.config import ModelConfig
from jgolf.errors import ConfigError
from jgolf.model.layers import Linear, matmul, rms_norm

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
            f"model.attention is cudnn: expected an NVIDIA GPU, model.compute_dtype bfloat16 and a head width up to 128 "
            f"that 8 divides; found {jax.devices()[0].device_kind}, {config.compute_dtype}, {config.head_dim}; use auto"
        )
    if config.attention == "auto":
        return "cudnn" if usable else "xla"
    return config.attention


def causal_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], kernel: Kernel
) -> Float[Array, "B T N H"]:
    """softmax(q kᵀ / √H) v over the positions up to each one's own; query head n reads kv head ⌊n·K/N⌋."""
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else "default"):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")


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


def remove_own_value(y: Float[Array, "B T N H"], v: Float[Array, "B T K H"]) -> Float[Array, "B T N H"]:
    """XSA: takes from each head's output its component along that position's own value, y − (y·v̂) v̂."""
    grouped = y.astype(jnp.float32).reshape(*v.shape[:3], y.shape[2] // v.shape[2], y.shape[3])
    v32 = v.astype(jnp.float32)[:, :, :, None, :]
    direction = v32 / jnp.maximum(jnp.sqrt(jnp.sum(v32 * v32, axis=-1, keepdims=True)), 1e-12)
    grouped -= jnp.sum(grouped * direction, axis=-1, keepdims=True) * direction
    return grouped.reshape(y.shape).astype(y.dtype)


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
        value_embedding: Float[Array, "B T K*H"] | None,
        rotary: tuple[Float[Array, "T r"], Float[Array, "T r"]],
        kernel: Kernel,
    ) -> Float[Array, "B T D"]:
        config = self.config
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # One product instead of three; a slice of the result costs less than reading x again.
        qkv = matmul(x, jnp.concatenate([p.kernel[...].astype(x.dtype) for p in projections], axis=1))
        q, k, v = jnp.split(qkv, [config.model_dim, config.model_dim + config.kv_dim], axis=-1)
        if value_embedding is not None:
            v = v + value_embedding
        q, k, v = (part.reshape(*part.shape[:2], -1, config.head_dim) for part in (q, k, v))
        q = apply_rotary(rms_norm(q), *rotary)
        k = apply_rotary(rms_norm(k), *rotary)
        if self.q_gain is not None:
            q = q * self.q_gain[...].astype(q.dtype)[:, None]
        y = causal_attention(q, k, v, kernel)
        if self.removes_own_value:
            y = remove_own_value(y, v)
        return self.out_proj(y.reshape(x.shape))
