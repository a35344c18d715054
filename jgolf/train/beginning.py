"""A run's beginning: its first state, and its step, which compiles meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from jgolf import programs
from jgolf.config import Config
from jgolf.data.batches import Batch
from jgolf.train.mesh import CompiledStep, replicated
from jgolf.train.step import TrainState, abstract_state, new_state


def random_state(config: Config, mesh: Mesh) -> TrainState:
    """The state of a run that starts from random parameters, whole on every device."""
    # The key is made in there: out here, that is a program more to be compiled.
    program = jax.jit(lambda seed: new_state(config, jax.random.key(seed)), out_shardings=replicated(mesh))
    seed = jax.device_put(np.uint32(config.train.seed))
    made_from = ("random state", config.model, config.optim, config.average)
    return programs.compiled(lambda: program.lower(seed), made_from, seed, mesh, {})(seed)


@contextlib.contextmanager
def compiling_step(config: Config, mesh: Mesh, batch: Batch) -> Iterator[Callable[[], CompiledStep]]:
    """Compiles the step in a thread of its own while the block runs; yields what waits for it and returns it.

    Of several processes each compiles when it is asked for the step: they compile the same programs in the same order.
    """

    def compiled() -> CompiledStep:
        return CompiledStep(config, mesh, abstract_state(config, replicated(mesh)), batch)

    if jax.process_count() > 1:
        yield compiled
        return
    with ThreadPoolExecutor(1, "compilation") as thread:
        yield thread.submit(compiled).result
