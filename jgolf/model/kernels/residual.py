"""The residual stream after an update that a matrix product makes, with what the next layer reads of it.

On a Hopper GPU the product's kernel adds the stream to its tiles and sums up their squares (`hopper_residual.py`): the
update itself is never in the GPU's memory, and nothing has to be read again for the norm. The backward pass begins
with one pass over rows, as everywhere.
"""

from __future__ import annotations

from functools import partial

import jax
from jaxtyping import Array, Float

from jgolf.model.kernels.door import Choice, choose, hopper_module, unless_batched
from jgolf.model.kernels.products import instantiated, matmul, matmul_gradients
from jgolf.model.kernels.rowwise import Rows, has_kernel, row_gradient, rowwise
from jgolf.model.norm import normalised


def normalised_stream(
    choice: Choice, stream: Rows
) -> tuple[Float[Array, "... D"], Float[Array, "... D"], Float[Array, "... 1"]]:
    """`normalised` of a stream, or of its addends, in one pass over rows."""
    return rowwise(choice, normalised, [stream], second_is_first=True, input_result=0)


def normalised_sum(
    choice: Choice, stream: Float[Array, "... D"], y: Float[Array, "... i"], kernel: Float[Array, "i D"]
) -> tuple[Float[Array, "... D"], Float[Array, "... D"], Float[Array, "... 1"]]:
    """`normalised` of stream + y @ kernel.

    Args:
      choice: which forms are allowed.
      stream, y, kernel: the first addend, and the factors of the second.
    """
    hopper = hopper_module("hopper_residual") if choice == "auto" else None
    if hopper is None or not (hopper.fits(stream, y, kernel) and has_kernel(stream)):
        return _apart(choice, stream, y, kernel)
    return choose(choice, "adding to the stream", partial(_apart, "plain"), _normalised_sum, None, stream, y, kernel)


def _apart(choice: Choice, stream: Array, y: Array, kernel: Array) -> tuple[Array, ...]:
    """The product, then a pass over rows."""
    return normalised_stream(choice, (stream, matmul(y, kernel)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalised_sum(interpret: bool, stream: Array, y: Array, kernel: Array) -> tuple[Array, ...]:
    x, norm = _product_added(stream, y, kernel)
    return x, x, norm


def _product_added(*arrays: Array) -> tuple[Array, Array]:
    """The sum and its norm's factor."""

    def apart(*arrays):
        x, _, norm = _apart("plain", *arrays)
        return x, norm

    return unless_batched(hopper_module("hopper_residual").product_added, apart)(*arrays)


def _forward(interpret, *primals):
    stream, y, kernel = (primal.value for primal in primals)
    x, norm = _product_added(stream, y, kernel)
    # As in `matmul`: y is for the kernel's gradient only.
    return (x, x, norm), (x, y if primals[2].perturbed else None, kernel)


def _backward(interpret, residuals, gradients):
    x, y, kernel = residuals
    gradient = row_gradient(interpret, normalised, x, [instantiated(gradient) for gradient in gradients])
    return gradient, *matmul_gradients(y, kernel, gradient)


_normalised_sum.defvjp(_forward, _backward, symbolic_zeros=True)
