"""From hidden states to logits and losses. Shapes as in plain.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgolf.model.kernels.door import Choice
from jgolf.model.kernels.rowwise import rowwise


def softcap(logits: Float[Array, ...], cap: float) -> Float[Array, ...]:
    """cap · tanh(logits / cap), float32; a cap of 0 leaves them as they are."""
    logits = logits.astype(jnp.float32)
    return cap * jnp.tanh(logits / cap) if cap else logits


def token_nll(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log likelihood in nats of each target, float32."""
    picked = jnp.take_along_axis(logits, targets[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def softcapped_token_nll(
    choice: Choice, cap: float, logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """`token_nll` of `softcap`, in one pass over the logits."""
    return rowwise(choice, _softcapped_nll(cap), [logits, targets[..., None].astype(jnp.float32)])[0][..., 0]


@cache  # one function for each cap, so that programs share its kernel
def _softcapped_nll(cap: float) -> Callable:
    def softcapped_nll(logits: Float[Array, "n V"], target: Float[Array, "n 1"]) -> tuple[Float[Array, "n 1"]]:
        capped = softcap(logits, cap)
        shift = jax.lax.stop_gradient(jnp.max(capped, axis=-1, keepdims=True))
        log_sum = jnp.log(jnp.sum(jnp.exp(capped - shift), axis=-1, keepdims=True)) + shift
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == target.astype(jnp.int32)
        return (log_sum - jnp.sum(jnp.where(is_target, capped, 0.0), axis=-1, keepdims=True),)

    return softcapped_nll
