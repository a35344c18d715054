"""A model reads texts token by token, however long they are: a cached step, and what happens when the cache is full."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgolf import compiling
from jgolf.config import ModelConfig
from jgolf.evaluate.nats import scoring_model
from jgolf.model.cache import Cache, empty_cache, step
from jgolf.model.functional import Params

REPEATABLE: dict[str, bool | int] = {"xla_gpu_autotune_level": 0, "xla_gpu_deterministic_ops": True}
"""For a GPU's compiler: the same program every time, not the one that was the fastest this time."""


def repeatable_options() -> dict[str, Any]:
    """Options of the compiler by which a program gives the same numbers in every process on such a machine."""
    options = compiling.options()
    return options | REPEATABLE if options else options


class Stepper:
    """Rows of tokens, read in step with one another; every step gives the logits of the next token.

    A prediction sees up to `context` tokens. Where these are read, the last half is read again from the start of an
    empty cache, so that positions are always those of training, and the next half has between half and all of them.
    """

    def __init__(
        self, config: ModelConfig, params: Params, rows: int, context: int, seq_len: int, documents: bool = False
    ):
        """
        Args:
          config: the network.
          params: its parameters.
          rows: texts that are read side by side.
          context: most tokens that a prediction sees.
          seq_len: length that the model was trained on, by which its rotary base is chosen where it is longer.
          documents: whether the model was trained on documents apart.
        """
        self._config = scoring_model(config)
        self._params = jax.device_put(params)
        self._rows, self._context = rows, context
        self._program = _program(self._config, max(context, seq_len), documents)
        self.restart()

    def restart(self) -> None:
        """Forgets all tokens."""
        self._cache: Cache = {}  # its memory is free before the new one takes its own
        self._cache = empty_cache(self._config, self._rows, self._context)
        self._read: list[Int[Array, " rows"]] = []

    def __call__(self, tokens: Int[Array, " rows"]) -> Float[Array, "rows vocab"]:
        """Reads the next token of each row; float32 logits of the ones that follow."""
        if len(self._read) == self._context:
            again = self._read[self._context - self._context // 2 :]
            self.restart()
            for earlier in again:
                self._step(earlier)
        return self._step(jnp.asarray(tokens, jnp.int32))

    def _step(self, tokens: Int[Array, " rows"]) -> Float[Array, "rows vocab"]:
        self._read.append(tokens)
        logits, self._cache = self._program(self._params, self._cache, tokens)
        return logits


@cache
def _program(config: ModelConfig, rotary_length: int, documents: bool) -> Any:
    """The compiled step; the cache that it is given is used up."""

    def next_logits(params: Params, cache: Cache, tokens: Int[Array, " rows"]) -> tuple[Array, Cache]:
        return step(config, params, cache, tokens, documents=documents, rotary_length=rotary_length)

    return jax.jit(next_logits, donate_argnums=1, compiler_options=repeatable_options())
