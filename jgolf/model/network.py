"""The network: embeddings, a U-Net of transformer blocks, a softcapped head."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jgolf.config import ModelConfig
from jgolf.model.attention import Attention, Kernel, attention_kernel, rotary_tables
from jgolf.model.layers import MLP, BigramHash, Embedding, Linear, SmearGate, ValueEmbedding, matmul, rms_norm

Observer = Callable[[str, Array], None]


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
        x: Float[Array, "B T D"],
        x0: Float[Array, "B T D"],
        value_embedding: Float[Array, "B T K*H"] | None,
        rotary: tuple[Float[Array, "T r"], Float[Array, "T r"]],
        kernel: Kernel,
    ) -> Float[Array, "B T D"]:
        mix = self.resid_mix[...].astype(x.dtype)
        x = mix[0] * x + mix[1] * x0
        attended = self.attn(rms_norm(x) * self.norm_scale, value_embedding, rotary, kernel)
        x = x + self.attn_scale[...].astype(x.dtype) * attended
        return x + self.mlp_scale[...].astype(x.dtype) * self.mlp(rms_norm(x) * self.norm_scale)


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

    def hidden(self, tokens: Int[Array, "B T"], observe: Observer = lambda name, value: None) -> Float[Array, "B T D"]:
        """The normalised output of the last block. `observe` is given every block's output."""
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
        x0, skips = x, []
        for layer, block in enumerate(self.blocks):
            decoder_layer = layer - config.num_encoder_layers
            if decoder_layer >= 0 and skips:
                x = x + self.skip_weights[...][decoder_layer].astype(dtype) * skips.pop()
            x = block(x, x0, value_embeddings.get(layer), rotary, kernel)
            if decoder_layer < 0 and self.skip_weights is not None:
                skips.append(x)
            observe(f"block {layer}", x)
        return rms_norm(x)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Softcapped float32 logits of normalised hidden states."""
        kernel = self.embed.embedding[...].T if self.head is None else self.head.kernel[...]
        logits = matmul(hidden, kernel).astype(jnp.float32)
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.logits(self.hidden(tokens))


def token_nll(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log likelihood in nats of each target, float32."""
    picked = jnp.take_along_axis(logits, targets[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
