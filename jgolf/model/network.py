"""The network: embeddings, a U-Net of transformer blocks, a softcapped head."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jgolf.config import ModelConfig
from jgolf.model.attention import Attention, Kernel, attention_kernel, rotary_tables
from jgolf.model.gradients import matmul
from jgolf.model.kernels import rowwise
from jgolf.model.layers import MLP, BigramHash, Embedding, Linear, SmearGate, ValueEmbedding, inverse_rms, rms_norm

Observer = Callable[[str, Array], None]

Stream = tuple[Float[Array, "B T D"], ...]
"""The residual stream as addends: the last update is added where the sum is read next, in the same pass."""


def factored_norm(x: Float[Array, "n D"]) -> tuple[Float[Array, "n D"], Float[Array, "n 1"]]:
    """rms_norm(x) in two factors: x itself and one number a row.

    A product with a matrix can then take x, and be multiplied by the number afterwards; the normalised x
    is never written. The number is a constant: all of the norm's gradient comes back through x.
    """
    factor = inverse_rms(x)
    constant = jax.lax.stop_gradient(factor)
    return x * (factor / constant), constant


def normalised(x: Float[Array, "n D"]) -> tuple[Array, Array, Float[Array, "n 1"]]:
    """x for the residual stream, and `factored_norm` of it for a layer."""
    return x, *factored_norm(x)


def mixed(x: Float[Array, "n D"], x0: Float[Array, "n D"], own: Array, first: Array) -> tuple[Array, ...]:
    """`normalised` of own · x + first · x0, per channel."""
    return normalised(own * x + first * x0)


def mixed_with_skip(
    x: Array, skip: Array, x0: Array, skip_weight: Array, own: Array, first: Array
) -> tuple[Array, ...]:
    """`mixed` of x + skip_weight · skip."""
    return mixed(x + skip_weight * skip, x0, own, first)


def rms_normalised(x: Float[Array, "n D"]) -> tuple[Array]:
    """`rms_norm` of the stream."""
    return (rms_norm(x),)


def softcap(logits: Float[Array, ...], cap: float) -> Float[Array, ...]:
    """cap · tanh(logits / cap), float32; a cap of 0 leaves them as they are."""
    logits = logits.astype(jnp.float32)
    return cap * jnp.tanh(logits / cap) if cap else logits


def token_nll(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log likelihood in nats of each target, float32."""
    picked = jnp.take_along_axis(logits, targets[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@cache
def _nll(cap: float) -> Callable:
    def softcapped_nll(logits: Float[Array, "n V"], target: Float[Array, "n 1"]) -> tuple[Float[Array, "n 1"]]:
        capped = softcap(logits, cap)
        shift = jax.lax.stop_gradient(jnp.max(capped, axis=-1, keepdims=True))
        log_sum = jnp.log(jnp.sum(jnp.exp(capped - shift), axis=-1, keepdims=True)) + shift
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == target.astype(jnp.int32)
        return (log_sum - jnp.sum(jnp.where(is_target, capped, 0.0), axis=-1, keepdims=True),)

    return softcapped_nll


class Block(nnx.Module):
    """Mixes in the first layer's input, then adds attention and MLP, each with a scale per channel."""

    def __init__(self, config: ModelConfig, layer: int):
        self.norm_scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        self.resid_mix = nnx.Param(jnp.zeros((2, config.model_dim)))
        self.attn_scale = nnx.Param(jnp.zeros((config.model_dim,)))
        self.mlp_scale = nnx.Param(jnp.zeros((config.model_dim,)))
        self.attn = Attention(config, layer)
        self.mlp = MLP(config.model_dim, config.mlp_dim)

    def __call__(
        self,
        x: Stream,
        x0: Float[Array, "B T D"],
        skip: tuple[Stream, Float[Array, "1 D"]] | None,
        value_embedding: Float[Array, "B T K*H"] | None,
        rotary: tuple[Float[Array, "T r"], Float[Array, "T r"]],
        kernel: Kernel,
        last: int,
    ) -> Stream:
        """The stream after this block, at the `last` positions."""
        fused = kernel == "cudnn"
        mix = self.resid_mix[...]
        if skip is None:
            x, inputs, norm = rowwise(mixed, [x, x0], [mix[:1], mix[1:]], fused=fused, second_is_first=True)
        else:
            rows, whole = [x, skip[0], x0], [skip[1], mix[:1], mix[1:]]
            x, inputs, norm = rowwise(mixed_with_skip, rows, whole, fused=fused, second_is_first=True)
        update = self.attn(inputs, self.norm_scale * norm, self.attn_scale[...], value_embedding, rotary, kernel, last)
        x = x[:, -last:], update
        x, inputs, norm = rowwise(normalised, [x], fused=fused, second_is_first=True, first_is_input=True)
        return x, self.mlp(inputs, self.norm_scale * norm, self.mlp_scale[...], fused)


class GPT(nnx.Module):
    """The whole network. Created with zeros: `jgolf.model.initial.init` gives the starting values."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.embed = Embedding(config.vocab_size, config.model_dim)
        self.bigram = (
            BigramHash(config.bigram_buckets, config.bigram_dim, config.model_dim) if config.bigram_buckets else None
        )
        self.smear = SmearGate(config.model_dim) if config.smear_gate else None
        self.value_embed = (
            ValueEmbedding(
                config.vocab_size, config.value_embedding_dim, config.kv_dim, len(config.value_embedding_layers)
            )
            if config.value_embedding_layers
            else None
        )
        self.blocks = nnx.List([Block(config, layer) for layer in range(config.num_layers)])
        num_skips = config.num_encoder_layers if config.unet_skips else 0
        self.skip_weights = nnx.Param(jnp.zeros((num_skips, config.model_dim))) if num_skips else None
        self.head = None if config.tie_embeddings else Linear(config.model_dim, config.vocab_size)

    def hidden(
        self, tokens: Int[Array, "B T"], observe: Observer = lambda name, value: None, last: int = 0
    ) -> Float[Array, "B S D"]:
        """The normalised output of the last block, at the `last` positions or all; the rest is not computed there.

        `observe` is given every block's output.
        """
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        kernel = attention_kernel(config)
        rotary = rotary_tables(config, tokens.shape[1])
        x = self.embed(tokens, dtype)
        if self.bigram is not None:
            x = x + self.bigram(tokens, dtype)
        x = rms_norm(x)
        if self.smear is not None:
            x = self.smear(x)
        observe("embedding", x)
        value_embeddings: dict[int, Array] = {}
        if self.value_embed is not None:
            value_embeddings = dict(zip(config.value_embedding_layers, self.value_embed(tokens, dtype), strict=True))
        x0, x, skips = x, (x,), []
        for layer, block in enumerate(self.blocks):
            decoder_layer = layer - config.num_encoder_layers
            skip = None
            if decoder_layer >= 0 and skips:
                skip = skips.pop(), self.skip_weights[...][decoder_layer : decoder_layer + 1]
            is_final = layer == config.num_layers - 1
            num_wanted = last if last and is_final else tokens.shape[1]
            x = block(x, x0, skip, value_embeddings.get(layer), rotary, kernel, num_wanted)
            if decoder_layer < 0 and self.skip_weights is not None:
                skips.append(x)
            observe(f"block {layer}", sum(x))
        return rowwise(rms_normalised, [x], fused=kernel == "cudnn")[0]

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Softcapped float32 logits of normalised hidden states."""
        return softcap(self._raw_logits(hidden), self.config.logit_softcap)

    def losses(self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """Negative log likelihood in nats of each target, float32, of normalised hidden states."""
        rows = [self._raw_logits(hidden), targets[..., None].astype(jnp.float32)]
        nll = rowwise(_nll(self.config.logit_softcap), rows, fused=attention_kernel(self.config) == "cudnn")[0]
        return nll[..., 0]

    def _raw_logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return matmul(hidden, self.embed.embedding[...].T if self.head is None else self.head.kernel[...])

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.logits(self.hidden(tokens))
