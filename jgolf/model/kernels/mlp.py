"""The MLP as one operation, with its activation inside the matrix products where the GPU allows it.

Left to the compiler, the square reads and writes the network's widest activations once more, forward and
backward. In `product_then` the tiles of a product pass through a function on their way to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgolf.model.kernels.door import Choice, choose, hopper_module, unless_batched
from jgolf.model.kernels.fp8 import product_with_rounded_gradient, rounded, rounded_product
from jgolf.model.kernels.products import (
    input_gradient,
    instantiated,
    kernel_gradient,
    matmul,
    matmul_gradients,
    product,
)

SMALLEST = 1e-24
"""The root of 0 is 0; below this its slope no longer grows, so that second derivatives stay finite in float32."""


def mlp(
    choice: Choice,
    slope: float,
    fp8: bool,
    x: Float[Array, "... D"],
    factor: Float[Array, "... 1"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
) -> Float[Array, "... D"]:
    """activation(factor · (x @ up)) @ down, for a constant factor > 0 and the square of a leaky ReLU.

    Args:
      choice: which forms are allowed.
      slope: of the activation below zero, before the square.
      fp8: x @ up, and the product that its gradient begins with, have operands rounded to eight bits.
      x, factor, up, down: the input, one number for each of its rows, and the two kernels.
    """
    plain, kernel = partial(plain_mlp, slope, fp8), partial(_mlp, slope, fp8)
    return choose(choice, "mlp", plain, lambda interpret, *arrays: kernel(*arrays), None, x, factor, up, down)


def plain_mlp(slope: float, fp8: bool, x: Array, factor: Array, up: Array, down: Array) -> Array:
    """`mlp` in ordinary JAX."""
    through_up, through_down = plain_products(fp8)
    inner = jax.lax.stop_gradient(factor) * through_up(x, up)
    return through_down(squared(slope, inner).astype(x.dtype), down)


def plain_products(fp8: bool) -> tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]:
    """The products with both kernels in ordinary JAX."""
    return (rounded_product, product_with_rounded_gradient) if fp8 else (product, product)


def squared(slope: float, inner: Array) -> Array:
    """The square of a leaky ReLU."""
    return jnp.square(jnp.where(inner > 0, inner, slope * inner))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mlp(slope: float, fp8: bool, x: Array, factor: Array, up: Array, down: Array) -> Array:
    return matmul(product_then(_activation(slope, x.dtype), fp8, x, up, factor), down)


def _forward(slope, fp8, *primals):
    x, factor, up, down = (primal.value for primal in primals)
    hidden = product_then(_activation(slope, x.dtype), fp8, x, up, factor)
    return matmul(hidden, down), (_for_kernels(primals), factor, up, down, hidden)


def _for_kernels(primals: tuple) -> Array | None:
    """The input, which the kernels' gradients need; None where nobody asks for either of them."""
    x, _, up, down = primals
    return x.value if up.perturbed or down.perturbed else None


def _backward(slope, fp8, residuals, gradient):
    x, factor, up, down, hidden = residuals
    gradient = instantiated(gradient)
    up_gradient = product_then(_derivative(slope, gradient.dtype), fp8, gradient, down.T, factor, hidden)
    return _gradients(x, factor, up, down, hidden, gradient, up_gradient)


_mlp.defvjp(_forward, _backward, symbolic_zeros=True)


def _gradients(x, factor, up, down, hidden, gradient, up_gradient):
    if x is None:
        return input_gradient(up_gradient, up), None, None, None
    # As in `matmul`: the kernel's gradient now, not at the end of the backward pass.
    up_gradient, down_gradient = jax.lax.optimization_barrier((up_gradient, kernel_gradient(hidden, gradient, down)))
    x_gradient, up_kernel_gradient = matmul_gradients(x, up, up_gradient)
    return x_gradient, jnp.zeros_like(factor), up_kernel_gradient, down_gradient


