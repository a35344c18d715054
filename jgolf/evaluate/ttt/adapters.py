"""Low-rank additions of a batch of documents on the devices: their state, and the programs that score and adapt.

Every device has its own documents, dealt out in turn, and its own part of the state; nothing is exchanged. A program
takes some rows of a batch at once: windows of one width, each scored, and most of them adapted to on the same pass.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jgolf import compiling
from jgolf.config import AdaptedConfig, ModelConfig
from jgolf.evaluate.ttt.calls import Call, Shape
from jgolf.evaluate.ttt.sgd import described
from jgolf.model.functional import Params, token_losses
from jgolf.model.lora import Additions, LowRank, addition_names, addition_outputs, start_bound

Downs = dict[str, Float[Array, "places slots D r"]]
"""Kind → down-projections of all additions of that kind, one for every execution of a block, or for the head."""
FreshDowns = Callable[[int, int], dict[str, np.ndarray | Array]]
"""(how many times it was asked before, documents) → new ones, [documents or more, slots, inputs, rank] each."""

_TRACING = threading.Lock()
"""Tracing holds Python's own lock: one after the other, the programs that are needed first are there first."""


class Adapters(NamedTuple):
    """The state of the additions by kind, arrays [places, slots, …] spread over the devices."""

    values: dict[str, LowRank]
    moments: dict[str, LowRank]
    """Of the squared gradients."""


class Stream(NamedTuple):
    """What is scored."""

    tokens: Int[Array, " tokens"]
    hints: Int[Array, " targets"] | None
    """A token for each target, whose nats in the target's place are asked for, too; None where nobody asks."""


# --- state -------------------------------------------------------------------------------------


def random_downs(config: ModelConfig, settings: AdaptedConfig, places: int, looped: bool) -> FreshDowns:
    """Fresh down-projections of a whole batch, each from the seed, its number, its kind and its place alone."""
    names = addition_names(config, settings.additions, looped)
    slots = tuple((kind, len(own)) for kind, own in names.items())
    return lambda number, documents: _draw(slots, places, config.model_dim, settings.rank, settings.seed, number)


# jit: every evaluation with these settings shares the program.
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _draw(
    slots: tuple[tuple[str, int], ...], places: int, inputs: int, rank: int, seed: int, number: Int[Array, ""]
) -> Downs:
    """As many down-projections of each kind as it has slots, for every place; see `random_downs`."""
    bound, key = start_bound(inputs), jax.random.fold_in(jax.random.key(seed), number)

    def one(key: Array, count: int, place: Int[Array, ""]) -> Float[Array, "slots D r"]:
        shape = (count, inputs, rank)
        return jax.random.uniform(jax.random.fold_in(key, place), shape, minval=-bound, maxval=bound)

    keys = {kind: jax.random.fold_in(key, zlib.crc32(kind.encode())) for kind, _ in slots}
    return {kind: jax.vmap(partial(one, keys[kind], count))(jnp.arange(places)) for kind, count in slots}


