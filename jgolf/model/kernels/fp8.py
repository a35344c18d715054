"""Matrix products whose operands are rounded to eight bits: e4m3, three bits of mantissa, with a scale of their own.

Each row of activations or gradients has a scale, a kernel one for all of it, by the largest magnitude. So a row's
scale can multiply its products, where something else does already.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jgolf.model.kernels.products import kernel_gradient, matmul_gradients, product

FP8 = jnp.float8_e4m3fn
LARGEST = float(jnp.finfo(FP8).max)


def rounded(x: Float[Array, ...], axis: int | None = None) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """x / scale in eight bits, and the scale, float32: of all values, or of those along an axis, which stays as 1."""
    x = x.astype(jnp.float32)
    magnitude = jnp.max(jnp.abs(x), axis, keepdims=axis is not None)
    scale = jnp.where(magnitude > 0, magnitude, 1.0) / LARGEST
    return (x / scale).astype(FP8), scale


@jax.custom_vjp
def rounded_product(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel of rounded operands, in the type of x; with the derivative of the ordinary product."""
    (x8, row_scale), (kernel8, scale) = rounded(x, axis=-1), rounded(kernel)
    return (product(x8.astype(x.dtype), kernel8) * (row_scale * scale)).astype(x.dtype)


rounded_product.defvjp(
    lambda x, kernel: (rounded_product(x, kernel), (x, kernel)),
    lambda residuals, gradient: matmul_gradients(*residuals, gradient),
)


@jax.custom_vjp
def product_with_rounded_gradient(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """The ordinary product, whose input's gradient is a product of rounded operands."""
    return product(x, kernel)


def _gradients_by_rounded(residuals, gradient):
    x, kernel = residuals
    return rounded_product(gradient, kernel.T), kernel_gradient(x, gradient, kernel)


product_with_rounded_gradient.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _gradients_by_rounded)
