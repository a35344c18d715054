"""From hidden states to logits and losses, the logits passed over once. Shapes as in plain.py.

The logits are the widest array of all. Where a loss is differentiated, the kernel that reads a row of them for the
loss writes their gradient in the same pass, over them: it is known but for one factor a position, the gradient of
the loss, and that may as well multiply the narrower arrays later.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from jgolf.model.kernels.door import Choice, choose, triton
from jgolf.model.kernels.products import instantiated, matmul_gradients, product

TILE_VALUES = 8192
"""Logits that a program holds at once."""
NUM_WARPS = 8
PART_VALUES = 1 << 28
"""Logits of a mean loss that are in memory at once, where it is differentiated."""
LARGEST_SHIFT = 40.0
"""A cap up to which no logit is so far below the cap that its exponential vanishes: the row's maximum is not needed."""


def softcap(logits: Float[Array, ...], cap: float) -> Float[Array, ...]:
    """cap · tanh(logits / cap), float32; a cap of 0 leaves them as they are."""
    logits = logits.astype(jnp.float32)
    return cap * jnp.tanh(logits / cap) if cap else logits


def token_nll(logits: Float[Array, "B T V"], targets: Int[Array, "B T *n"]) -> Float[Array, "B T *n"]:
    """Negative log likelihood in nats of each target, or of several tokens in a target's place, float32."""
    picked = jnp.take_along_axis(logits, targets.reshape(*logits.shape[:-1], -1).astype(jnp.int32), axis=-1)
    return (jax.nn.logsumexp(logits, axis=-1, keepdims=True) - picked).reshape(targets.shape)