def product_then(
    function: Callable[..., Array],
    fp8: bool,
    x: Float[Array, "... i"],
    kernel: Float[Array, "i o"],
    factor: Float[Array, "... 1"],
    *other: Float[Array, "... o"],
) -> Float[Array, "... o"]:
    """function(x @ kernel, factor, *other) in the type of x.

    The function works on each element, in float32. On a Hopper GPU this can be one kernel, if its tiles fit.

    Args:
      function: of factor · product, and of an array of the product's shape, where it wants one.
      fp8: x and kernel are rounded to eight bits; their scales go into the factor.
      x, kernel: as of `matmul`.
      factor: one number a row.
      other: that array.
    """
    dtype = x.dtype
    if fp8:
        (x, row_scale), (kernel, scale) = rounded(x, axis=-1), rounded(kernel)
        factor = factor * (row_scale * scale)
    hopper, plain = hopper_module("hopper"), partial(_unfused, function, dtype)
    if hopper is not None and hopper.fits(x, kernel):
        fused = unless_batched(partial(hopper.product_then, function, dtype), plain)
        return fused(x, kernel, factor, *other)
    return plain(x, kernel, factor, *other)


def _unfused(function, dtype, x, kernel, *more):
    inner = matmul(x.astype(dtype), kernel).astype(jnp.float32)
    return function(inner, *(array.astype(jnp.float32) for array in more)).astype(dtype)


@cache  # one function for each slope, so that layers share a kernel
def _activation(slope: float, dtype: jnp.dtype) -> Callable[[Array, Array], Array]:
    def _leaky_squared(product: Array, factor: Array) -> Array:
        """The square alone does not tell on which side of zero its argument was: its last bit does."""
        inner = factor * product
        return with_last_bit(jnp.square(jnp.maximum(inner, slope * inner)), inner < 0, dtype)

    return _leaky_squared if slope else _relu_squared


@cache
def _derivative(slope: float, dtype: jnp.dtype) -> Callable[[Array, Array, Array], Array]:
    def _leaky_squared_derivative(gradient: Array, factor: Array, hidden: Array) -> Array:
        """With the function's own result as what it is differentiated at."""
        root = hidden * jax.lax.rsqrt(jnp.maximum(hidden, SMALLEST))
        return 2.0 * factor * jnp.where(last_bit(hidden, dtype), -slope, 1.0) * root * gradient

    return _leaky_squared_derivative if slope else _relu_squared_derivative


def _relu_squared(product: Array, factor: Array) -> Array:
    return jnp.square(factor * jnp.maximum(product, 0.0))


def _relu_squared_derivative(gradient: Array, factor: Array, hidden: Array) -> Array:
    """With the function's own result as what it is differentiated at."""
    root = hidden * jax.lax.rsqrt(jnp.maximum(hidden, SMALLEST))
    return 2.0 * factor * root * gradient


def with_last_bit(x: Float[Array, ...], bit: Bool[Array, ...], dtype: jnp.dtype) -> Float[Array, ...]:
    """The float32 number nearest to x ≥ 0 among those of `dtype` whose last bit is this one.

    It is off by at most a unit in the last place of `dtype`, where rounding is by half of one.
    """
    unit = _last_unit(dtype)
    offset = jnp.where(bit, unit, 0)
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) - offset + unit
    return jax.lax.bitcast_convert_type((bits & -2 * unit) + offset, jnp.float32)


def last_bit(x: Float[Array, ...], dtype: jnp.dtype) -> Bool[Array, ...]:
    """The last bit of float32 numbers that `dtype` holds, too."""
    return (jax.lax.bitcast_convert_type(x, jnp.int32) & _last_unit(dtype)) != 0


def _last_unit(dtype: jnp.dtype) -> int:
    """The last bit of a bfloat16 or float32 number among the bits of that float32 number."""
    return 1 << 8 * (4 - jnp.dtype(dtype).itemsize)
