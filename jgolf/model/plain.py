"""The written model: what the network computes, with nothing fused, folded or differentiated by hand.

It is what a reader reads, what the kernels are held against, and what runs where there are none. Shapes: B batch,
T time, D model_dim, N query heads, K key/value heads, H head_dim, F mlp_dim, V vocab_size, S positions asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jgolf.config import ModelConfig
from jgolf.config.plan import Plan, Visit, kept
from jgolf.model.context import Context
from jgolf.model.embeddings import bigram_hash, shift_right
from jgolf.model.kernels.attention import masked_attention
from jgolf.model.kernels.heads import rotated
from jgolf.model.kernels.loss import softcap
from jgolf.model.kernels.mlp import plain_products, squared
from jgolf.model.kernels.products import product
from jgolf.model.lora import HEAD, NO_ADDITIONS, Additions, added, additions_of, plus
from jgolf.model.norm import rms_norm

Params = dict[str, Array]
Observer = Callable[[str, Array], None]


def hidden(
    config: ModelConfig, params: Params, context: Context, plan: Plan, observe: Observer, last: int
) -> Float[Array, "B S D"]:
    """The normalised output of the last block, at the `last` positions."""
    dtype = config.compute_dtype
    p = {path: value if path.endswith("/embedding") else value.astype(dtype) for path, value in params.items()}
    x = x0 = embedded(config, p, context, observe)
    observe("embedding", x)
    outputs, read_later = {}, kept(plan)
    for place, visit in enumerate(plan):
        if visit.two_lanes and not isinstance(x, tuple):
            x = x, x
        if visit.reads is not None:
            mixed = with_skip(config, p, visit, x[0] if visit.two_lanes else x, outputs[visit.reads])
            x = (mixed, x[1]) if visit.two_lanes else mixed
        num_wanted = last if place == len(plan) - 1 else context.tokens.shape[1]
        x = (two_lane_block if visit.two_lanes else block)(config, p, context, visit, x, x0, observe, num_wanted)
        if place in read_later:
            outputs[place] = x
        observe(visit.name, sum(x) / 2 if visit.two_lanes else x)
    return rms_norm(sum(x) / 2 if isinstance(x, tuple) else x)


def logits(
    config: ModelConfig, params: Params, x: Float[Array, "B T D"], additions: Additions = NO_ADDITIONS
) -> Float[Array, "B T V"]:
    """Softcapped float32 logits of normalised hidden states."""
    head = params["embed/embedding"].T if config.tie_embeddings else params["head/kernel"]
    return softcap(plus(product(x, head.astype(x.dtype)), added(additions, HEAD, x)), config.logit_softcap)


def embedded(config: ModelConfig, p: Params, context: Context, observe: Observer) -> Float[Array, "B T D"]:
    """The stream that the first block reads."""
    x = looked_up(config, p, "embed", context.tokens)
    if config.bigram_buckets:
        pair = looked_up(config, p, "bigram", pairs(context, config.bigram_buckets))
        x = x + p["bigram/scale"] * projected(p, "bigram/proj/kernel", pair, observe)
    if config.gated_smear:
        gate = jax.nn.sigmoid(product(x[..., : config.gate_window], p["gated_smear/gate"].T))
        previous = jnp.where(context.begins[..., None], 0, before(context, "gated smear", x))
        x = x + p["gated_smear/scale"] * gate * previous
    x = rms_norm(x)
    if config.smear_gate:
        gate = jax.nn.sigmoid(p["smear/gate"])
        x = (1 - gate) * x + gate * before(context, "smear", x)
    return x


def with_skip(config: ModelConfig, p: Params, visit: Visit, x: Array, skip: Array) -> Float[Array, "B T D"]:
    """The stream, or of two lanes attention's, with an encoder's output blended in."""
    skip = p["skip_weights"][visit.skip] * skip
    if not config.skip_gates:
        return x + skip
    gate = jax.nn.sigmoid(p["skip_gates"][visit.skip])
    return gate * x + (1 - gate) * skip


def block(config, p, context, visit, x, x0, observe, last) -> Float[Array, "B S D"]:
    """Mixes in the first block's input, then adds attention, then the MLP."""
    name = f"blocks/{visit.layer}/"
    own, first = p[name + "resid_mix"]
    x = own * x + first * x0
    x = x[:, -last:] + attention_update(config, p, context, visit, x, observe, last)
    return x + mlp_update(config, p, context, visit, x, observe)


def two_lane_block(config, p, context, visit, x, x0, observe, last) -> tuple[Array, Array]:
    """Attention reads its own lane, mixed with the first block's input, the MLP its own; both add to both."""
    (a, m), name = x, f"blocks/{visit.layer}/"
    own, first = p[name + "resid_mix"]
    updates = (
        attention_update(config, p, context, visit, own * a + first * x0, observe, last),
        mlp_update(config, p, context, visit, m[:, -last:], observe),
    )
    residual, post = p["lanes/residual"][visit.layer], p["lanes/post"][visit.layer]
    return tuple(
        residual[lane] * stream[:, -last:] + sum(post[source, lane] * update for source, update in enumerate(updates))
        for lane, stream in enumerate((a, m))
    )


