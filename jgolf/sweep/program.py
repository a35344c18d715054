"""Runs that differ in values only, as one compiled program: the training step, vmapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from jgolf import compiling
from jgolf import config as configs
from jgolf.config import Config
from jgolf.model.initial import init
from jgolf.sweep.grid import SweepRun, varying_values
from jgolf.train.step import StepMetrics, TrainState, init_state, train_step

AXIS = "run"


class SweepProgram:
    """R runs that train on the same batches, spread over this machine's devices.

    Every run is trained as on one device alone; a device holds its share of them and nothing passes
    between devices. Where the runs do not divide evenly, the last one is trained more than once to
    fill up; `params` and `metrics` leave the copies out.
    """

    def __init__(self, runs: Sequence[SweepRun], devices: Sequence[jax.Device]):
        """Makes the first states, and the program for them.

        Args:
          runs: one group, as `jgolf.sweep.grid.groups` makes them.
          devices: where to train them.
        """
        self.num_runs = len(runs)
        each = -(-len(runs) // len(devices))
        num_devices = -(-len(runs) // each)
        padded = [*runs, *[runs[-1]] * (each * num_devices - len(runs))]
        self.mesh = Mesh(np.array(devices[:num_devices]), (AXIS,))
        self._base = runs[0].config
        self._values = self._spread({name: np.array(values) for name, values in varying_values(padded).items()})
        self.state = self._first_state([run.seed for run in padded])
        self._step = jax.jit(
            jax.shard_map(
                jax.vmap(self._one_step, in_axes=(0, 0, None)),
                mesh=self.mesh,
                in_specs=(P(AXIS), P(AXIS), P()),
                out_specs=P(AXIS),
                check_vma=False,  # what passes between devices is nothing, so there is nothing to check
            ),
            donate_argnums=1,
        )

    def compile(self, batch: tuple[Int[np.ndarray, "A B T"], Int[np.ndarray, "A B T"]]) -> None:
        """Compiles the step for batches of this shape; without it, the first step does."""
        lowered = self._step.lower(self._values, self.state, self._everywhere(batch))
        self._step = lowered.compile(compiler_options=compiling.options())

    def step(self, batch: tuple[Int[np.ndarray, "A B T"], Int[np.ndarray, "A B T"]]) -> StepMetrics:
        """Trains every run on a batch; the metrics are arrays [R, and copies], not waited for."""
        self.state, metrics = self._step(self._values, self.state, self._everywhere(batch))
        return metrics

    def run_state(self, index: int) -> TrainState:
        """The state of one run, without its optimizer's, on the host."""
        state = self.state._replace(opt_state=())
        return jax.tree.map(lambda leaf: np.asarray(leaf[index]), state)

    def _one_step(self, values: Mapping[str, Array], state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        return train_step(with_values(self._base, values), state, *batch)

    def _first_state(self, seeds: Sequence[int]) -> TrainState:
        # One by one: XLA can deadlock on a CPU when it runs batches of orthogonal starts.
        start = jax.jit(lambda key: init(self._base.model, key), compiler_options=compiling.options())
        of_seed = {seed: start(jax.random.key(seed)) for seed in dict.fromkeys(seeds)}
        params = {
            path: self._spread(np.stack([np.asarray(of_seed[seed][path]) for seed in seeds]))
            for path in of_seed[seeds[0]]
        }
        make = jax.vmap(lambda params: init_state(self._base, params))
        return jax.jit(make, out_shardings=NamedSharding(self.mesh, P(AXIS)))(params)

    def _everywhere(self, batch: Any) -> Any:
        return jax.device_put(tuple(batch), NamedSharding(self.mesh, P()))

    def _spread(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self.mesh, P(AXIS)))


def with_values(config: Config, values: Mapping[str, Array]) -> Config:
    """The settings with some of them replaced by traced values, for use inside a traced function."""
    for name, value in values.items():
        config = configs.replace(config, name, value.astype(jnp.float32))
    return config
