"""SGD of all weights on text that has been scored: what the phases of one scorer and the chunks of another share.

Text is cut into chunks, chunks into rows. A chunk's rows are dealt to ranks, whatever the number of devices; a step
takes some rows of every rank, and the mean of the ranks' gradients. Of the last chunk nothing is used: its learning
rate would be 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jgolf import compiling
from jgolf.config import ModelConfig, SGDConfig
from jgolf.errors import ConfigError
from jgolf.model.functional import Params, token_losses
from jgolf.optim.optimizer import clipped


class StepReport(NamedTuple):
    """What a step did, arrays that may still be in the making."""

    learning_rate: float
    grad_norm: Float[Array, ""]
    """Before clipping."""
    loss: Float[Array, ""]
    """Mean over the ranks, nats a token."""


class Sgd:
    """Steps of SGD with momentum on the rows of a chunk."""

    def __init__(self, config: ModelConfig, settings: SGDConfig, mesh: Mesh, documents: bool, looped: bool = True):
        """
        Args:
          config: the network.
          settings: with a `row_length`.
          mesh: devices; they share the ranks where their number divides the ranks'.
          documents: the rows of a rank in a step are one packed row in which documents keep apart, and pieces of
            `row_length` of longer ones; otherwise every row is a piece.
          looped: see `jgolf.model.functional`.

        Raises:
          ConfigError: a chunk holds no row.
        """
        if settings.chunk_tokens < settings.row_length:
            raise ConfigError(
                f"chunk_tokens is {settings.chunk_tokens}: expected at least {settings.row_length}, a row of row_length"
            )
        self.settings = settings
        rows = settings.chunk_tokens // settings.row_length
        self.ranks = min(settings.num_ranks, rows)
        bounds = rows * np.arange(self.ranks + 1) // self.ranks
        self._first, self._rows = bounds[:-1], np.diff(bounds)
        self._rows_at_once = min(settings.batch_rows, int(self._rows.max()))
        shared = self.ranks % mesh.size == 0
        self._sharding = NamedSharding(mesh, P(mesh.axis_names[0]) if shared else P())
        self._program = _program(config, settings.row_length, settings.grad_clip, mesh, shared, documents, looped)
        self._hyper = np.float32(settings.momentum)

    def num_chunks(self, num_targets: int) -> int:
        """Chunks of a text, the last one perhaps short."""
        return -(-num_targets // self.settings.chunk_tokens)

    def learning_rate(self, chunk: int, num_chunks: int) -> float:
        """Of a chunk from 0: up over the warm-up, then down half a cosine that is 0 at the last chunk."""
        warmup = self.settings.warmup_chunks
        if chunk < warmup:
            return self.settings.learning_rate * (chunk + 1) / (warmup + 1)
        return self.settings.learning_rate * (1 + math.cos(math.pi * (chunk - warmup) / (num_chunks - 1 - warmup))) / 2

    def train(
        self, params: Params, momentum: Params, tokens: np.ndarray, chunk: int, num_chunks: int
    ) -> tuple[Params, Params, list[StepReport]]:
        """Every step on a chunk, which is not the last and so is whole.

        Args:
          params, momentum: given up.
          tokens: the text's.
          chunk, num_chunks: number of the chunk, and how many there are.
        """
        rate, reports = self.learning_rate(chunk, num_chunks), []
        for _ in range(self.settings.epochs):
            for batch in self._batches(tokens, chunk * self.settings.chunk_tokens):
                params, momentum, norm, loss = self._program(params, momentum, *batch, np.float32(rate), self._hyper)
                reports.append(StepReport(rate, norm, loss))
        return params, momentum, reports

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Of a step's arguments after the weights."""
        size = (self.ranks, self._rows_at_once, self.settings.row_length)
        tokens = jax.ShapeDtypeStruct(size, jnp.int32, sharding=self._sharding)
        return tokens, tokens, jax.ShapeDtypeStruct(size[:2], jnp.float32, sharding=self._sharding)

    def compile(self, params: Params) -> None:
        """Makes the program ready for weights of these shapes."""
        number = jax.ShapeDtypeStruct((), jnp.float32)
        weights = tuple((path, described(value)) for path, value in params.items())
        self._program = _compiled(self._program, weights, (*self.shapes(), number, number))

    def _batches(self, tokens: np.ndarray, begin: int) -> Iterator[tuple[Array, ...]]:
        """Inputs and targets [ranks, rows, row_length] of each step, and which rows count [ranks, rows]."""
        length = self.settings.row_length
        for first in range(0, int(self._rows.max()), self._rows_at_once):
            number = first + np.arange(self._rows_at_once)
            counts = number < self._rows[:, None]
            position = begin + length * (self._first[:, None] + np.where(counts, number, 0))
            taken = tokens[position[..., None] + np.arange(length + 1)].astype(np.int32)
            parts = taken[..., :-1], taken[..., 1:], counts.astype(np.float32)
            yield tuple(jax.device_put(part, self._sharding) for part in parts)


def described(array: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What a program is compiled for, of an argument."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def zeros_like(params: Params, sharding: NamedSharding) -> Params:
    """A momentum to begin with."""
    return _zeros_like(sharding)(params)


@cache  # a `jax.jit` anew is a compilation anew
def _zeros_like(sharding: NamedSharding) -> Callable[[Params], Params]:
    return jax.jit(partial(jax.tree.map, jnp.zeros_like), out_shardings=sharding)


@cache
def _compiled(
    program: Callable, weights: tuple[tuple[str, jax.ShapeDtypeStruct], ...], rest: tuple[jax.ShapeDtypeStruct, ...]
) -> Callable:
    return program.lower(dict(weights), dict(weights), *rest).compile(compiler_options=compiling.options())


@cache
def _program(
    config: ModelConfig, row_length: int, grad_clip: float, mesh: Mesh, shared: bool, documents: bool, looped: bool
) -> Callable:
    """(params, momentum, inputs, targets, counts, learning rate, momentum's decay) → params, momentum, norm, loss."""
    axis, piece_length = mesh.axis_names[0], row_length if documents else 0

    def loss_of(
        params: Params, inputs: Int[Array, "R k L"], targets: Int[Array, "R k L"], counts: Float[Array, "R k"]
    ) -> Float[Array, ""]:
        shape = (len(inputs), -1) if documents else (-1, row_length)
        losses = token_losses(
            config, params, inputs.reshape(shape), targets.reshape(shape), piece_length=piece_length, looped=looped
        )
        by_rank = jnp.sum(losses.reshape(inputs.shape).mean(-1) * counts, axis=1)
        return jnp.mean(by_rank / jnp.maximum(jnp.sum(counts, axis=1), 1))

    def step(params, momentum, inputs, targets, counts, learning_rate, decay):
        loss, grads = jax.value_and_grad(loss_of)(params, inputs, targets, counts)
        if shared:
            loss, grads = jax.lax.pmean((loss, grads), axis)
        grads, norm = clipped(grads, grad_clip)
        momentum = {path: decay * momentum[path] + grad for path, grad in grads.items()}
        params = {path: value - learning_rate * momentum[path] for path, value in params.items()}
        return params, momentum, norm, loss

    rows = P(axis) if shared else P()
    specs = (P(), P(), rows, rows, rows, P(), P())
    sharded = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return jax.jit(sharded, donate_argnums=(0, 1))
