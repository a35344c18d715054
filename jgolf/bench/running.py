"""What is measured: a config at a number of sequences, and its training step, running on random tokens."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jgolf import config as configs
from jgolf.config import Config, ModelConfig
from jgolf.data.batches import Batch, BatchOrder
from jgolf.data.shards import BOS_ID
from jgolf.errors import ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.torch_bridge.torch_extra import import_torch
from jgolf.train.beginning import compiling_step, random_state
from jgolf.train.mesh import AXIS, CompiledStep, StepReport
from jgolf.train.step import TrainState

MEAN_DOCUMENT_TOKENS = 957  # of FineWeb's validation text, in case-coded pieces
AVERAGED_STEP = 1000
"""Where in a run its moving average is measured."""
WEIGHT_STD = 0.1
"""About that of trained matrices: quantized at the recipe's steps, levels of some three bits."""


def bench_config(name: str, sequences: int = 0) -> Config:
    """The config called `name`, with steps of one micro-batch of so many sequences, on one device.

    Args:
      name: as `jgolf.config.load` takes it.
      sequences: 0 for the config's own micro-batch on one device.

    Raises:
      ConfigError: there is no such config, or it makes no sense.
    """
    config = configs.load(name)
    if sequences < 0:
        raise ConfigError(f"--sequences {sequences}: expected 1 or more, or 0 for the config's own")
    sequences = sequences or config.train.run_tokens // config.train.seq_len
    train = dataclasses.replace(
        config.train, batch_tokens=sequences * config.train.seq_len, num_ranks=1, accumulation=1
    )
    return configs.validate(dataclasses.replace(config, model=configs.resolved(config.model), train=train))


def prepare_reference(script: Path | None) -> None:
    """Leaves room on the device for a PyTorch script, where one is given; to be called before JAX is used.

    Raises:
      MissingExtraError: PyTorch is not installed.
    """
    if script is not None:
        import_torch("jgolf bench --reference")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    return Mesh(np.array(jax.local_devices()[:1]), (AXIS,))


def describe(config: Config) -> str:
    """Name and sizes, for a title."""
    seq_len = config.train.seq_len
    return f"{config.name}, {config.train.batch_tokens // seq_len} × {seq_len:,} tokens, {config.model.compute_dtype}"


def random_batch(config: Config, seed: int = 0) -> Batch:
    """Tokens of a step, on the host: uint16 [1, rows, tokens of a row]; zeros would make a device look faster.

    Where documents are kept apart, they are as long as the challenge's on average.
    """
    order, rng = BatchOrder.from_config(config.train), np.random.default_rng(seed)
    shape = (1, config.train.batch_tokens // order.seq_len, order.seq_len + 1)
    tokens = rng.integers(BOS_ID + 1, config.model.vocab_size, size=shape, dtype=np.uint16)
    if config.train.documents:
        tokens[rng.random(shape) < 1 / MEAN_DOCUMENT_TOKENS] = BOS_ID
    return Batch(tokens[..., :-1], tokens[..., 1:])


def random_params(model: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters on the host, none of them zero, as a trained model's; at the start some matrices are zero."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(model)
    return {path: WEIGHT_STD * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}


def looped_from(config: Config) -> int | None:
    """Finished steps before the first one that runs the loop, where the first of all does not; None if all are alike.

    By the number of steps: a time cap may turn the loop on before.
    """
    train = config.train
    if not config.model.loop_layers or train.loop_start_fraction == 0:
        return None
    return math.ceil(train.loop_start_fraction * train.steps)


class RunningStep:
    """The training step as `train` runs it: the state is donated and flows on."""

    def __init__(self, step: CompiledStep, state: TrainState, batch: Batch):
        self.step, self.state, self.batch = step, state, batch

    @classmethod
    def compiled(cls, config: Config, mesh: Mesh | None = None, batch: Batch | None = None) -> RunningStep:
        """From a run's first state, on the devices of `mesh` with a batch there; by default a random one on one."""
        mesh = mesh or one_device()
        if batch is None:
            batch = jax.device_put(random_batch(config), NamedSharding(mesh, P(None, AXIS)))
        with compiling_step(config, mesh, batch) as step:
            state = random_state(config, mesh)
            return cls(step(), state, batch)

    def __call__(self, batch: Batch | None = None) -> StepReport:
        """Starts a step on `batch`, or on the one that stays on the device."""
        self.state, report = self.step(self.state, self.batch if batch is None else batch)
        return report

    def after(self, steps: int) -> RunningStep:
        """The same program on a copy of the state that is taken for one after so many steps: the schedule sees it."""
        copied = RunningStep(self.step, jax.tree.map(jnp.copy, self.state), self.batch)
        copied.set_step(steps)
        return copied

    def set_step(self, steps: int) -> None:
        """Takes the state for one after so many steps."""
        count = jax.make_array_from_callback((), self.state.step.sharding, lambda _: np.int32(steps))
        self.state = self.state._replace(step=count)
