"""Devices: the mesh, each process's share of a batch, and the step compiled for all of them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jgolf import compiling, programs
from jgolf.config import Config, TrainConfig
from jgolf.data.batches import Batch, BatchOrder
from jgolf.data.shards import TokenStream
from jgolf.errors import ConfigError
from jgolf.train.exchange import is_beside
from jgolf.train.step import StepMetrics, TrainState, train_step

AXIS = "data"


def make_mesh() -> Mesh:
    """All devices of all processes, on one axis; a process's devices follow one another."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def replicate_from_first(tree: Any, mesh: Mesh) -> Any:
    """The first process's arrays, whole on every device of all processes.

    Args:
      tree: arrays on the host or on one device; in other processes, anything of the same shapes and types.
      mesh: all devices.
    """
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    leaves, structure = jax.tree.flatten(tree)
    values = [np.asarray(leaf) for leaf in leaves]
    # As bytes, since the exchange is a sum, which would turn -0.0 into 0.0.
    data = np.concatenate([value.reshape(-1).view(np.uint8) for value in values])
    data = np.asarray(multihost_utils.broadcast_one_to_all(data))
    parts = np.split(data, np.cumsum([value.nbytes for value in values])[:-1])
    received = [part.view(value.dtype).reshape(value.shape) for part, value in zip(parts, values, strict=True)]
    arrays = [
        jax.make_array_from_callback(value.shape, sharding, lambda index, value=value: value[index])
        for value in received
    ]
    return jax.tree.unflatten(structure, arrays)


def device_batch_order(train: TrainConfig, num_devices: int) -> BatchOrder:
    """The order of a run's batches, laid out for this many devices.

    Raises:
      ConfigError: the devices cannot share the batch evenly.
    """
    order = BatchOrder.from_config(train)
    laid_out = order.for_devices(num_devices)
    if laid_out is not None:
        return laid_out
    runs, rows = order.num_ranks * order.accumulation, "rows of documents" if train.documents else "sequences"
    fits = train.batch_tokens % (num_devices * train.accumulation * train.run_multiple) == 0
    raise ConfigError(
        f"{num_devices} devices cannot share a batch of {order.accumulation} micro-steps × {order.num_ranks} ranks × "
        f"{order.rows_per_run} {rows} evenly: expected a number of devices that divides {runs} runs, or "
        f"{order.micro_batch_rows} {rows}; change train.num_ranks{f' to {num_devices}' * fits}, train.accumulation or "
        "train.batch_tokens"
    )


class BatchSource:
    """Makes a step's batch, of which each process reads and holds only its own devices' share."""

    def __init__(self, config: Config, stream: TokenStream, mesh: Mesh):
        self.order = device_batch_order(config.train, mesh.size)
        self._stream = stream
        self._sharding = NamedSharding(mesh, P(None, AXIS))
        rows_each = self.order.micro_batch_rows // mesh.size
        own = [index for index, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
        self._rows = slice(own[0] * rows_each, (own[-1] + 1) * rows_each)

    @property
    def tokens_per_step(self) -> int:
        """Tokens trained on in a step, over all devices."""
        return self.order.accumulation * self.order.micro_batch_rows * self.order.seq_len

    def __call__(self, step: int) -> Batch:
        """The batch of `step` as global arrays [accumulation, rows, seq_len], on their devices."""
        local = self.order.rows(self._stream, step, self._rows)
        return Batch(*(jax.make_array_from_process_local_data(self._sharding, part) for part in local))


class StepReport(NamedTuple):
    """What all processes know about a step, and so can decide on alike."""

    metrics: StepMetrics
    elapsed_s: Float[Array, ""]
    """Training time when the step was started, by the first process's clock."""
    stop_requested: Int[Array, ""]
    """Devices whose process had been asked to stop."""


def lower_step(config: Config, mesh: Mesh, state: TrainState, batch: Batch) -> jax.stages.Lowered:
    """The step for all devices of `mesh`, to be compiled; its state is donated.

    Args:
      config: the run.
      mesh: all devices.
      state: arrays or shapes, whole on every device.
      batch: arrays or shapes [accumulation, rows, seq_len], the rows spread over the devices.
    """

    def on_each_device(state: TrainState, batch: Batch, host: Float[Array, "1 2"]):
        elapsed_s, stop = host[0]
        elapsed_s = jax.lax.psum(jnp.where(jax.lax.axis_index(AXIS) == 0, elapsed_s, 0.0), AXIS)
        state, metrics = train_step(config, state, *batch, elapsed_s, AXIS)
        return state, StepReport(metrics, elapsed_s, jax.lax.psum(stop, AXIS))

    # check_vma: the checker cannot know that an all-gather's result is the same on every device.
    sharded = jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(P(), P(None, AXIS), P(AXIS)), out_specs=P(), check_vma=False
    )
    host = jax.ShapeDtypeStruct((mesh.size, 2), jnp.float32, sharding=NamedSharding(mesh, P(AXIS)))
    return jax.jit(sharded, donate_argnums=0).lower(state, batch, host)


class CompiledStep:
    """The training step, compiled for all devices; the state it is called with is donated.

    Each process passes its own clock's reading and whether it was asked to stop. They travel with the
    batch: the first process's clock drives the schedule of all, and a request reaches every process.
    """

    def __init__(self, config: Config, mesh: Mesh, state: TrainState, batch: Batch):
        """Compiles for arguments shaped and placed like `state` and `batch`."""
        self._sharding = NamedSharding(mesh, P(AXIS))
        self._num_local = len(mesh.local_devices)
        # Otherwise each parameter's gradients are a reduction of their own, which had better be combined.
        overlap = config.optim.clip != "rank" and is_beside(batch.inputs.shape[0], mesh.size)
        self.compiled = programs.compiled(
            partial(lower_step, config, mesh, state, batch),
            ("training step", config.model, config.train, config.optim, config.average, config.quantize),
            (state, batch),
            mesh,
            compiling.options(long_kernels=True, overlap=overlap),
        )

    def __call__(
        self, state: TrainState, batch: Batch, elapsed_s: float = 0.0, stop: bool = False
    ) -> tuple[TrainState, StepReport]:
        values = np.tile(np.array([elapsed_s, stop], np.float32), (self._num_local, 1))
        return self.compiled(state, batch, jax.make_array_from_process_local_data(self._sharding, values))
