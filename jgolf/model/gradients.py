"""Operations whose derivative is written by hand, because autodiff's is slower or keeps more for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel in the type of x; float32 means full float32 on every backend (no TF32)."""
    return jnp.matmul(x, kernel.astype(x.dtype), precision=_precision(x))


def _matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals, gradient):
    x, kernel = residuals
    x_gradient = jnp.matmul(gradient, kernel.astype(x.dtype).T, precision=_precision(x))
    positions = tuple(range(x.ndim - 1))
    kernel_gradient = jax.lax.dot_general(
        x, gradient, ((positions, positions), ((), ())), _precision(x), preferred_element_type=jnp.float32
    )
    # Both or neither: left alone, the compiler puts off all kernels' gradients to the end of the backward pass
    # and keeps the activations until then.
    return jax.lax.optimization_barrier((x_gradient, kernel_gradient.astype(kernel.dtype)))


matmul.defvjp(_matmul_forward, _matmul_backward)


def _precision(x: Array) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


@jax.custom_vjp
def relu_squared(x: Float[Array, "... dim"], scale: Float[Array, "... 1"]) -> Float[Array, "... dim"]:
    """relu(scale · x)² for a constant scale > 0. Its derivative needs nothing but the result."""
    # The barrier hides the square from the compiler, which would keep its root as well.
    return jax.lax.optimization_barrier(jnp.square(scale * jax.nn.relu(x)).astype(x.dtype))


def _relu_squared_forward(x, scale):
    y = relu_squared(x, scale)
    return y, (y, scale)


def _relu_squared_backward(residuals, gradient):
    y, scale = residuals
    y32, gradient = y.astype(jnp.float32), gradient.astype(jnp.float32)
    # The root's own slope at 0 is infinite: second derivatives must not see it.
    root = jnp.where(y32 > 0, jnp.sqrt(jnp.where(y32 > 0, y32, 1.0)), 0.0)
    return (2 * scale * root * gradient).astype(y.dtype), jnp.zeros_like(scale)


relu_squared.defvjp(_relu_squared_forward, _relu_squared_backward)
