"""The matrix product: in ordinary JAX, and with a derivative written by hand, which is faster and keeps less."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


def product(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel in the type of x; float32 means full float32 on every backend (no TF32)."""
    return jnp.matmul(x, kernel.astype(x.dtype), precision=_precision(x))


@jax.custom_vjp
def matmul(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """`product` with its own derivative."""
    return product(x, kernel)


def _matmul_forward(x, kernel):
    # x is there for the kernel's gradient only: where nobody asks for that, it is not kept.
    return matmul(x.value, kernel.value), (x.value if kernel.perturbed else None, kernel.value)


def _matmul_backward(residuals, gradient):
    return matmul_gradients(*residuals, instantiated(gradient))


def instantiated(gradient: Array | SymbolicZero) -> Array:
    """The gradient as an array, where it may be a zero that is none."""
    return jnp.zeros(gradient.shape, gradient.dtype) if isinstance(gradient, SymbolicZero) else gradient


def input_gradient(gradient: Float[Array, "... o"], kernel: Float[Array, "i o"]) -> Float[Array, "... i"]:
    """The input's part of `matmul`'s derivative."""
    return jnp.matmul(gradient, kernel.astype(gradient.dtype).T, precision=_precision(gradient))


def matmul_gradients(
    x: Float[Array, "... i"] | None, kernel: Float[Array, "i o"], gradient: Float[Array, "... o"]
) -> tuple[Float[Array, "... i"], Float[Array, "i o"] | None]:
    """Both parts of `matmul`'s derivative; without x, the input's alone."""
    x_gradient = input_gradient(gradient, kernel)
    if x is None:
        return x_gradient, None
    # Both or neither: left alone, the compiler puts off all kernels' gradients to the end of the backward pass
    # and keeps the activations until then.
    return jax.lax.optimization_barrier((x_gradient, kernel_gradient(x, gradient, kernel)))


matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


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
