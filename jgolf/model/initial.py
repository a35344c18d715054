"""Starting values of the parameters, as the rules have them."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jgolf.config import ModelConfig
from jgolf.model.functional import Params, parameter_shapes
from jgolf.rules import Constant, FirstRow, Matrix, Normal, Setting, Start, rule_of


def init(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Parameters at step 0, float32. Each depends on the key and its own path only.

    Raises:
      ArtifactError: the rules do not know a parameter.
    """
    shapes = parameter_shapes(config)
    starts = {path: rule_of(path).start for path in shapes}
    matrices: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for path, start in starts.items():
        if isinstance(start, Matrix):
            matrices[shapes[path]].append(path)
    params = {path: _start(start, path, shapes[path], config, key) for path, start in starts.items()}
    for shape, paths in matrices.items():  # one decomposition a shape in the program: it compiles faster
        values = _random_matrices(_keys(key, paths), shape, config.orthogonal_init)
        for path, value in zip(paths, values, strict=True):
            params[path] = value / math.sqrt(2 * config.num_layers) if starts[path].by_depth else value
    return params


def _start(start: Start, path: str, shape: tuple[int, ...], config: ModelConfig, key: PRNGKeyArray) -> Array | None:
    """The values of one parameter; None for a random matrix, which is drawn with others of its shape."""
    match start:
        case Constant(value):
            return jnp.full(shape, value, jnp.float32)
        case Setting(name):
            return jnp.full(shape, getattr(config, name), jnp.float32)
        case Normal(std):
            std = getattr(config, std) if isinstance(std, str) else std
            return std * jax.random.normal(_keys(key, [path])[0], shape)
        case FirstRow():
            return jnp.zeros(shape).at[0].set(1.0)
        case Matrix():
            return None


def _keys(key: PRNGKeyArray, paths: list[str]) -> PRNGKeyArray:
    """A key for each path, all at once: one by one, they take the compiler half a minute."""
    numbers = np.array([zlib.crc32(path.encode()) for path in paths], np.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _random_matrices(keys: PRNGKeyArray, shape: tuple[int, ...], orthogonal: bool) -> Array:
    normal = jax.nn.initializers.normal(stddev=1 / math.sqrt(shape[0]))
    initializer = jax.nn.initializers.orthogonal() if orthogonal else normal
    # A loop, not vmap: several batched QR calls at once can deadlock XLA's thread pool on the CPU.
    return jax.lax.map(lambda key: initializer(key, shape, jnp.float32), keys)
