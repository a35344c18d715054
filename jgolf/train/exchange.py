"""Gradients averaged over the devices beside the backward pass: a layer's travel while those before it are computed."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import jax
from jax.flatten_util import ravel_pytree

from jgolf.model.functional import Params


def layers_apart(params: Params) -> list[Params]:
    """The parameters of each layer, and as one more part all others."""
    parts: dict[str | None, Params] = defaultdict(dict)
    for path, value in params.items():
        parts[path.split("/")[1] if path.startswith("blocks/") else None][path] = value
    return list(parts.values())


def averaged_in_backward(params: Params, axis_name: str) -> Params:
    """The same parameters, whose gradients are averaged over a mesh axis where they leave the backward pass.

    For use inside `shard_map`, within the function that is differentiated. Each layer's gradients are one all-reduce,
    which waits for them alone; where a layer runs several times, for the sum over its runs. The gradients of all other
    parameters, of which the embedding's come last of all, are one more.
    """
    return {path: value for part in layers_apart(params) for path, value in _averaged(axis_name, part).items()}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _averaged(axis_name: str, params: Params) -> Params:
    return params


def _forward(axis_name: str, params: Params) -> tuple[Params, None]:
    return params, None


def _backward(axis_name: str, _: None, grads: Params) -> tuple[Params]:
    # As one array: what XLA combines of several is decided by their sizes, not by the layer that they belong to.
    flat, restored = ravel_pytree(grads)
    return (restored(jax.lax.pmean(flat, axis_name)),)


_averaged.defvjp(_forward, _backward)
