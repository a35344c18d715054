"""The network written out as its description has it, with nothing fused, folded or differentiated by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jgolf.config import ModelConfig


def rms(x: Array) -> Array:
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1.1920929e-07)


def rotate(x: Array, config: ModelConfig) -> Array:
    """RoPE of x [B, T, heads, H], for sequences that leave the base as it is."""
    dims = config.rope_dims or config.head_dim
    r = dims // 2
    frequencies = config.rope_base ** (-2 * jnp.arange(r) / dims)
    angles = (jnp.arange(x.shape[1])[:, None] * frequencies)[:, None, :]
    a, b = x[..., :r], x[..., r:dims]
    rotated = a * jnp.cos(angles) + b * jnp.sin(angles), b * jnp.cos(angles) - a * jnp.sin(angles)
    return jnp.concatenate([*rotated, x[..., dims:]], axis=-1)


def attention(params: dict, config: ModelConfig, layer: int, x: Array, extra: Array | float) -> Array:
    name, heads = f"blocks/{layer}/attn/", (*x.shape[:2], -1, config.head_dim)
    q, k, v = (x @ params[f"{name}{part}_proj/kernel"] for part in "qkv")
    q, k, v = q.reshape(heads), k.reshape(heads), (v + extra).reshape(heads)
    q, k = rotate(rms(q), config), rotate(rms(k), config)
    if config.q_gain:
        q = q * params[name + "q_gain"][:, None]
    group = config.num_heads // config.num_kv_heads
    k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(config.head_dim)
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[2:], bool)), scores, -jnp.inf)
    y = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v)
    if layer in config.xsa_layers:
        direction = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
        y = y - jnp.sum(y * direction, axis=-1, keepdims=True) * direction
    return y.reshape(x.shape) @ params[name + "out_proj/kernel"]


def token_losses(params: dict, config: ModelConfig, inputs: Array, targets: Array) -> Array:
    """Negative log likelihood [B, T] of the targets."""
    x = params["embed/embedding"][inputs]
    if config.bigram_buckets:
        before = jnp.pad(inputs, ((0, 0), (1, 0)))[:, :-1]
        hashed = ((36313 * inputs) ^ (27191 * before)) % (config.bigram_buckets - 1)
        pair = params["bigram/embedding"][hashed.at[:, 0].set(config.bigram_buckets - 1)]
        x = x + params["bigram/scale"] * (pair @ params.get("bigram/proj/kernel", jnp.eye(pair.shape[-1])))
    x = rms(x)
    if config.smear_gate:
        gate = jax.nn.sigmoid(params["smear/gate"])
        x = (1 - gate) * x + gate * jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    x0, stack = x, []
    for layer in range(config.num_layers):
        block, decoder_layer = f"blocks/{layer}/", layer - config.num_layers // 2
        if decoder_layer >= 0 and stack:
            x = x + params["skip_weights"][decoder_layer] * stack.pop()
        extra: Array | float = 0.0
        if layer in config.value_embedding_layers:
            value = params["value_embed/embedding"][inputs]
            value = value @ params.get("value_embed/proj/kernel", jnp.eye(value.shape[-1]))
            number = config.value_embedding_layers.index(layer)
            extra = params[f"value_embed/layer_scales/{number}"] * params["value_embed/scale"] * value
        norm = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        mix = params[block + "resid_mix"]
        x = mix[0] * x + mix[1] * x0
        x = x + params[block + "attn_scale"] * attention(params, config, layer, norm * rms(x), extra)
        hidden = jax.nn.relu(norm * rms(x) @ params[block + "mlp/up_proj/kernel"]) ** 2
        x = x + params[block + "mlp_scale"] * (hidden @ params[block + "mlp/down_proj/kernel"])
        if decoder_layer < 0 and config.unet_skips:
            stack.append(x)
    logits = rms(x) @ params.get("head/kernel", params["embed/embedding"].T)
    if config.logit_softcap:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
