"""Root-mean-square normalisation, without a weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RMS_EPSILON = 1.1920929e-07  # float32 machine epsilon


def inverse_rms(x: Float[Array, "... dim"]) -> Float[Array, "... 1"]:
    """1 / sqrt(mean(x²) + ε) over the last axis, float32."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True) + RMS_EPSILON)


def rms_norm(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """x / sqrt(mean(x²) + ε) over the last axis, computed in float32."""
    return (x.astype(jnp.float32) * inverse_rms(x)).astype(x.dtype)


def factored_norm(x: Float[Array, "n D"]) -> tuple[Float[Array, "n D"], Float[Array, "n 1"]]:
    """rms_norm(x) in two factors: x itself and one number a row.

    A product with a matrix can then take x, and be multiplied by the number afterwards; the normalised x
    is never written. The number is a constant: all of the norm's gradient comes back through x.
    """
    factor = inverse_rms(x)
    constant = jax.lax.stop_gradient(factor)
    return x * (factor / constant), constant


def normalised(x: Float[Array, "n D"]) -> tuple[Float[Array, "n D"], Float[Array, "n D"], Float[Array, "n 1"]]:
    """x for the residual stream, and `factored_norm` of it for a layer."""
    return x, *factored_norm(x)
