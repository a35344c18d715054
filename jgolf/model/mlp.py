"""The MLP as one operation, with its ReLU² inside the matrix products where the GPU allows it.

Left to the compiler, the square reads and writes the network's widest activations once more, forward and
backward. In `product_then` the tiles of a product pass through a function on their way to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jgolf.model.gradients import kernel_gradient, matmul, matmul_gradients

SMALLEST = 1e-24
"""The root of 0 is 0; below this its slope no longer grows, so that second derivatives stay finite in float32."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def mlp(
    fused: bool,
    x: Float[Array, "... D"],
    factor: Float[Array, "... 1"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
) -> Float[Array, "... D"]:
    """relu(factor · (x @ up))² @ down, for a constant factor > 0; `fused` allows a kernel of our own."""
    return _forward(fused, x, factor, up, down)[0]


def _forward(fused, x, factor, up, down):
    hidden = product_then(_relu_squared, fused, x, up, factor)
    return matmul(hidden, down), (x, factor, up, down, hidden)


def _backward(fused, residuals, gradient):
    x, factor, up, down, hidden = residuals
    up_gradient = product_then(_relu_squared_derivative, fused, gradient, down.T, factor, hidden)
    # As in `matmul`: the kernel's gradient now, not at the end of the backward pass.
    up_gradient, down_gradient = jax.lax.optimization_barrier((up_gradient, kernel_gradient(hidden, gradient, down)))
    x_gradient, up_kernel_gradient = matmul_gradients(x, up, up_gradient)
    return x_gradient, jnp.zeros_like(factor), up_kernel_gradient, down_gradient


mlp.defvjp(_forward, _backward)


def product_then(
    function: Callable[..., Array],
    fused: bool,
    x: Float[Array, "... i"],
    kernel: Float[Array, "i o"],
    *more: Float[Array, "... n"],
) -> Float[Array, "... o"]:
    """function(x @ kernel, *more) in the type of x.

    The function works on each element, in float32. On a Hopper GPU this can be one kernel, if its tiles fit.

    Args:
      function: takes the product, and `more` of the same shape.
      fused: allow that kernel.
      x, kernel: as of `matmul`.
      more: one number a row, and where wanted an array of the product's shape.
    """
    hopper = _hopper_kernel() if fused else None
    if hopper is not None and hopper.fits(x, kernel):
        multiply = jax.custom_batching.custom_vmap(partial(hopper.product_then, function))
        multiply.def_vmap(partial(_each, partial(_unfused, function)))  # the kernel itself cannot be batched
        return multiply(x, kernel, *more)
    return _unfused(function, x, kernel, *more)


def _hopper_kernel() -> ModuleType | None:
    """The kernel's module on a Hopper GPU; it takes most of a second to import, which others are spared."""
    device = jax.devices()[0]
    if device.platform != "gpu" or getattr(device, "compute_capability", "") != "9.0":
        return None
    from jgolf.model import hopper

    return hopper


def _unfused(function, x, kernel, *more):
    product = matmul(x, kernel).astype(jnp.float32)
    return function(product, *(array.astype(jnp.float32) for array in more)).astype(x.dtype)


def _each(function, axis_size, batched, *arguments):
    """`function` for every one of a batch, as `custom_vmap` asks for it."""
    return jax.vmap(function, [0 if one else None for one in batched], axis_size=axis_size)(*arguments), True


def _relu_squared(product: Array, factor: Array) -> Array:
    return jnp.square(factor * jnp.maximum(product, 0.0))


def _relu_squared_derivative(gradient: Array, factor: Array, hidden: Array) -> Array:
    """With the function's own result as what it is differentiated at."""
    root = hidden * jax.lax.rsqrt(jnp.maximum(hidden, SMALLEST))
    return 2.0 * factor * root * gradient
