"""Muon: momentum, then orthogonalization of each matrix by Newton-Schulz iterations.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
It agrees with `optax.contrib.muon` but for three choices of the reference recipe: the momentum is a sum
(m ← μ·m + g) rather than an average with its bias corrected, which matters in the first steps and while μ
changes; the update is scaled by √max(1, outputs/inputs); and coefficients stay float32 in bfloat16 iterations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7
MAX_SHARING_DEVICES = 8
"""More devices share in groups that all do the same: a host's eight exchange over NVLink, not over the network."""

Batched = Callable[[Float[Array, "n a b"]], Float[Array, "n a b"]]


def newton_schulz(matrices: Float[Array, "n a b"], steps: int = 5, dtype: str = "bfloat16") -> Float[Array, "n a b"]:
    """Approximately orthogonalizes a batch of matrices with a ≤ b: singular values move towards 1.

    X = G / (‖G‖ + ε), then `steps` times A = XXᵀ, X ← aX + (bA + cA²)X, in `dtype`.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    norm = jnp.sqrt(jnp.sum(jnp.square(matrices.astype(jnp.float32)), axis=(1, 2), keepdims=True))
    x = (matrices / (norm + EPSILON)).astype(dtype)

    def combine(scale: float, left: Array, other_scale: float, right: Array) -> Array:
        # In float32: the coefficients themselves must not be rounded to bfloat16.
        return (scale * left.astype(jnp.float32) + other_scale * right.astype(jnp.float32)).astype(dtype)

    for _ in range(steps):
        gram = jnp.einsum("nij,nkj->nik", x, x, precision=precision)
        polynomial = combine(b, gram, c, jnp.einsum("nij,njk->nik", gram, gram, precision=precision))
        x = combine(a, x, 1.0, jnp.einsum("nij,njk->nik", polynomial, x, precision=precision))
    return x


def share_over_devices(orthogonalize: Batched, axis_name: str) -> Batched:
    """Each device of a mesh axis orthogonalizes its part of the batch; all receive the whole result.

    For use inside `shard_map`, on a batch that every device holds. The exchange is one all-gather in
    the type that `orthogonalize` returns, among up to `MAX_SHARING_DEVICES` devices that follow one another.
    """

    def shared(matrices: Float[Array, "n a b"]) -> Float[Array, "n a b"]:
        num_devices = jax.lax.axis_size(axis_name)
        group = max(size for size in range(1, MAX_SHARING_DEVICES + 1) if num_devices % size == 0)
        each = -(-len(matrices) // group)
        if each == len(matrices):  # one device, or one matrix, which takes each device as long as waiting for it
            return orthogonalize(matrices)
        padded = jnp.pad(matrices, ((0, each * group - len(matrices)), (0, 0), (0, 0)))
        own = jax.lax.dynamic_slice_in_dim(padded, jax.lax.axis_index(axis_name) % group * each, each)
        groups = np.arange(num_devices).reshape(-1, group).tolist()
        gathered = jax.lax.all_gather(orthogonalize(own), axis_name, tiled=True, axis_index_groups=groups)
        return gathered[: len(matrices)]

    return shared


def orthogonalize_tree(tree: dict[str, Float[Array, "i o"]], orthogonalize: Batched) -> dict[str, Float[Array, "i o"]]:
    """Applies `orthogonalize` to every matrix of a tree, in one batch for each shape.

    A tall matrix is handled as its transpose, so a matrix and its transpose share a batch.
    """
    leaves, structure = jax.tree.flatten(tree)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, leaf in enumerate(leaves):
        by_shape[tuple(sorted(leaf.shape))].append(index)
    for shape, indices in by_shape.items():
        stacked = jnp.stack([leaves[i] if leaves[i].shape == shape else leaves[i].T for i in indices])
        for i, result in zip(indices, orthogonalize(stacked), strict=True):
            leaves[i] = result if leaves[i].shape == shape else result.T
    return jax.tree.unflatten(structure, leaves)


class MuonState(NamedTuple):
    """Steps taken, and the momentum of every matrix."""

    count: Int[Array, ""]
    momentum: optax.Updates


def scale_by_muon(
    momentum: optax.ScalarOrSchedule = 0.95,
    newton_schulz_steps: int = 5,
    newton_schulz_dtype: str = "bfloat16",
    axis_name: str | None = None,
) -> optax.GradientTransformation:
    """Replaces gradients of (inputs, outputs) matrices by Muon's directions, of a learning rate of 1.

    m ← μ·m + g; u = NS(g + μ·m) · √max(1, outputs/inputs). The sign is the gradient's: chain it with
    `optax.scale(-learning_rate)`, as any `scale_by_…` of Optax.

    Args:
      momentum: μ, or a schedule of it over the steps taken.
      newton_schulz_steps: iterations of the orthogonalization.
      newton_schulz_dtype: type in which they run.
      axis_name: mesh axis to share the orthogonalization over, inside `shard_map`; None for no sharing.

    Raises:
      ValueError: on `init`, for a parameter that is not a matrix.
    """

    def orthogonalize(matrices: Float[Array, "n a b"]) -> Float[Array, "n a b"]:
        return newton_schulz(matrices, newton_schulz_steps, newton_schulz_dtype)

    batched = share_over_devices(orthogonalize, axis_name) if axis_name else orthogonalize

    def init(params: optax.Params) -> MuonState:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim != 2:
                name = jax.tree_util.keystr(path)
                raise ValueError(f"Muon updates matrices only; {name} has shape {leaf.shape}: partition it away")
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        mu = momentum(state.count) if callable(momentum) else momentum
        new_momentum = jax.tree.map(lambda m, g: mu * m + g, state.momentum, updates)
        nesterov = jax.tree.map(lambda m, g: g + mu * m, new_momentum, updates)
        directions = orthogonalize_tree(nesterov, batched)
        directions = jax.tree.map(
            lambda u: max(1.0, u.shape[1] / u.shape[0]) ** 0.5 * u.astype(jnp.float32), directions
        )
        return directions, MuonState(state.count + 1, new_momentum)

    return optax.GradientTransformation(init, update)
