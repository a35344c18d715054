"""Floating-point operations that the model itself asks for, read off the written network.

A product of [n, i] and [i, o] counts 2·n·i·o; attention counts the pairs of positions that causality, and the bounds of
documents where they are kept apart, leave. Each execution of a block counts. The backward pass does twice the forward
pass: a product for the gradient of each factor. What an implementation computes again, or computes and masks, does not
count, nor does anything that is no product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jaxtyping import Int

from jgolf.config import ModelConfig, resolved
from jgolf.config.plan import make_plan
from jgolf.model.context import piece_starts
from jgolf.model.functional import hidden, logits_of, parameter_shapes


@cache
def kernel_flops(model: ModelConfig, sequences: int, seq_len: int, last: int = 0, looped: bool = True) -> int:
    """Operations of the products with parameters, for the logits of the `last` positions, or of all where it is 0."""
    model, last = dataclasses.replace(model, kernels="plain"), last or seq_len
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(model).items()}
    tokens = jax.ShapeDtypeStruct((sequences, seq_len), jnp.int32)

    def logits(params, tokens):
        return logits_of(model, params, hidden(model, params, tokens, looped=looped, last=last))

    return sum(map(_flops, (each for each in _products(logits, params, tokens) if not _is_batched(each))))


def forward_flops(model: ModelConfig, sequences: int, seq_len: int, last: int = 0, looped: bool = True) -> int:
    """Operations to get the logits of the `last` positions of each sequence, or of all where it is 0."""
    inner_visits = len(make_plan(resolved(model), looped)) - 1
    pairs = inner_visits * visible_pairs(sequences, seq_len) + visible_pairs(sequences, seq_len, last)
    return kernel_flops(model, sequences, seq_len, last, looped) + attention_flops(model, pairs)


def train_flops(
    model: ModelConfig, tokens: Int[np.ndarray, "... T"], piece_length: int = 0, looped: bool = True
) -> int:
    """Operations of the forward and the backward pass of a training step on rows of tokens.

    Where `piece_length` is not 0, attention stays within documents, and within pieces of that many tokens.
    """
    rows = tokens.reshape(-1, tokens.shape[-1])
    pairs = pairs_within_pieces(rows, piece_length) if piece_length else visible_pairs(*rows.shape)
    visits = len(make_plan(resolved(model), looped))
    return 3 * (kernel_flops(model, *rows.shape, looped=looped) + attention_flops(model, visits * pairs))


def attention_flops(model: ModelConfig, pairs: int) -> int:
    """Operations of causal attention, forward: scores and weighted values of so many pairs of query and key."""
    return 4 * model.model_dim * pairs


def visible_pairs(sequences: int, seq_len: int, last: int = 0) -> int:
    """Pairs of a query and a key that it sees in whole rows, for the `last` queries of each or all.

    The query at position t, from 0, sees t + 1 keys.
    """
    last = last or seq_len
    return sequences * (last * seq_len - last * (last - 1) // 2)


def pairs_within_pieces(tokens: Int[np.ndarray, "B T"], piece_length: int) -> int:
    """The same where a query sees those of its own piece alone; see `jgolf.model.context.piece_starts`."""
    place = np.arange(tokens.shape[1])
    starts = np.asarray(piece_starts(jnp.asarray(tokens, jnp.int32), piece_length))
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    return int((place - first + 1).sum())


def newton_schulz_flops(count: int, rows: int, columns: int, steps: int) -> int:
    """Operations to orthogonalize `count` matrices: XXᵀ, its square, and the product with X, in each step."""
    short, long = sorted((rows, columns))
    return count * steps * (4 * short * short * long + 2 * short**3)


def product_flops(function: Callable, *arguments: Any) -> int:
    """Operations of all products that a function traces to; of a loop's body, once."""
    return sum(map(_flops, _products(function, *arguments)))


def _products(function: Callable, *arguments: Any) -> Iterator[JaxprEqn]:
    return _products_in(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products_in(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _products_in(inner)


def _is_batched(product: JaxprEqn) -> bool:
    """Whether it is many products at once, one a sequence and head: only attention has such."""
    _, (batch, _) = product.params["dimension_numbers"]
    return bool(batch)


def _flops(product: JaxprEqn) -> int:
    (contracted, _), _ = product.params["dimension_numbers"]
    left = product.invars[0].aval.shape
    return 2 * prod(product.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)
