"""Whether a run's state has room on this machine, before anything of it is made."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from jgolf.config import Config
from jgolf.errors import ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.train.step import init_state


def state_bytes(config: Config) -> int:
    """Bytes of a run's state: parameters, optimizer and averages."""
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(config.model).items()}
    state = jax.eval_shape(lambda params: init_state(config, params), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def machine_bytes() -> int:
    """Memory of the machine itself."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_bytes() -> int | None:
    """Memory that JAX may use of each device; None where that is the machine's own."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def check_room(config: Config) -> int:
    """`state_bytes`; raises ConfigError for what no device can hold: on a CPU, the system would kill the process."""
    need, there = state_bytes(config), device_bytes() or machine_bytes()
    if need > there:
        raise ConfigError(
            f"the run's state, its parameters, optimizer and averages, takes {need / 1e9:,.2f} GB, and a device "
            f"here has {there / 1e9:,.2f} GB: make the model smaller"
        )
    return need
