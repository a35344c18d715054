"""The linear map that layers are made of. Shapes as in plain.py."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jgolf.model.kernels.products import matmul


class Linear(nnx.Module):
    """A matrix without bias, kernel (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs)))

    def __call__(self, x: Float[Array, "... i"], scale: Float[Array, " o"] | float = 1.0) -> Float[Array, "... o"]:
        """scale · (x @ kernel); the scale is taken into the kernel, where it costs next to nothing."""
        return matmul(x, self.kernel[...] * scale)
