"""Muon as a chain of small transforms: Nesterov momentum, orthogonalization, scale by shape.

Rows are normalized before they are orthogonalized, where asked for. Beside the chain stand two
that follow it: the normalization of neurons, and the look ahead.

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the table of
coefficients, Amsel et al., "The Polar Express" (2025). With the standard coefficients it agrees with
`optax.contrib.muon` but for two things: the momentum is a sum (m ← μ·m + g) rather than an average with
its bias corrected, which matters in the first steps and while μ changes; and numbers such as μ and the
coefficients stay float32 beside bfloat16 arrays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

Coefficients = Sequence[float] | Sequence[Sequence[float]] | Float[Array, "3"] | Float[Array, "n 3"]
"""(a, b, c) of every iteration, or a table of them, one row an iteration."""
COEFFICIENTS: dict[str, Coefficients] = {
    "standard": (3.4445, -4.7750, 2.0315),
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
EPSILON = 1e-7
MAX_SHARING_DEVICES = 8
"""More devices share in groups that all do the same: a host's eight exchange over NVLink, not over the network."""

Batched = Callable[[Float[Array, "n a b"]], Float[Array, "n a b"]]


def newton_schulz(
    matrices: Float[Array, "n a b"],
    steps: int | Int[Array, ""] = 5,
    dtype: str = "bfloat16",
    coefficients: Coefficients = COEFFICIENTS["standard"],
    round_each: bool = False,
) -> Float[Array, "n a b"]:
    """Approximately orthogonalizes a batch of matrices: singular values move towards 1.

    X = G / (‖G‖ + ε), then in every iteration A = XXᵀ, X ← aX + (bA + cA²)X, in `dtype`; where a > b, the same of the
    transpose: A = XᵀX, X ← aX + X(bA + cA²).

    Args:
      matrices: G.
      steps: iterations; a traced number makes them a loop.
      dtype: type of the matrices between operations; a, b, c and all sums are float32.
      coefficients: (a, b, c) of every iteration, or one row for each, of which the first `steps` are used.
      round_each: round every operation's result to `dtype`, as PyTorch does, rather than a chain of elementwise
        ones once, as its compiler does. For comparisons bit for bit, outside `jit`, where XLA keeps to it.

    Raises:
      ValueError: the coefficients are neither.
    """
    shape = np.shape(coefficients)
    if shape[-1:] != (3,) or len(shape) > 2 or shape[0] == 0:
        raise ValueError(f"coefficients must be one (a, b, c) or a table of them, found an array of shape {shape}")
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None

    def between(x: Array) -> Array:
        return x.astype(dtype).astype(jnp.float32) if round_each else x

    def times(scale: float | Array, x: Array) -> Array:
        # In float32: the coefficients themselves must not be rounded to bfloat16.
        return between(scale * x.astype(jnp.float32))

    is_tall = matrices.shape[1] > matrices.shape[2]

    def iterate(x: Array, a: float | Array, b: float | Array, c: float | Array) -> Array:
        gram = jnp.einsum("nji,njk->nik" if is_tall else "nij,nkj->nik", x, x, precision=precision)
        squared = jnp.einsum("nij,njk->nik", gram, gram, precision=precision)
        polynomial = (times(b, gram) + times(c, squared)).astype(dtype)
        left, right = (x, polynomial) if is_tall else (polynomial, x)
        product = jnp.einsum("nij,njk->nik", left, right, precision=precision)
        return (times(a, x) + product.astype(jnp.float32)).astype(dtype)

    matrices = between(matrices.astype(jnp.float32))
    norm = between(jnp.sqrt(jnp.sum(jnp.square(matrices), axis=(1, 2), keepdims=True)))
    x = (matrices / between(norm + EPSILON)).astype(dtype)
    if isinstance(steps, jax.Array):
        table = jnp.reshape(jnp.asarray(coefficients, jnp.float32), (-1, 3))
        count = steps if len(shape) == 1 else jnp.minimum(steps, shape[0])
        return jax.lax.fori_loop(0, count, lambda i, x: iterate(x, *table[i if len(shape) == 2 else 0]), x)
    for row in [coefficients] * steps if len(shape) == 1 else coefficients[:steps]:
        x = iterate(x, *row)
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
    """Applies `orthogonalize` to every matrix of a tree, in one batch for each shape."""
    leaves, structure = jax.tree.flatten(tree)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, leaf in enumerate(leaves):
        by_shape[leaf.shape].append(index)
    for indices in by_shape.values():
        stacked = jnp.stack([leaves[i] for i in indices])
        for i, result in zip(indices, orthogonalize(stacked), strict=True):
            leaves[i] = result
    return jax.tree.unflatten(structure, leaves)


