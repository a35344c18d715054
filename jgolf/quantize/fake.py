"""Late QAT: the forward pass on weights that are rounded as the export will round them."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgolf import rules
from jgolf.config import QuantizeConfig
from jgolf.quantize.rows import SMALLEST_SCALE, largest_level


def fake_quantize(params: Mapping[str, Array], config: QuantizeConfig) -> dict[str, Array]:
    """Replaces every matrix that Muon updates by its rounded self; the rest is passed on.

    Rounding has no useful derivative. Take the gradient at the result, `grad(loss)(fake_quantize(params))`,
    and apply it to `params`: that is the straight-through estimate, and nothing is differentiated here.
    """
    return {path: _fake_one(path, values, config) for path, values in params.items()}


def fake_quantize_kernel(
    kernel: Float[Array, "inputs outputs"], bits: int, scale_floor: bool = True
) -> Float[Array, "inputs outputs"]:
    """clamp(round(w / s), −c − 1, c) · s with s = max(max|w| / c, 1 / c) for each output; c = 2^(bits − 1) − 1."""
    c = largest_level(bits)
    floor = 1.0 / c if scale_floor else float(SMALLEST_SCALE)
    scale = jnp.maximum(_divide(jnp.max(jnp.abs(kernel), axis=0, keepdims=True), c), floor)
    return jnp.clip(jnp.round(_divide(kernel, scale)), -c - 1, c) * scale


def _fake_one(path: str, values: Array, config: QuantizeConfig) -> Array:
    bits = rules.fake_quantize_bits(path, config)
    return values if bits is None else fake_quantize_kernel(values, bits, config.scale_floor)


def _divide(values: Array, divisor: Array | int) -> Array:
    """values / divisor, correctly rounded.

    XLA multiplies by the reciprocal where the divisor is a constant or a broadcast, which differs in
    the last bit and so moves weights that lie halfway between two levels. 0 · values hides it.
    """
    return values / (divisor + 0 * values)
