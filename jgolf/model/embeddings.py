"""What the stream begins with, and what else is looked up by token. Shapes as in plain.py."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jgolf.model.kernels.door import Choice
from jgolf.model.kernels.products import matmul
from jgolf.model.kernels.tables import lookup
from jgolf.model.layers import Linear


def shift_right(x: Array, axis: int = 1) -> Array:
    """Moves a sequence one position to the right; the first position becomes zero."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, pad), 0, x.shape[axis], axis=axis)


class Embedding(nnx.Module):
    """A table of rows, looked up by number."""

    def __init__(self, rows: int, dim: int):
        self.embedding = nnx.Param(jnp.zeros((rows, dim)))

    def __call__(self, choice: Choice, index: Int[Array, ...], dtype: jnp.dtype) -> Float[Array, "... dim"]:
        return lookup(choice, self.embedding[...], index, dtype)


def bigram_hash(tokens: Int[Array, "B T"], buckets: int) -> Int[Array, "B T"]:
    """Bucket of each token and the one before it; the last bucket is the first position's."""
    tokens = tokens.astype(jnp.int32)
    first = jnp.full_like(tokens[:, :1], buckets - 1)
    return jnp.concatenate([first, pair_hash(tokens[:, 1:], tokens[:, :-1], buckets)], axis=1)


def pair_hash(tokens: Int[Array, "B T"], previous: Int[Array, "B T"], buckets: int) -> Int[Array, "B T"]:
    """Bucket of tokens and those before them, int32; the last bucket is no pair's."""
    return ((36313 * tokens) ^ (27191 * previous)) % (buckets - 1)


LOOKUPS: dict[str, Callable[[Array, int], Array]] = {
    "token lookups": lambda tokens, rows: tokens,
    "pair lookups": bigram_hash,
}
"""How tables are looked up, by what the rules call it: the row for each token, of a table of so many rows."""


class BigramHash(nnx.Module):
    """An embedding of hashed token pairs, projected to the residual stream's width."""

    def __init__(self, buckets: int, dim: int, model_dim: int):
        self.buckets = buckets
        self.embedding = nnx.Param(jnp.zeros((buckets, dim)))
        self.proj = Linear(dim, model_dim) if dim != model_dim else None
        self.scale = nnx.Param(jnp.zeros(()))

    def __call__(self, choice: Choice, tokens: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
        x = lookup(choice, self.embedding[...], bigram_hash(tokens, self.buckets), dtype)
        scale = self.scale[...]
        return scale.astype(dtype) * x if self.proj is None else self.proj(x, scale)


class SmearGate(nnx.Module):
    """Blends each position with the one before it, by a learnt share per channel."""

    def __init__(self, model_dim: int):
        self.gate = nnx.Param(jnp.zeros((model_dim,)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = jax.nn.sigmoid(self.gate[...]).astype(x.dtype)
        return (1 - gate) * x + gate * shift_right(x)


class GatedSmear(nnx.Module):
    """How much of the embedding before it is added to a token's: one number a position, read from the token's own."""

    def __init__(self, window: int):
        self.gate = nnx.Param(jnp.zeros((1, window)))
        self.scale = nnx.Param(jnp.zeros((1,)))

    def __call__(self, x: Float[Array, "B T D"], begins: Bool[Array, "B T"]) -> Float[Array, "B T 1"]:
        """`begins`: where a document does, and so takes nothing from the one before."""
        gate = jax.nn.sigmoid(matmul(x[..., : self.gate.shape[1]], self.gate[...].T))
        return jnp.where(begins[..., None], 0, self.scale[...].astype(x.dtype) * gate)


class ValueEmbedding(nnx.Module):
    """A token table shared by some layers, added to their attention values with a scale per layer."""

    def __init__(self, vocab_size: int, dim: int, kv_dim: int, num_layers: int):
        self.embedding = nnx.Param(jnp.zeros((vocab_size, dim)))
        self.proj = Linear(dim, kv_dim) if dim != kv_dim else None
        self.scale = nnx.Param(jnp.zeros(()))
        self.layer_scales = nnx.List([nnx.Param(jnp.zeros((1,))) for _ in range(num_layers)])

    def __call__(self, choice: Choice, tokens: Int[Array, "B T"], dtype: jnp.dtype) -> list[Float[Array, "B T K*H"]]:
        """The addition to the values of each of its layers, in their order."""
        x = lookup(choice, self.embedding[...], tokens, dtype)
        scales = [self.scale[...] * scale[...] for scale in self.layer_scales]
        return [scale.astype(dtype) * x if self.proj is None else self.proj(x, scale) for scale in scales]