def attention_update(config, p, context, visit, x, observe, last) -> Float[Array, "B S D"]:
    """What attention adds to a lane, from that lane's mixed x."""
    update = attention(config, p, context, visit, norm_scale(config, visit.layer) * rms_norm(x), observe, last)
    observe(f"attention of {visit.name}", update)
    return p[f"blocks/{visit.layer}/attn_scale"] * update


def mlp_update(config, p, context, visit, x, observe) -> Float[Array, "B S D"]:
    """What the MLP adds to a lane x."""
    name, own = f"blocks/{visit.layer}/", additions_of(context.additions, visit)
    x = norm_scale(config, visit.layer) * rms_norm(x)
    through_up, through_down = plain_products(context.fp8)
    activated = squared(config.activation_slope, through(p, name + "mlp/up_proj/kernel", x, observe, through_up))
    update = through(p, name + "mlp/down_proj/kernel", activated, observe, through_down)
    update = plus(update, added(own, "mlp", x))
    observe(f"MLP of {visit.name}", update)
    return p[name + "mlp_scale"] * update


def norm_scale(config: ModelConfig, layer: int) -> float:
    """Factor behind the norm that each half of a block begins with."""
    return (layer + 1) ** -0.5 if config.ln_scale else 1.0


def attention(config, p, context, visit, x, observe, last) -> Float[Array, "B S D"]:
    """Grouped-query causal attention of a block on its normalised input, at the `last` positions."""
    layer, own = visit.layer, additions_of(context.additions, visit)
    name, group = f"blocks/{layer}/attn/", config.num_heads // config.num_kv_heads
    q, k, v = (plus(through(p, f"{name}{part}_proj/kernel", x, observe), added(own, part, x)) for part in "qkv")
    if layer in config.value_embedding_layers:
        v = v + value_embedding(config, p, context, layer, observe)
    q, k, v = (part.reshape(*x.shape[:2], -1, config.head_dim) for part in (q, k, v))
    q, k = (rotated(rms_norm(part), context.cos, context.sin) for part in (q, k))
    if config.q_gain:
        q = q * p[name + "q_gain"][:, None]
    y = attended(context, visit, q[:, -last:], k, v)
    if layer in config.xsa_layers:
        y = without_own_value(y, jnp.repeat(v[:, -last:], group, axis=2))
    if config.attention_gate:
        logit = config.attention_gate_scale * product(x[:, -last:, : config.gate_window], p[name + "gate"].T)
        y = y * jax.nn.sigmoid(logit)[..., None]
    y = through(p, name + "out_proj/kernel", y.reshape(*y.shape[:2], -1), observe)
    return plus(y, added(own, "o", x[:, -last:]))


def without_own_value(y: Float[Array, "B S N H"], v: Float[Array, "B S N H"]) -> Float[Array, "B S N H"]:
    """XSA: takes from a head's output its component along the position's own value, y − (y·v̂) v̂."""
    y32, v32 = y.astype(jnp.float32), v.astype(jnp.float32)
    along = jnp.sum(y32 * v32, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(v32 * v32, axis=-1, keepdims=True), 1e-24)
    return (y32 - along * v32).astype(y.dtype)


def value_embedding(config, p, context, layer, observe) -> Float[Array, "B T K*H"]:
    """What a layer's values receive from the shared value table."""
    number = config.value_embedding_layers.index(layer)
    value = looked_up(config, p, "value_embed", context.tokens)
    value = projected(p, "value_embed/proj/kernel", value, observe)
    return p["value_embed/scale"] * p[f"value_embed/layer_scales/{number}"] * value


def looked_up(config: ModelConfig, p: Params, table: str, index: Array) -> Array:
    """Rows of a table; read in float32, so that their gradients are summed in float32."""
    return p[f"{table}/embedding"][index].astype(config.compute_dtype)


def projected(p: Params, path: str, x: Array, observe: Observer) -> Array:
    """x through a kernel, where there is one."""
    return through(p, path, x, observe) if path in p else x


def through(
    p: Params, path: str, x: Array, observe: Observer, multiply: Callable[[Array, Array], Array] = product
) -> Array:
    """x through the kernel called `path`; `observe` is given x by that name."""
    observe(path, x)
    return multiply(x, p[path])


# --- what a position reads of those before it --------------------------------------------------


def pairs(context: Context, buckets: int) -> Array:
    """Bucket of each token and the one before it, [B, T]."""
    return (context.past.bigram_hash if context.past else bigram_hash)(context.tokens, buckets)


def before(context: Context, name: str, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """What the stream of that name was one position earlier; zero at the first."""
    return context.past.before(name, x) if context.past else shift_right(x)


def attended(context: Context, visit: Visit, q: Array, k: Array, v: Array) -> Float[Array, "B S N H"]:
    """Causal attention of the last positions' queries."""
    if context.past:
        return context.past.attention(visit.name, q, k, v)
    return masked_attention(q, k, v, context.segments, context.longest_piece)
