"""Gradients summed over the devices beside the backward pass: a layer's travel while those before it are computed.

A part's gradients, a layer's or those of all else, leave the backward pass as one array: XLA combines several by their
sizes, whatever layers they belong to. They are cut up outside of it, so that a function that holds the backward pass, a
branch of a conditional say, need not write them a second time.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jgolf.model.functional import Params

Sums = list[Float[Array, " n"]]
"""An array for each of `layers_apart`, all of its parameters one after the other."""


def is_beside(num_micro_batches: int, num_devices: int) -> bool:
    """Whether a step exchanges its gradients in this way: several micro-batches' are exchanged once, after the last."""
    return num_micro_batches == 1 and num_devices > 1


def layers_apart(params: Params) -> list[Params]:
    """The parameters of each layer, and as one more part all others."""
    parts: dict[str | None, Params] = defaultdict(dict)
    for path, value in params.items():
        parts[path.split("/")[1] if path.startswith("blocks/") else None][path] = value
    return list(parts.values())


def no_sums(params: Params) -> Sums:
    """Zeros, for `summed_in_backward`."""
    return [jnp.zeros_like(ravel_pytree(part)[0]) for part in layers_apart(params)]


def summed_in_backward(params: Params, sums: Sums, axis_name: str) -> Params:
    """The same parameters; their gradients, summed over a mesh axis, become those of `sums`.

    For use inside `shard_map`, within a function that is differentiated with respect to `sums`, whose values do not
    matter. Each part's sum is one all-reduce, which waits for that part's gradients alone; where a layer runs several
    times, for all its runs'.
    """
    parts = zip(layers_apart(params), sums, strict=True)
    return {path: value for part, sum_ in parts for path, value in _summed(axis_name, part, sum_).items()}


def means_of(sums: Sums, params: Params, axis_name: str) -> Params:
    """Each parameter's share of the sums, divided by the number of devices."""
    num_devices = jax.lax.axis_size(axis_name)
    parts = zip(layers_apart(params), sums, strict=True)
    means = {path: mean for part, sum_ in parts for path, mean in ravel_pytree(part)[1](sum_ / num_devices).items()}
    return {path: means[path] for path in params}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(axis_name: str, params: Params, sum_: Float[Array, " n"]) -> Params:
    return params


def _forward(axis_name: str, params: Params, sum_: Float[Array, " n"]) -> tuple[Params, None]:
    return params, None


def _backward(axis_name: str, _: None, grads: Params) -> tuple[None, Float[Array, " n"]]:
    return None, jax.lax.psum(ravel_pytree(grads)[0], axis_name)


_summed.defvjp(_forward, _backward)
