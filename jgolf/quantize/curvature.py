"""How much the loss minds an error in each weight: two factors of the Fisher information of each matrix.

For labels drawn from the model itself, the gradients of a sequence's loss have the Gauss–Newton matrix of
the loss as their second moment: an error e of the weights costs ½ eᵀ E[g gᵀ] e nats. For a matrix with
rows r (outputs) and columns c (inputs) that matrix is taken as a product of two factors (Martens & Grosse
2015, Gupta et al. 2018), of which the one over rows keeps its diagonal only:

    E[g_rc g_sd] ≈ [r = s] · rows_r · columns_cd / trace(columns),    rows = E[Σ_c g²],    columns = E[gᵀ g].

Nothing in the network is hooked: both are read off the gradients of the parameters.

Rows that stand for tokens, or pairs, need more text than gradients can be had of: a quarter of a vocabulary does not
occur in a few dozen sequences, and is 2 % of the next text. How often each occurs is counted in far more of it.

`input_moments` is what GPTQ has in their place: what the error of a matrix does to its own outputs, Σ x xᵀ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jgolf import rules
from jgolf.config import ModelConfig
from jgolf.model.embeddings import LOOKUPS
from jgolf.model.functional import Params, apply, hidden
from jgolf.model.kernels.loss import token_nll
from jgolf.watch import Progress, unwatched

Sums = dict[str, tuple[Float[Array, " rows"], Float[Array, "columns columns"]]]
"""Path → both factors, summed over sequences."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """Factors for one matrix [rows, columns], per token.

    Attributes:
      rows: [rows], nats a token for a squared error of one in every column of a row, summed over columns.
      columns: [columns, columns], the same summed over rows; but for rows that were counted elsewhere its trace is the
        sum of `rows`.
    """

    rows: np.ndarray
    columns: np.ndarray

    def damage(self, error: np.ndarray) -> float:
        """Nats a token that an error [rows, columns] of the weights costs, ½ Σ_r rows_r e_rᵀ columns e_r / trace."""
        per_row = np.einsum("rc,rc->r", error @ self.columns, error)
        return float(0.5 * (self.rows @ per_row) / max(np.trace(self.columns), 1e-30))


def curvature(
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    tokens: Int[np.ndarray, "sequences time"],
    key: PRNGKeyArray,
    progress: Progress = unwatched,
    piece_length: int = 0,
    counted: Sequence[Int[np.ndarray, " time"]] = (),
) -> dict[str, Curvature]:
    """Factors of every matrix and table, by path; their rows lie as those of the storage forms.

    The rows of a table that is only looked up count as often as they are looked up in `counted`. Those of a head, and
    of an embedding that is the head as well, have gradients of their own; where `tokens` lack occurrences that
    `counted` lets expect, these count as much as others on average.

    Args:
      config: the network.
      params: its parameters, path → float32.
      tokens: sequences of training text; one backward pass each.
      key: draws the labels.
      progress: shows how many sequences are done.
      piece_length: see `jgolf.model.functional`.
      counted: runs of training text, as much as there is time for; `tokens` if there are none.
    """
    params = jax.device_put(dict(params))
    sequences = zip(tokens, jax.random.split(key, len(tokens)), strict=True)
    sums = _summed(_gradient_factors, config, piece_length, params, progress(sequences, len(tokens)))
    shares = cache(partial(_shares, counted or list(tokens)))  # tables that are looked up alike are counted once
    seen = np.bincount(tokens.ravel(), minlength=config.vocab_size)
    found = {}
    for path, (rows, columns) in sums.items():
        rows, kind = rows.astype(np.float64), _kind(config, path)
        if kind in LOOKUPS:
            rows = shares(kind, len(rows)) * rows.sum()
        elif path in ("embed/embedding", "head/kernel"):
            rows = _with_missing(rows, seen, shares("token lookups", len(rows)) * tokens.size)
        found[path] = Curvature(rows / tokens.size, columns.astype(np.float64) / tokens.size)
    return found


def input_moments(
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    tokens: Int[np.ndarray, "sequences time"],
    batch_tokens: int,
    progress: Progress = unwatched,
    piece_length: int = 0,
) -> dict[str, Float[np.ndarray, "inputs inputs"]]:
    """Σ x xᵀ over the inputs x of every matrix at `batch_tokens` positions, by path, float32.

    They are summed over `tokens` and scaled to that many positions, over which no result depends but for inputs that
    are always 0. A block that runs more than once adds the inputs of all its runs. The inputs of an embedding that is
    the head as well are those of the head; tables that are only looked up have none.

    Args:
      config: the network; it runs as it is written, with the loop on.
      params: its parameters, path → float32.
      tokens: sequences of training text; one forward pass each.
      batch_tokens: see above.
      progress: shows how many sequences are done.
      piece_length: see `jgolf.model.functional`.
    """
    params = jax.device_put(dict(params))
    written = dataclasses.replace(config, kernels="plain")
    sequences = ((sequence,) for sequence in tokens)
    sums = _summed(_squared_inputs, written, piece_length, params, progress(sequences, len(tokens)))
    return {path: total * np.float32(batch_tokens / tokens.size) for path, total in sums.items()}


def _summed(
    of_one: Callable[..., Any], config: ModelConfig, piece_length: int, params: Params, sequences: Iterable[tuple]
) -> Any:
    """The sum over sequences of what `of_one` makes of each, a tree of arrays, on the host."""
    sums = None
    for own in sequences:
        if sums is None:
            shapes = jax.eval_shape(partial(of_one, config, piece_length), params, *own)
            sums = jax.tree.map(lambda one: jnp.zeros(one.shape), shapes)
        sums = jax.block_until_ready(_add(of_one, config, piece_length, sums, params, *own))
    return jax.device_get(sums)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _add(
    of_one: Callable[..., Any], config: ModelConfig, piece_length: int, sums: Any, params: Params, *own: Array
) -> Any:
    return jax.tree.map(jnp.add, sums, of_one(config, piece_length, params, *own))


def _squared_inputs(
    config: ModelConfig, piece_length: int, params: Params, sequence: Int[Array, " T"]
) -> dict[str, Float[Array, "inputs inputs"]]:
    """Path → Σ x xᵀ over the inputs of a matrix at the positions of a sequence."""
    sums: dict[str, Array] = {}

    def observe(name: str, x: Array) -> None:
        if name in params:
            x = x.reshape(-1, x.shape[-1])
            highest = jax.lax.Precision.HIGHEST
            square = jnp.matmul(x.T, x, precision=highest, preferred_element_type=jnp.float32)
            sums[name] = sums.get(name, 0) + square

    last = hidden(config, params, sequence[None], piece_length=piece_length, observe=observe)
    observe("embed/embedding" if config.tie_embeddings else "head/kernel", last)
    return sums


def _gradient_factors(
    config: ModelConfig, piece_length: int, params: Params, sequence: Int[Array, " T"], key: PRNGKeyArray
) -> Sums:
    grads = _gradients(config, piece_length, params, sequence, key)
    return {path: _factors(path, grad) for path, grad in grads.items() if rules.rule_of(path).curvature != "nothing"}


def _gradients(
    config: ModelConfig, piece_length: int, params: Params, sequence: Int[Array, " T"], key: PRNGKeyArray
) -> Params:
    """Of the summed loss of a sequence whose labels are drawn from the model."""

    def drawn_loss(params):
        logits = apply(config, params, sequence[None], piece_length=piece_length)
        labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        return jnp.sum(token_nll(logits, labels))

    return jax.grad(drawn_loss)(params)


def _factors(path: str, grad: Float[Array, ...]) -> tuple[Float[Array, " rows"], Float[Array, "columns columns"]]:
    grad = grad.T if rules.rule_of(path).transposed else grad
    return jnp.sum(grad * grad, axis=1), jnp.matmul(grad.T, grad, precision=jax.lax.Precision.HIGHEST)


def _with_missing(
    rows: Float[np.ndarray, " rows"], seen: Int[np.ndarray, " rows"], expected: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Sums of rows whose tokens were `seen` so often, and of those `expected` beyond that what one has on average."""
    return rows + rows.sum() / max(seen.sum(), 1) * np.maximum(expected - seen, 0)


def _kind(config: ModelConfig, path: str) -> str:
    """What counts the curvature along a parameter: an embedding apart from the head is only looked up."""
    if path == "embed/embedding" and not config.tie_embeddings:
        return "token lookups"
    return rules.rule_of(path).curvature


def _shares(counted: Sequence[Int[np.ndarray, " time"]], kind: str, rows: int) -> Float[np.ndarray, " rows"]:
    """How often each row is looked up: shares, with half an occurrence added to each; none counts for nothing."""
    counts = np.full(rows, 0.5)
    for run in counted:
        looked_up = LOOKUPS[kind](jnp.asarray(run, jnp.int32)[None], rows)
        counts += np.bincount(np.asarray(looked_up).ravel(), minlength=rows)
    return counts / counts.sum()
