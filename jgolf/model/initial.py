"""Starting values of the parameters."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jgolf.config import ModelConfig
from jgolf.model.functional import Params, parameter_shapes

VALUE_EMBEDDING_STD = 0.01
BIGRAM_SCALE = 0.05
VALUE_SCALE = 0.1


def init(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Parameters at step 0, float32. Each depends on the key and its own path only."""
    shapes = parameter_shapes(config)
    params = {path: _constant(path, shape, config) for path, shape in shapes.items()}
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for path, shape in shapes.items():
        if _is_random_matrix(path):
            by_shape[shape].append(path)
    for shape, paths in by_shape.items():  # one decomposition a shape in the program: it compiles faster
        values = _random_matrices(_keys(key, paths), shape, config.orthogonal_init)
        for path, value in zip(paths, values, strict=True):
            is_table_projection = not path.startswith("blocks/")
            params[path] = value / math.sqrt(2 * config.num_layers) if is_table_projection else value
    params["embed/embedding"] = config.embedding_init_std * _normal(key, "embed/embedding", shapes)
    if "value_embed/embedding" in shapes:
        params["value_embed/embedding"] = VALUE_EMBEDDING_STD * _normal(key, "value_embed/embedding", shapes)
    return params


def _is_random_matrix(path: str) -> bool:
    return path.endswith("/kernel") and not path.endswith(("out_proj/kernel", "down_proj/kernel", "head/kernel"))


def _constant(path: str, shape: tuple[int, ...], config: ModelConfig) -> Array:
    if path.endswith("resid_mix"):
        return jnp.stack([jnp.ones(shape[1]), jnp.zeros(shape[1])])
    constants = {"bigram/scale": BIGRAM_SCALE, "value_embed/scale": VALUE_SCALE, "q_gain": config.q_gain}
    constants |= dict.fromkeys(("attn_scale", "mlp_scale", "skip_weights"), 1.0)
    for ending, value in constants.items():
        if path.endswith(ending):
            return jnp.full(shape, value)
    if path.startswith("value_embed/layer_scales/"):
        return jnp.ones(shape)
    return jnp.zeros(shape)


def _keys(key: PRNGKeyArray, paths: list[str]) -> PRNGKeyArray:
    """A key for each path, all at once: one by one, they take the compiler half a minute."""
    numbers = np.array([zlib.crc32(path.encode()) for path in paths], np.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _normal(key: PRNGKeyArray, path: str, shapes: dict[str, tuple[int, ...]]) -> Array:
    return jax.random.normal(_keys(key, [path])[0], shapes[path])


def _random_matrices(keys: PRNGKeyArray, shape: tuple[int, ...], orthogonal: bool) -> Array:
    bound = 1 / math.sqrt(shape[0])  # PyTorch's own start, of standard deviation 1 / √(3 · inputs)
    uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
    initializer = jax.nn.initializers.orthogonal() if orthogonal else uniform
    # A loop, not vmap: several batched QR calls at once can deadlock XLA's thread pool on the CPU.
    return jax.lax.map(lambda key: initializer(key, shape, jnp.float32), keys)
