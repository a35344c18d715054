"""Building blocks of the network. Shapes: B batch, T time, D model_dim, N heads, K kv heads, H head_dim."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jgolf.model.gradients import matmul
from jgolf.model.mlp import mlp
from jgolf.model.tables import lookup

RMS_EPSILON = 1.1920929e-07  # float32 machine epsilon


def inverse_rms(x: Float[Array, "... dim"]) -> Float[Array, "... 1"]:
    """1 / sqrt(mean(x²) + ε) over the last axis, float32."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True) + RMS_EPSILON)


def rms_norm(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """x / sqrt(mean(x²) + ε) over the last axis, computed in float32, without a weight."""
    return (x.astype(jnp.float32) * inverse_rms(x)).astype(x.dtype)


def shift_right(x: Array, axis: int = 1) -> Array:
    """Moves a sequence one position to the right; the first position becomes zero."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, pad), 0, x.shape[axis], axis=axis)


class Linear(nnx.Module):
    """A matrix without bias, kernel (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs)))

    def __call__(self, x: Float[Array, "... i"], scale: Float[Array, " o"] | float = 1.0) -> Float[Array, "... o"]:
        """scale · (x @ kernel); the scale is taken into the kernel, where it costs next to nothing."""
        return matmul(x, self.kernel[...] * scale)


class Embedding(nnx.Module):
    """A table of rows, looked up by number."""

    def __init__(self, rows: int, dim: int):
        self.embedding = nnx.Param(jnp.zeros((rows, dim)))

    def __call__(self, index: Int[Array, ...], dtype: jnp.dtype) -> Float[Array, "... dim"]:
        return lookup(self.embedding[...], index, dtype)


def bigram_hash(tokens: Int[Array, "B T"], buckets: int) -> Int[Array, "B T"]:
    """Bucket of each token and the one before it; the last bucket is the first position's."""
    tokens = tokens.astype(jnp.int32)
    mixed = (36313 * tokens[:, 1:]) ^ (27191 * tokens[:, :-1])
    first = jnp.full_like(tokens[:, :1], buckets - 1)
    return jnp.concatenate([first, mixed % (buckets - 1)], axis=1)


class BigramHash(nnx.Module):
    """An embedding of hashed token pairs, projected to the residual stream's width."""

    def __init__(self, buckets: int, dim: int, model_dim: int):
        self.buckets = buckets
        self.embedding = nnx.Param(jnp.zeros((buckets, dim)))
        self.proj = Linear(dim, model_dim) if dim != model_dim else None
        self.scale = nnx.Param(jnp.zeros(()))

    def __call__(self, tokens: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
        x = lookup(self.embedding[...], bigram_hash(tokens, self.buckets), dtype)
        scale = self.scale[...]
        return scale.astype(dtype) * x if self.proj is None else self.proj(x, scale)


class SmearGate(nnx.Module):
    """Blends each position with the one before it, by a learnt share per channel."""

    def __init__(self, model_dim: int):
        self.gate = nnx.Param(jnp.zeros((model_dim,)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = jax.nn.sigmoid(self.gate[...]).astype(x.dtype)
        return (1 - gate) * x + gate * shift_right(x)


class ValueEmbedding(nnx.Module):
    """A token table shared by some layers, added to their attention values with a scale per layer."""

    def __init__(self, vocab_size: int, dim: int, kv_dim: int, num_layers: int):
        self.embedding = nnx.Param(jnp.zeros((vocab_size, dim)))
        self.proj = Linear(dim, kv_dim) if dim != kv_dim else None
        self.scale = nnx.Param(jnp.zeros(()))
        self.layer_scales = nnx.List([nnx.Param(jnp.zeros((1,))) for _ in range(num_layers)])

    def __call__(self, tokens: Int[Array, "B T"], dtype: jnp.dtype) -> list[Float[Array, "B T K*H"]]:
        """The addition to the values of each of its layers, in their order."""
        x = lookup(self.embedding[...], tokens, dtype)
        scales = [self.scale[...] * scale[...] for scale in self.layer_scales]
        return [scale.astype(dtype) * x if self.proj is None else self.proj(x, scale) for scale in scales]


class MLP(nnx.Module):
    """scale · W_out(relu(W_in (norm · x))²)."""

    def __init__(self, model_dim: int, hidden_dim: int):
        self.up_proj = Linear(model_dim, hidden_dim)
        self.down_proj = Linear(hidden_dim, model_dim)

    def __call__(
        self, x: Float[Array, "B T D"], norm: Float[Array, "B T 1"], scale: Float[Array, " D"], fused: bool
    ) -> Float[Array, "B T D"]:
        """`norm`, a constant, is one number a position: it may as well multiply the product with the kernel."""
        return mlp(fused, x, norm, self.up_proj.kernel[...], self.down_proj.kernel[...] * scale)
