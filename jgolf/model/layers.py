"""Building blocks of the network. Shapes: B batch, T time, D model_dim, N heads, K kv heads, H head_dim."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

RMS_EPSILON = 1.1920929e-07  # float32 machine epsilon


def rms_norm(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """x / sqrt(mean(x²) + ε) over the last axis, computed in float32, without a weight."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + RMS_EPSILON)).astype(x.dtype)


def matmul(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel in the type of x; float32 means full float32 on every backend (no TF32)."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)


def shift_right(x: Array, axis: int = 1) -> Array:
    """Moves a sequence one position to the right; the first position becomes zero."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, pad), 0, x.shape[axis], axis=axis)


class Linear(nnx.Module):
    """A matrix without bias, kernel (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs)))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return matmul(x, self.kernel[...])


class Embedding(nnx.Module):
    """A table of rows, looked up by number."""

    def __init__(self, rows: int, dim: int):
        self.embedding = nnx.Param(jnp.zeros((rows, dim)))

    def __call__(self, index: Int[Array, ...], dtype: jnp.dtype) -> Float[Array, "... dim"]:
        return self.embedding[...].astype(dtype)[index]


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
        x = self.embedding[...].astype(dtype)[bigram_hash(tokens, self.buckets)]
        if self.proj is not None:
            x = self.proj(x)
        return self.scale[...].astype(dtype) * x


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
        x = self.embedding[...].astype(dtype)[tokens]
        if self.proj is not None:
            x = self.proj(x)
        x = self.scale[...].astype(dtype) * x
        return [scale[...].astype(dtype) * x for scale in self.layer_scales]


class MLP(nnx.Module):
    """W_out(relu(W_in x)²)."""

    def __init__(self, model_dim: int, hidden_dim: int):
        self.up_proj = Linear(model_dim, hidden_dim)
        self.down_proj = Linear(hidden_dim, model_dim)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(jnp.square(jax.nn.relu(self.up_proj(x))))
