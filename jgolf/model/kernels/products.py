"""The matrix product: in ordinary JAX, and with a derivative written by hand, which is faster and keeps less."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel in the type of x; float32 means full float32 on every backend (no TF32)."""
    return jnp.matmul(x, kernel.astype(x.dtype), precision=_precision(x))


@jax.custom_vjp
def matmul(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """`product` with its own derivative."""
    return product(x, kernel)


def _matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def matmul_gradients(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], gradient: Float[Array, "... o"]
) -> tuple[Float[Array, "... i"], Float[Array, "i o"]]:
    """Both parts of `matmul`'s derivative."""
    x_gradient = jnp.matmul(gradient, kernel.astype(x.dtype).T, precision=_precision(x))
    # Both or neither: left alone, the compiler puts off all kernels' gradients to the end of the backward pass
    # and keeps the activations until then.
    return jax.lax.optimization_barrier((x_gradient, kernel_gradient(x, gradient, kernel)))


matmul.defvjp(_matmul_forward, lambda residuals, gradient: matmul_gradients(*residuals, gradient))


def kernel_gradient(
    x: Float[Array, "... i"], gradient: Float[Array, "... o"], kernel: Float[Array, "i o"]
) -> Float[Array, "i o"]:
    """The kernel's part of `matmul`'s derivative, summed in float32."""
    positions = tuple(range(x.ndim - 1))
    summed = jax.lax.dot_general(
        x, gradient, ((positions, positions), ((), ())), _precision(x), preferred_element_type=jnp.float32
    )
    return summed.astype(kernel.dtype)


def _precision(x: Array) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
