"""The MLP as one operation, with its activation inside the matrix products where the GPU allows it.

Left to the compiler, the square reads and writes the network's widest activations once more, forward and
backward. In `product_then` the tiles of a product pass through a function on their way to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jgolf.model.kernels.door import Choice, choose, is_hopper
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
    x: Float[Array, "... D"],
    factor: Float[Array, "... 1"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
) -> Float[Array, "... D"]:
    """activation(factor · (x @ up)) @ down, for a constant factor > 0 and the square of a leaky ReLU.

    Args:
      choice: which forms are allowed.
      slope: of the activation below zero, before the square.
      x, factor, up, down: the input, one number for each of its rows, and the two kernels.
    """
    kernel = _mlp if slope == 0 else partial(_leaky_mlp, slope)
    return choose(
        choice, "mlp", partial(plain_mlp, slope), lambda interpret, *arrays: kernel(*arrays), None, x, factor, up, down
    )


def plain_mlp(slope: float, x: Array, factor: Array, up: Array, down: Array) -> Array:
    """`mlp` in ordinary JAX."""
    inner = jax.lax.stop_gradient(factor) * product(x, up)
    return product(squared(slope, inner).astype(x.dtype), down)


def squared(slope: float, inner: Array) -> Array:
    """The square of a leaky ReLU."""
    return jnp.square(jnp.where(inner > 0, inner, slope * inner))


@jax.custom_vjp
def _mlp(x: Array, factor: Array, up: Array, down: Array) -> Array:
    (hidden,) = product_then(_relu_squared, x, up, factor)
    return matmul(hidden, down)


def _forward(*primals):
    x, factor, up, down = (primal.value for primal in primals)
    (hidden,) = product_then(_relu_squared, x, up, factor)
    return matmul(hidden, down), (_for_kernels(primals), factor, up, down, hidden)


def _backward(residuals, gradient):
    x, factor, up, down, hidden = residuals
    gradient = instantiated(gradient)
    (up_gradient,) = product_then(_relu_squared_derivative, gradient, down.T, factor, hidden)
    if x is None:
        return input_gradient(up_gradient, up), None, None, None
    return _gradients(x, factor, up, down, hidden, gradient, up_gradient)


_mlp.defvjp(_forward, _backward, symbolic_zeros=True)


def _for_kernels(primals: tuple) -> Array | None:
    """The input, which the kernels' gradients need; None where nobody asks for either of them."""
    x, _, up, down = primals
    return x.value if up.perturbed or down.perturbed else None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _leaky_mlp(slope: float, x: Array, factor: Array, up: Array, down: Array) -> Array:
    _, hidden = product_then(_leaky_squared(slope), x, up, factor)
    return matmul(hidden, down)


def _leaky_forward(slope, *primals):
    x, factor, up, down = (primal.value for primal in primals)
    # The activation's result no longer tells on which side of zero its argument was, so that is what is kept.
    inner, hidden = product_then(_leaky_squared(slope), x, up, factor)
    return matmul(hidden, down), (_for_kernels(primals), factor, up, down, inner)


def _leaky_backward(slope, residuals, gradient):
    x, factor, up, down, inner = residuals
    gradient = instantiated(gradient)
    if x is None:
        (up_gradient,) = product_then(_leaky_squared_slope(slope), gradient, down.T, factor, inner)
        return input_gradient(up_gradient, up), None, None, None
    up_gradient, hidden = product_then(_leaky_squared_derivative(slope), gradient, down.T, factor, inner)
    return _gradients(x, factor, up, down, hidden, gradient, up_gradient)


_leaky_mlp.defvjp(_leaky_forward, _leaky_backward, symbolic_zeros=True)


def _gradients(x, factor, up, down, hidden, gradient, up_gradient):
    # As in `matmul`: the kernel's gradient now, not at the end of the backward pass.
    up_gradient, down_gradient = jax.lax.optimization_barrier((up_gradient, kernel_gradient(hidden, gradient, down)))
    x_gradient, up_kernel_gradient = matmul_gradients(x, up, up_gradient)
    return x_gradient, jnp.zeros_like(factor), up_kernel_gradient, down_gradient


def product_then(
    function: Callable[..., tuple[Array, ...]],
    x: Float[Array, "... i"],
    kernel: Float[Array, "i o"],
    *more: Float[Array, "... n"],
) -> tuple[Float[Array, "... o"], ...]:
    """function(x @ kernel, *more) in the type of x.

    The function works on each element, in float32. On a Hopper GPU this can be one kernel, if its tiles fit.

    Args:
      function: takes the product, and `more` of the same shape; returns one or two results.
      x, kernel: as of `matmul`.
      more: one number a row, and where wanted an array of the product's shape.
    """
    hopper = _hopper_kernel()
    if hopper is not None and hopper.fits(x, kernel):
        multiply = jax.custom_batching.custom_vmap(partial(hopper.product_then, function))
        multiply.def_vmap(partial(_each, partial(_unfused, function)))  # the kernel itself cannot be batched
        return multiply(x, kernel, *more)
    return _unfused(function, x, kernel, *more)


def _hopper_kernel() -> ModuleType | None:
    """The kernel's module on a Hopper GPU; it takes most of a second to import, which others are spared."""
    if not is_hopper():
        return None
    from jgolf.model.kernels import hopper

    return hopper


def _unfused(function, x, kernel, *more):
    inner = matmul(x, kernel).astype(jnp.float32)
    results = function(inner, *(array.astype(jnp.float32) for array in more))
    return tuple(result.astype(x.dtype) for result in results)


def _each(function, axis_size, batched, *arguments):
    """`function` for every one of a batch, as `custom_vmap` asks for it."""
    results = jax.vmap(function, [0 if one else None for one in batched], axis_size=axis_size)(*arguments)
    return results, (True,) * len(results)


def _relu_squared(product: Array, factor: Array) -> tuple[Array]:
    return (jnp.square(factor * jnp.maximum(product, 0.0)),)


def _relu_squared_derivative(gradient: Array, factor: Array, hidden: Array) -> tuple[Array]:
    """With the function's own result as what it is differentiated at."""
    root = hidden * jax.lax.rsqrt(jnp.maximum(hidden, SMALLEST))
    return (2.0 * factor * root * gradient,)


@cache  # one function for each slope, so that layers share a kernel
def _leaky_squared(slope: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    def _leaky_squared(product: Array, factor: Array) -> tuple[Array, Array]:
        inner = factor * product
        return inner, jnp.square(jnp.maximum(inner, slope * inner))

    return _leaky_squared


@cache
def _leaky_squared_derivative(slope: float) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    def _leaky_squared_derivative(gradient: Array, factor: Array, inner: Array) -> tuple[Array, Array]:
        """The derivative times the gradient, and the function's result once more: it was not kept."""
        leaky = jnp.maximum(inner, slope * inner)
        slopes = jnp.where(inner > 0, 1.0, slope)
        return 2.0 * factor * slopes * leaky * gradient, jnp.square(leaky)

    return _leaky_squared_derivative


@cache
def _leaky_squared_slope(slope: float) -> Callable[[Array, Array, Array], tuple[Array]]:
    def _leaky_squared_slope(gradient: Array, factor: Array, inner: Array) -> tuple[Array]:
        """The derivative times the gradient."""
        return _leaky_squared_derivative(slope)(gradient, factor, inner)[:1]

    return _leaky_squared_slope