def head_losses(
    choice: Choice, cap: float, hidden: Float[Array, "B T D"], kernel: Float[Array, "D V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """`token_nll` of the softcapped logits hidden @ kernel.

    Args:
      choice: which forms are allowed.
      cap: of the logits; 0 for none.
      hidden, kernel: normalised hidden states, and the head's kernel.
      targets: ids of the tokens that follow.
    """
    return choose(
        choice,
        "loss",
        partial(plain_head_losses, cap),
        lambda interpret, *arrays: _head_losses(interpret, cap, *arrays),
        _obstacle(choice, hidden.dtype, targets.size, kernel.shape[1]),
        *(hidden, kernel, targets),
    )


def mean_head_loss(
    choice: Choice, cap: float, hidden: Float[Array, "B T D"], kernel: Float[Array, "D V"], targets: Int[Array, "B T"]
) -> Float[Array, ""]:
    """The mean of `head_losses`, of whose logits only a part is in memory at once where it is differentiated.

    All positions' losses have one factor there, so the products of a part's derivative need not wait for it.
    """
    return choose(
        choice,
        "loss",
        lambda *arrays: jnp.mean(plain_head_losses(cap, *arrays)),
        lambda interpret, *arrays: _mean_head_loss(interpret, cap, *arrays),
        _obstacle(choice, hidden.dtype, targets.size, kernel.shape[1]),
        *(hidden, kernel, targets),
    )


def plain_head_losses(cap: float, hidden: Array, kernel: Array, targets: Array) -> Array:
    """`head_losses` in ordinary JAX."""
    return token_nll(softcap(product(hidden, kernel), cap), targets)


def logit_losses(
    choice: Choice, cap: float, logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """`head_losses` of logits that are there already, not capped yet."""
    return choose(
        choice,
        "loss",
        lambda logits, targets: token_nll(softcap(logits, cap), targets),
        lambda interpret, *arrays: _logit_losses(interpret, cap, *arrays),
        _obstacle(choice, logits.dtype, targets.size, logits.shape[-1]),
        *(logits, targets),
    )


def _obstacle(choice: Choice, dtype: jnp.dtype, positions: int, vocab_size: int) -> str | None:
    if choice != "interpret" and dtype != jnp.bfloat16:
        return f"it is made for bfloat16, not for {dtype}"
    if vocab_size & (vocab_size - 1):
        return f"the vocabulary has to be a power of two, not {vocab_size}"
    if positions % _tile_rows(vocab_size):
        return f"the number of tokens has to be a multiple of {_tile_rows(vocab_size)}, not {positions}"
    return None if triton() else "this JAX has no Triton backend for Pallas"


def _tile_rows(vocab_size: int) -> int:
    return max(1, TILE_VALUES // vocab_size)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head_losses(interpret: bool, cap: float, hidden: Array, kernel: Array, targets: Array) -> Array:
    return _pass_over_logits(interpret, cap, False, product(hidden, kernel), targets)[0]


def _forward(interpret, cap, *primals):
    hidden, kernel, targets = (primal.value for primal in primals)
    losses, logits_gradient = _pass_over_logits(interpret, cap, True, product(hidden, kernel), targets)
    # As in `matmul`: the hidden states are for the kernel's gradient only.
    return losses, (hidden if primals[1].perturbed else None, kernel, logits_gradient)


def _backward(interpret, cap, residuals, gradient):
    hidden, kernel, logits_gradient = residuals
    factor = instantiated(gradient)[..., None].astype(jnp.float32)
    scaled = None if hidden is None else (factor * hidden).astype(hidden.dtype)
    hidden_gradient, kernel_gradient = matmul_gradients(scaled, kernel, logits_gradient)
    return (factor * hidden_gradient).astype(hidden_gradient.dtype), kernel_gradient, None


_head_losses.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean_head_loss(interpret: bool, cap: float, hidden: Array, kernel: Array, targets: Array) -> Array:
    return jnp.mean(_head_losses(interpret, cap, hidden, kernel, targets))


def _mean_forward(interpret, cap, *primals):
    hidden, kernel, targets = (primal.value for primal in primals)
    flat_hidden, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    total, hidden_gradients = jnp.zeros(()), []
    kernel_gradient = jnp.zeros_like(kernel) if primals[1].perturbed else None
    for here in _parts(targets.size, kernel.shape[1]):
        # One after the other: left alone, the compiler may make all parts' logits first.
        part, total, kernel_gradient = jax.lax.optimization_barrier((flat_hidden[here], total, kernel_gradient))
        losses, logits_gradient = _pass_over_logits(interpret, cap, True, product(part, kernel), flat_targets[here])
        for_kernel = None if kernel_gradient is None else part
        hidden_gradient, of_part = matmul_gradients(for_kernel, kernel, logits_gradient)
        hidden_gradients.append(hidden_gradient)
        total += jnp.sum(losses)
        kernel_gradient = None if kernel_gradient is None else kernel_gradient + of_part
    hidden_gradient = jnp.concatenate(hidden_gradients).reshape(hidden.shape)
    return total / targets.size, (hidden_gradient, kernel_gradient, targets)


def _mean_backward(interpret, cap, residuals, gradient):
    hidden_gradient, kernel_gradient, targets = residuals
    factor = instantiated(gradient) / targets.size
    kernel_gradient = None if kernel_gradient is None else factor * kernel_gradient
    return (factor * hidden_gradient).astype(hidden_gradient.dtype), kernel_gradient, None


_mean_head_loss.defvjp(_mean_forward, _mean_backward, symbolic_zeros=True)


def _parts(positions: int, vocab_size: int) -> list[slice]:
    """The fewest parts of whole tiles that have at most `PART_VALUES` logits, all as long but for the last."""
    tile = _tile_rows(vocab_size)
    count = -(-positions * vocab_size // PART_VALUES)
    length = -(-positions // (count * tile)) * tile
    return [slice(start, min(start + length, positions)) for start in range(0, positions, length)]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _logit_losses(interpret: bool, cap: float, logits: Array, targets: Array) -> Array:
    return _pass_over_logits(interpret, cap, False, logits, targets)[0]


def _logits_backward(interpret, cap, logits_gradient, gradient):
    return (gradient[..., None] * logits_gradient).astype(logits_gradient.dtype), None


_logit_losses.defvjp(
    lambda interpret, cap, logits, targets: _pass_over_logits(interpret, cap, True, logits, targets), _logits_backward
)


def _pass_over_logits(
    interpret: bool, cap: float, with_gradient: bool, logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> tuple[Array, ...]:
    """The losses, and in place of the logits the gradient of each row's loss."""
    vocab_size = logits.shape[-1]
    rows = logits.reshape(-1, vocab_size)
    tile = _tile_rows(vocab_size)

    def kernel(logits_ref, target_ref, loss_ref, *gradient_ref):
        capped, slope = _softcap_and_slope(logits_ref[...].astype(jnp.float32), cap)
        shift = cap if 0 < cap <= LARGEST_SHIFT else jnp.max(capped, axis=-1, keepdims=True)
        weights = jnp.exp(capped - shift)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        is_target = jax.lax.broadcasted_iota(jnp.int32, capped.shape, 1) == target_ref[...]
        target_logit = jnp.sum(jnp.where(is_target, capped, 0.0), axis=-1, keepdims=True)
        loss_ref[...] = jnp.log(total) + shift - target_logit
        for ref in gradient_ref:
            probability = weights * (1 / total)
            ref[...] = (slope * jnp.where(is_target, probability - 1, probability)).astype(ref.dtype)

    def tiled(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((tile, width), lambda i: (i, 0))

    losses = jax.ShapeDtypeStruct((len(rows), 1), jnp.float32)
    gradient = [jax.ShapeDtypeStruct(rows.shape, rows.dtype)] if with_gradient else []
    results = pl.pallas_call(
        kernel,
        grid=(len(rows) // tile,),
        in_specs=[tiled(vocab_size), tiled(1)],
        out_specs=[tiled(1), *(tiled(vocab_size) for _ in gradient)],
        out_shape=[losses, *gradient],
        input_output_aliases={0: 1} if with_gradient else {},
        compiler_params=triton().CompilerParams(num_warps=NUM_WARPS, num_stages=1),
        interpret=interpret,
        name="losses_and_gradients" if with_gradient else "losses",
    )(rows, targets.reshape(-1, 1).astype(jnp.int32))
    shapes = (targets.shape, logits.shape)
    return tuple(result.reshape(shape) for result, shape in zip(results, shapes, strict=False))


def _softcap_and_slope(logits: Array, cap: float) -> tuple[Array, Array | float]:
    """`softcap` and its derivative; tanh(x) = 2σ(2x) − 1 takes one exponential."""
    if not cap:
        return logits, 1.0
    share = 1 / (1 + jnp.exp(-2 / cap * logits))
    return cap * (2 * share - 1), 4 * share * (1 - share)