class AdapterPrograms:
    """The programs for one network, settings and set of devices, compiled beside one another in the background."""

    def __init__(self, config: ModelConfig, settings: AdaptedConfig, mesh: Mesh, places: int, looped: bool):
        """
        Args:
          config: the network.
          settings: how it is adapted, with a `context`, whose rotary base windows of any width have.
          mesh: devices.
          places: documents of a batch, at most.
          looped: see `jgolf.model.functional`.
        """
        self._settings, self._mesh, self._scale = settings, mesh, settings.alpha / settings.rank
        self._names = addition_names(config, settings.additions, looped)
        self._inputs, self._outputs = config.model_dim, {kind: addition_outputs(config, kind) for kind in self._names}
        self._static = (config, mesh, max(_chunks(settings)), looped, settings.context, tuple(self._names.items()))
        self._each = -(-places // mesh.size)
        self._places, self._sharding = places, NamedSharding(mesh, P(mesh.axis_names[0]))
        self._whole = NamedSharding(mesh, P())
        self._compiled: dict[tuple, Future] = {}
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="compile")
        self.waited_s = 0.0

    @property
    def downs_bytes(self) -> int:
        """Of the down-projections of a batch."""
        return 4 * self._places * self._settings.rank * self._inputs * sum(map(len, self._names.values()))

    def place_downs(self, downs: dict[str, np.ndarray | Array]) -> Downs:
        """Down-projections [documents, …] on the devices; the document of place p is on device p mod their number."""
        row = np.arange(self._each * self._mesh.size)
        place = row // self._each + self._mesh.size * (row % self._each)
        found = {}
        for kind in self._names:
            array = jnp.asarray(downs[kind], jnp.float32)
            found[kind] = jax.device_put(array[np.minimum(place, len(array) - 1)], self._sharding)
        return found

    def gather_downs(self, downs: Downs) -> dict[str, np.ndarray]:
        """The inverse of `place_downs`."""
        place = np.arange(self._places)
        row = place % self._mesh.size * self._each + place // self._mesh.size
        return {kind: np.asarray(array)[row] for kind, array in downs.items()}

    def additions(self, state: Adapters, place: int) -> Additions:
        """What the document of a place is scored with, as the network takes it, on the device that has it."""
        device, row = self._mesh.devices.flat[place % self._mesh.size], place // self._mesh.size
        shards = jax.tree.map(partial(_shard_on, device), state.values)
        return _additions_of(tuple(self._names.items()), shards, row, self._scale)

    def begin(self, downs: Downs) -> Adapters:
        """The state of a batch at its start; the down-projections are given up."""
        return _begin(tuple(self._outputs.items()), self._sharding)(downs)

    def decayed(self, downs: Downs, factor: np.ndarray) -> Downs:
        """Down-projections, which are given up, times a factor for every document of a full batch."""
        factors = np.ones((self._each, self._mesh.size), np.float32)
        factors.reshape(-1)[: len(factor)] = factor  # place p is row p // devices of device p mod devices
        return _decay(self._sharding)(downs, jax.device_put(factors.T.reshape(-1), self._sharding))

    def run(
        self,
        params: Params,
        state: Adapters,
        stream: Stream,
        call: Call,
        rates: Float[np.ndarray, " places"],
        chunk_number: int,
    ) -> tuple[Adapters, Float[Array, "rows chunk *two"]]:
        """Scores a call's chunks, then adapts to those that train.

        Args:
          params: the network's, which rest.
          state: given up where something trains.
          stream: the whole of it, on every device.
          call: what to run.
          rates: learning rate for each place.
          chunk_number: from 0; as many times the places that train have been adapted before.

        Returns:
          The state, and each target's score before the adaptation, with hints beside that of the hint; behind a row's
          `count` there are no scores.
        """
        rows, settings = call.rows, self._settings
        trains = rows.trains & call.is_row
        device_row = np.where(trains, rows.place // self._mesh.size, self._each)
        fields = np.stack([rows.place // self._mesh.size, device_row, rows.start, rows.first, rows.count], 1)
        rate = np.where(trains, rates[rows.place], 0)
        done = chunk_number * settings.grad_steps + np.arange(1, settings.grad_steps + 1)
        hyper = np.array([self._scale, settings.weight_decay, settings.beta2, settings.epsilon], np.float32)
        corrections = (1 - settings.beta2**done).astype(np.float32)
        batch = jax.device_put(
            (fields.astype(np.int32), rate.astype(np.float32), corrections, hyper),
            (self._sharding, self._sharding, self._whole, self._whole),
        )
        # A program that adapts can score, too, where there is none that does nothing else.
        trains = bool(self._names) and (call.trains or (call.shape, False) not in self._compiled)
        if (call.shape, trains) not in self._compiled:
            self.prepare([(call.shape, trains)], params, stream)
        program = self.waited_for(self._compiled[call.shape, trains])
        results = program(params, state, stream, *batch)
        return results if trains else (state, results)

    def prepare(self, calls: Iterable[tuple[Shape, bool]], params: Params, stream: Stream) -> None:
        """Begins to compile the programs of calls, by shape and whether something trains, in this order."""

        def of_places(*size: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self._each * self._mesh.size, *size), jnp.float32, sharding=self._sharding)

        rank, inputs = self._settings.rank, self._inputs
        values = {
            kind: LowRank(of_places(len(own), inputs, rank), of_places(len(own), rank, self._outputs[kind]))
            for kind, own in self._names.items()
        }
        weights, stream = jax.tree.map(described, (params, stream))
        for shape, trains in calls:
            rows = self._mesh.size * shape.rows
            batch = (
                jax.ShapeDtypeStruct((rows, 5), jnp.int32, sharding=self._sharding),
                jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=self._sharding),
                jax.ShapeDtypeStruct((self._settings.grad_steps,), jnp.float32, sharding=self._whole),
                jax.ShapeDtypeStruct((4,), jnp.float32, sharding=self._whole),
            )
            trains = trains and bool(self._names)
            steps = self._settings.grad_steps if trains else 0
            if (shape, trains) not in self._compiled:
                flat, structure = jax.tree.flatten((weights, Adapters(values, values), stream, *batch))
                self._compiled[shape, trains] = self.in_background(
                    _compiled, *self._static, shape.width, steps, tuple(flat), structure
                )

    def in_background(self, function: Callable, *arguments: object) -> Future:
        """Has something compiled beside the rest."""
        return self._pool.submit(function, *arguments)

    def waited_for(self, future: Future) -> Any:
        """The result of `in_background`; the time until it is there counts as waiting."""
        began_s = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - began_s

    def close(self) -> None:
        """Gives up what is still to be compiled."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _chunks(settings: AdaptedConfig) -> Iterator[int]:
    yield settings.chunk
    yield from (chunk for _, chunk in settings.chunk_by_length)


@cache
def _begin(outputs: tuple[tuple[str, int], ...], sharding: NamedSharding) -> Callable[[Downs], Adapters]:
    """Nothing is added at first: the other projections are 0, and so are the moments."""

    def begin(downs: Downs) -> Adapters:
        values = {}
        for kind, width in outputs:
            places, slots, _, rank = downs[kind].shape
            values[kind] = LowRank(downs[kind], jnp.zeros((places, slots, rank, width)))
        return Adapters(values, jax.tree.map(jnp.zeros_like, values))

    return jax.jit(begin, out_shardings=sharding, donate_argnums=0)


@cache
def _decay(sharding: NamedSharding) -> Callable[[Downs, Array], Downs]:
    def decay(downs: Downs, factor: Float[Array, " places"]) -> Downs:
        return {kind: factor[:, None, None, None] * array for kind, array in downs.items()}

    return jax.jit(decay, out_shardings=sharding, donate_argnums=0)


# --- programs ----------------------------------------------------------------------------------


@cache
def _compiled(
    config: ModelConfig,
    mesh: Mesh,
    chunk: int,
    looped: bool,
    rotary_length: int,
    names: tuple[tuple[str, tuple[str, ...]], ...],
    width: int,
    steps: int,
    flat: tuple[jax.ShapeDtypeStruct, ...],
    structure: jax.tree_util.PyTreeDef,
) -> Callable:
    """The program for arguments of these shapes: `steps` steps on the rows that train, 0 to score only.

    Args:
      config, mesh, looped: see `AdapterPrograms`.
      chunk: most targets of a row.
      rotary_length: see `jgolf.model.functional`.
      names: of the additions, by kind.
      width: inputs of a row.
      steps: on each chunk.
      flat, structure: the arguments' shapes, as a tree is taken apart.
    """
    axis, by_kind = P(mesh.axis_names[0]), dict(names)
    losses_of = partial(token_losses, config, looped=looped, rotary_length=rotary_length)

    def on_each_device(params, state, stream, rows, rates, corrections, hyper):
        place, device_row, start, first, count = rows.T
        inputs, positions, targets = _windows(stream, start, first, count, width, chunk)
        own = jax.tree.map(lambda leaf: leaf.at[place].get(mode="clip"), state)
        trained = device_row < jax.tree.leaves(state)[0].shape[0] if steps else None

        def loss_of(values: dict[str, LowRank]) -> tuple[Float[Array, ""], Float[Array, "rows chunk *two"]]:
            additions = {name: LowRank(down, hyper[0] * up) for name, (down, up) in values.items()}
            nats = losses_of(params, inputs, targets, positions, additions)
            if not steps:
                return jnp.zeros(()), nats
            counted = trained[:, None] & (jnp.arange(chunk) < count[:, None])
            own = nats if nats.ndim == 2 else nats[..., 0]
            return jnp.sum(jnp.where(counted, own, 0) / jnp.maximum(count, 1)[:, None]), nats

        if not steps:
            return loss_of(_apart(own.values, by_kind))[1]
        values, moments, scores = own.values, own.moments, None
        for step in range(steps):
            grads, nats = jax.grad(loss_of, has_aux=True)(_apart(values, by_kind))
            grads = _together(grads, by_kind)
            scores = nats if scores is None else scores
            update = partial(_adamw, rates, corrections[step], *hyper[1:])
            values, moments = jax.tree.transpose(
                jax.tree.structure(values), jax.tree.structure((0, 0)), jax.tree.map(update, values, moments, grads)
            )
        new = Adapters(values, moments)
        # Rows that do not train have a place past the last one, where nothing is written.
        return jax.tree.map(lambda leaf, rows: leaf.at[device_row].set(rows, mode="drop"), state, new), scores

    specs = (P(), axis, P(), axis, axis, P(), P())
    results = (axis, axis) if steps else axis
    sharded = jax.shard_map(on_each_device, mesh=mesh, in_specs=specs, out_specs=results, check_vma=False)
    program = jax.jit(sharded, donate_argnums=1 if steps else ())
    with _TRACING:
        lowered = program.lower(*jax.tree.unflatten(structure, flat))
    return lowered.compile(compiler_options=compiling.options())


def _shard_on(device: jax.Device, array: Array) -> Array:
    """The part of an array that this device has."""
    return next(shard.data for shard in array.addressable_shards if shard.device == device)


@partial(jax.jit, static_argnums=0)  # hundreds of small arrays by one program
def _additions_of(
    names: tuple[tuple[str, tuple[str, ...]], ...], values: dict[str, LowRank], row: Int[Array, ""], scale: float
) -> Additions:
    """Those of one row of a device's part of the state, by name."""
    own = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), values)
    return {name: LowRank(down, scale * up) for name, (down, up) in _apart(own, dict(names)).items()}