class MuonState(NamedTuple):
    """Steps taken, and the momentum of every matrix."""

    count: Int[Array, ""]
    momentum: optax.Updates


def nesterov(momentum: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """m ← μ·m + g; u = g + μ·m, with the new m.

    As `optax.trace(…, nesterov=True)`, but that μ may be a schedule over the steps taken, and that
    gradients and momentum keep their types: both are summed in float32 and rounded once.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        mu = momentum(state.count) if callable(momentum) else momentum

        def gradient_plus(m: Array, g: Array, like: Array) -> Array:
            return (mu * m.astype(jnp.float32) + g.astype(jnp.float32)).astype(like.dtype)

        new = jax.tree.map(lambda m, g: gradient_plus(m, g, m), state.momentum, updates)
        return jax.tree.map(lambda m, g: gradient_plus(m, g, g), new, updates), MuonState(state.count + 1, new)

    return optax.GradientTransformation(init, update)


def rows_normalized(u: Float[Array, "... i o"]) -> Float[Array, "... i o"]:
    """Each column of an (inputs, outputs) matrix, which is what makes one output, over its norm."""
    norm = jnp.sqrt(jnp.sum(jnp.square(u.astype(jnp.float32)), axis=-2, keepdims=True))
    return u / jnp.maximum(norm, EPSILON).astype(u.dtype)


def normalize_neurons(decay: float | Array) -> optax.GradientTransformation:
    """Divides each column of an (inputs, outputs) matrix U, which is what makes one output, by its root mean square.

    v ← β·v + (1 − β)·mean of u² over the inputs, one number an output, from 0; u ← c·u / (√v + ε), with the c that
    gives the matrix the norm that it had, so that v needs no correction of its bias (Li et al., "NorMuon: Making Muon
    more efficient and scalable", 2025, whose updates all have one norm instead). The state is v, [1, outputs].

    It follows `scale_by_muon`, whose last factor, one for a whole matrix, it leaves alone. It does not replace
    `rows_normalized`, which comes before the orthogonalization: where there are more outputs than inputs, or only a few
    iterations, outputs leave that with other norms than they came with.
    """

    def init(params: optax.Params) -> optax.Updates:
        return jax.tree.map(lambda p: jnp.zeros((1, p.shape[1]), jnp.float32), params)

    def update(updates: optax.Updates, state: optax.Updates, params: optax.Params | None = None):
        del params

        def mean_square(u: Float[Array, "i o"], v: Float[Array, "1 o"]) -> Float[Array, "1 o"]:
            now = jnp.mean(jnp.square(u.astype(jnp.float32)), axis=0, keepdims=True)
            return decay * v + (1 - decay) * now

        def normalized(u: Float[Array, "i o"], v: Float[Array, "1 o"]) -> Float[Array, "i o"]:
            exact = u.astype(jnp.float32)
            divided = exact / (jnp.sqrt(v) + EPSILON)
            norm = jnp.maximum(jnp.linalg.norm(divided), EPSILON)
            return (divided * (jnp.linalg.norm(exact) / norm)).astype(u.dtype)

        state = jax.tree.map(mean_square, updates, state)
        return jax.tree.map(normalized, updates, state), state

    return optax.GradientTransformation(init, update)


def look_ahead(share: float | Array, decay: float | Array) -> optax.GradientTransformation:
    """Makes the parameters those at which gradients are taken: moved on along the smoothed updates.

    It stands last in a chain, after the learning rate: each d that comes in is what is to be added to the weights x.
    Beside them is their moving average x̄ ← β·x̄ + (1 − β)·x, from x̄ = x; the parameters are
    y = x + α·(x − x̄). As x − x̄ =: δ is the sum of the updates so far, each β times weaker with every step
    (δ ← β·(δ + d), from 0), y is Nesterov's point for updates smoothed by an exponential moving average. Only δ is
    kept, and the transform adds to y what x + α·δ has become more:

        u = d + α·(δ' − δ)

    So gradients, weight decay, averages and exports are those of y; x is y − α·δ, and δ dies away as updates do.

    Args:
      share: α.
      decay: β.
    """

    def init(params: optax.Params) -> optax.Updates:
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates: optax.Updates, state: optax.Updates, params: optax.Params | None = None):
        del params
        ahead = jax.tree.map(lambda d, u: (decay * (d + u)).astype(d.dtype), state, updates)
        moved = jax.tree.map(lambda u, new, d: (u + share * (new - d)).astype(u.dtype), updates, ahead, state)
        return moved, ahead

    return optax.GradientTransformation(init, update)


def orthogonalize(
    coefficients: Coefficients = COEFFICIENTS["standard"],
    steps: int | Int[Array, ""] = 5,
    dtype: str = "bfloat16",
    axis_name: str | None = None,
    row_normalization: bool = False,
) -> optax.GradientTransformation:
    """Replaces matrices by what `newton_schulz` makes of them, or of their `rows_normalized`.

    `axis_name` shares the work, inside `shard_map`.

    Raises:
      ValueError: on `init`, for a parameter that is not a matrix.
    """

    def batched(matrices: Float[Array, "n a b"]) -> Float[Array, "n a b"]:
        # Here, of all matrices of a shape at once: a GPU takes each alone as long as starting a kernel for it.
        matrices = rows_normalized(matrices) if row_normalization else matrices
        return newton_schulz(matrices, steps, dtype, coefficients)

    shared = share_over_devices(batched, axis_name) if axis_name else batched

    def init(params: optax.Params) -> optax.EmptyState:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim != 2:
                name = jax.tree_util.keystr(path)
                raise ValueError(f"Muon updates matrices only; {name} has shape {leaf.shape}: partition it away")
        return optax.EmptyState()

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        del params
        found = orthogonalize_tree(updates, shared)
        return jax.tree.map(lambda x, u: x.astype(u.dtype), found, updates), state

    return optax.GradientTransformation(init, update)


def scale_by_shape() -> optax.GradientTransformation:
    """Multiplies (inputs, outputs) matrices by √max(1, outputs/inputs)."""

    def scaled(u: Float[Array, "i o"]) -> Float[Array, "i o"]:
        factor = max(1.0, u.shape[1] / u.shape[0]) ** 0.5
        return (factor * u.astype(jnp.float32)).astype(u.dtype)

    return optax.stateless_with_tree_map(lambda u, _: scaled(u))


def scale_by_muon(
    momentum: optax.ScalarOrSchedule = 0.95,
    newton_schulz_steps: int | Int[Array, ""] = 5,
    newton_schulz_dtype: str = "bfloat16",
    axis_name: str | None = None,
    newton_schulz_coefficients: Coefficients = COEFFICIENTS["standard"],
    row_normalization: bool = False,
) -> optax.GradientTransformation:
    """Replaces gradients of (inputs, outputs) matrices by Muon's directions, of a learning rate of 1.

    The chain of `nesterov`, `orthogonalize` and `scale_by_shape`; its state is the momentum's. The sign is the
    gradient's: chain it with `optax.scale(-learning_rate)`, as any `scale_by_…` of Optax. Directions have their
    gradients' types.

    Args:
      momentum: μ, or a schedule of it over the steps taken.
      newton_schulz_steps: iterations of the orthogonalization.
      newton_schulz_dtype: type in which they run.
      axis_name: mesh axis to share the orthogonalization over, inside `shard_map`; None for no sharing.
      newton_schulz_coefficients: of the iterations, as `newton_schulz` takes them.
      row_normalization: whether every output's row is normalized before them.

    Raises:
      ValueError: on `init`, for a parameter that is not a matrix.
    """
    trace = nesterov(momentum)
    direction = optax.chain(
        orthogonalize(
            newton_schulz_coefficients, newton_schulz_steps, newton_schulz_dtype, axis_name, row_normalization
        ),
        scale_by_shape(),
    )

    def init(params: optax.Params) -> MuonState:
        direction.init(params)  # refuses what is no matrix
        return trace.init(params)

    def update(
        updates: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        updates, state = trace.update(updates, state, params)
        return direction.update(updates, direction.init(updates), params)[0], state

    return optax.GradientTransformation(init, update)
