"""Floating-point operations that the model itself asks for, read off the written network.

A product of [n, i] and [i, o] counts 2·n·i·o; attention counts the pairs of positions that causality leaves.
The backward pass does twice the forward pass: a product for the gradient of each factor. What an
implementation computes again, or computes and masks, does not count, nor does anything that is no product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from jgolf.config import ModelConfig, resolved
from jgolf.config.plan import make_plan
from jgolf.model.functional import hidden, logits_of, parameter_shapes


@cache
def forward_flops(model: ModelConfig, sequences: int, seq_len: int, last: int = 0, looped: bool = True) -> int:
    """Operations to get the logits of the `last` positions of each sequence, or of all where it is 0."""
    model, last = resolved(dataclasses.replace(model, kernels="plain")), last or seq_len
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(model).items()}
    tokens = jax.ShapeDtypeStruct((sequences, seq_len), jnp.int32)

    def logits(params, tokens):
        return logits_of(model, params, hidden(model, params, tokens, looped=looped, last=last))

    with_kernels = sum(map(_flops, (each for each in _products(logits, params, tokens) if not _is_batched(each))))
    whole, inner_visits = attention_flops(model, sequences, seq_len), len(make_plan(model, looped)) - 1
    return with_kernels + inner_visits * whole + attention_flops(model, sequences, seq_len, last)


def train_flops(model: ModelConfig, sequences: int, seq_len: int, looped: bool = True) -> int:
    """Operations of the forward and the backward pass of a training step."""
    return 3 * forward_flops(model, sequences, seq_len, looped=looped)


def attention_flops(model: ModelConfig, sequences: int, seq_len: int, last: int = 0) -> int:
    """Operations of one layer's causal attention, forward: scores and weighted values, for the `last` queries or all.

    The query at position t, from 0, sees t + 1 keys.
    """
    last = last or seq_len
    pairs = last * seq_len - last * (last - 1) // 2
    return sequences * 4 * model.model_dim * pairs


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