def _apart(stacks: dict[str, LowRank], names: dict[str, tuple[str, ...]]) -> dict[str, LowRank]:
    """The additions of all kinds by name.

    The gradient is taken behind this: its own derivative would add up as many arrays of a whole stack's size as there
    are in it.
    """
    return {
        name: jax.tree.map(lambda stack, slot=slot: stack[:, slot], stacks[kind])
        for kind, own in names.items()
        for slot, name in enumerate(own)
    }


def _together(additions: dict[str, LowRank], names: dict[str, tuple[str, ...]]) -> dict[str, LowRank]:
    """The inverse of `_apart`."""
    return {
        kind: jax.tree.map(lambda *slots: jnp.stack(slots, axis=1), *(additions[name] for name in own))
        for kind, own in names.items()
    }


def _windows(
    stream: Stream, start: Array, first: Array, count: Array, width: int, chunk: int
) -> tuple[Int[Array, "rows width"], Int[Array, "rows chunk"], Int[Array, "rows chunk *two"]]:
    """Inputs, 0 past the window's end, and positions and targets of the chunk, those past its count the last one's.

    Beside each target there is its hint, where the stream has some.
    """
    tokens, place = stream.tokens, jnp.arange(width)
    inputs = tokens.at[start[:, None] + place].get(mode="clip").astype(jnp.int32)
    inputs = jnp.where(place < (first + count)[:, None], inputs, 0)
    positions = first[:, None] + jnp.minimum(jnp.arange(chunk), jnp.maximum(count - 1, 0)[:, None])
    inside = start[:, None] + positions
    targets = tokens.at[inside + 1].get(mode="clip").astype(jnp.int32)
    if stream.hints is not None:
        hints = stream.hints.at[inside].get(mode="clip").astype(jnp.int32)
        targets = jnp.stack([targets, hints], axis=-1)
    return inputs, positions, targets


def _adamw(
    rates: Float[Array, " rows"], correction: Array, decay: Array, beta2: Array, epsilon: Array, value, moment, grad
) -> tuple[Array, Array]:
    """A step of AdamW whose first moment has no memory: the new value and second moment."""
    rate = rates[:, None, None, None]
    moment = beta2 * moment + (1 - beta2) * jnp.square(grad)
    return value * (1 - rate * decay) - rate * grad / (jnp.sqrt(moment / correction) + epsilon), moment
