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
    """A group of runs, compiled once and trained a part at a time, spread over this machine's devices.

    Every run is trained as on one device alone; a device holds its share of a part and nothing passes
    between devices. Where a part does not fill the devices, its last run is trained more than once;
    `run_state` and the results never see the copies.

    Attributes:
      size: runs of a part, at most.
      mesh: the devices in use.
      state: of the part that trains, [size, …].
    """

    def __init__(self, group: Sequence[SweepRun], devices: Sequence[jax.Device], at_once: int = 0):
        """Prepares the program; `begin` starts the runs.

        Args:
          group: as `jgolf.sweep.grid.groups` makes them.
          devices: where to train them.
          at_once: runs that one device trains at a time, at most; 0 for its share of the group.
        """
        share = -(-len(group) // len(devices))
        each = min(at_once or share, share)
        num_devices = min(len(devices), -(-len(group) // each))
        self.size = each * num_devices
        self.mesh = Mesh(np.array(devices[:num_devices]), (AXIS,))
        self.state: TrainState | None = None
        self._group = group
        self._base = base = group[0].config
        self._all_values = varying_values(group)
        # A device that trains one run at a time needs no vmap, and neither do its kernels.
        self._step: Any = jax.jit(
            jax.shard_map(
                jax.vmap(self._one_step, in_axes=(0, 0, None)) if each > 1 else self._only_step,
                mesh=self.mesh,
                in_specs=(P(AXIS), P(AXIS), P()),
                out_specs=P(AXIS),
                check_vma=False,  # what passes between devices is nothing, so there is nothing to check
            ),
            donate_argnums=1,
        )
        self._init = jax.jit(lambda key: init(base.model, key), compiler_options=compiling.options())
        self._init_states = jax.jit(
            jax.vmap(lambda params: init_state(base, params)), out_shardings=NamedSharding(self.mesh, P(AXIS))
        )

    def begin(self, part: Sequence[int]) -> None:
        """Makes the first states of some runs, by their index in the group; at most `size` of them."""
        padded = [*part, *[part[-1]] * (self.size - len(part))]
        self.state = None  # its memory is free before the next state takes as much
        self._values = self._spread(
            {name: np.array([values[index] for index in padded]) for name, values in self._all_values.items()}
        )
        self.state = self._first_state([self._group[index].seed for index in padded])

    def compile(self, batch: tuple[Int[np.ndarray, "A B T"], Int[np.ndarray, "A B T"]]) -> None:
        """Compiles the step for batches of this shape, once a part has begun; without it, the first step does."""
        lowered = self._step.lower(self._values, self.state, self._everywhere(batch))
        self._step = lowered.compile(compiler_options=compiling.options())

    def step(self, batch: tuple[Int[np.ndarray, "A B T"], Int[np.ndarray, "A B T"]]) -> StepMetrics:
        """Trains every run of the part on a batch; the metrics are arrays [size], not waited for."""
        self.state, metrics = self._step(self._values, self.state, self._everywhere(batch))
        return metrics

    def run_state(self, index: int) -> TrainState:
        """The state of one run of the part, without its optimizer's, on the host."""
        state = self.state._replace(opt_state=())
        return jax.tree.map(lambda leaf: np.asarray(leaf[index]), state)

    def _one_step(self, values: Mapping[str, Array], state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        return train_step(with_values(self._base, values), state, *batch)

    def _only_step(self, values: Mapping[str, Array], state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        values, state = jax.tree.map(lambda leaf: leaf[0], (values, state))
        return jax.tree.map(lambda leaf: leaf[None], self._one_step(values, state, batch))

    def _first_state(self, seeds: Sequence[int]) -> TrainState:
        # One by one: XLA can deadlock on a CPU when it runs batches of orthogonal starts.
        of_seed = {seed: self._init(jax.random.key(seed)) for seed in dict.fromkeys(seeds)}
        params = {
            path: self._spread(np.stack([np.asarray(of_seed[seed][path]) for seed in seeds]))
            for path in of_seed[seeds[0]]
        }
        return self._init_states(params)

    def _everywhere(self, batch: Any) -> Any:
        return jax.device_put(tuple(batch), NamedSharding(self.mesh, P()))

    def _spread(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self.mesh, P(AXIS)))


def with_values(config: Config, values: Mapping[str, Array]) -> Config:
    """The settings with some of them replaced by traced values, for use inside a traced function."""
    return configs.replace_all(config, {name: value.astype(jnp.float32) for name, value in values.items()})
