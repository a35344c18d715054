"""Low-rank additions: what test-time training learns for one row of a batch while the network's weights rest.

An addition reads the input x [B, T, D] of a matrix and adds (x @ down) @ up to its result (LoRA, arXiv 2106.09685),
with factors of its own for every row of the batch and every execution of a block. Shapes as in plain.py; r is the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgolf.config import ModelConfig
from jgolf.config.plan import Visit, make_plan
from jgolf.model.kernels.products import product

HEAD = "head"
"""The addition to the logits before the softcap; it reads the normalised output of the last block."""


class LowRank(NamedTuple):
    """The two factors of an addition, with whatever scale it has."""

    down: Float[Array, "B D r"]
    up: Float[Array, "B r out"]


Additions = Mapping[str, LowRank]
"""By name: HEAD, or "layer/run/kind" for q, k, v, o and mlp of a visit (`addition_name`). What is missing adds nothing.

q, k, v read attention's normalised input and add to the projections' results, before anything else is done to them;
o reads the same input and adds to the output projection's result; mlp reads the MLP's normalised input and adds to
its output. The last two come before the block's scales.
"""
NO_ADDITIONS: Additions = MappingProxyType({})


def addition_name(visit: Visit, kind: str) -> str:
    """The name of a visit's addition."""
    return f"{visit.layer}/{visit.run}/{kind}"


def additions_of(additions: Additions, visit: Visit) -> dict[str, LowRank]:
    """Kind → addition of one visit."""
    own = f"{visit.layer}/{visit.run}/"
    return {name.removeprefix(own): pair for name, pair in additions.items() if name.startswith(own)}


def addition_names(config: ModelConfig, kinds: Sequence[str], looped: bool = True) -> dict[str, tuple[str, ...]]:
    """Kind → the names of its additions, in the order of the plan."""
    plan = make_plan(config, looped)
    return {kind: (HEAD,) if kind == HEAD else tuple(addition_name(visit, kind) for visit in plan) for kind in kinds}


def addition_outputs(config: ModelConfig, kind: str) -> int:
    """Width of what additions of a kind add; all of them read `model_dim` channels."""
    return {"k": config.kv_dim, "v": config.kv_dim, HEAD: config.vocab_size}.get(kind, config.model_dim)


def added(additions: Additions, kind: str, x: Float[Array, "B T D"]) -> Float[Array, "B T out"] | None:
    """What the addition of that kind makes of x; None where there is none."""
    return added_together(additions, (kind,), x).get(kind)


def added_together(
    additions: Additions, kinds: Sequence[str], x: Float[Array, "B T D"]
) -> dict[str, Float[Array, "B T out"]]:
    """What the additions of several kinds make of x, which is read once for all of them."""
    given = [kind for kind in kinds if kind in additions]
    if not given:
        return {}
    reduced = product(x, jnp.concatenate([additions[kind].down for kind in given], axis=2))
    ends = [sum(additions[kind].down.shape[2] for kind in given[: index + 1]) for index in range(len(given) - 1)]
    parts = jnp.split(reduced, ends, axis=2)
    return {kind: product(part, additions[kind].up) for kind, part in zip(given, parts, strict=True)}


def plus(y: Float[Array, "B T out"], addition: Float[Array, "B T out"] | None) -> Float[Array, "B T out"]:
    """The sum, where there is something to add."""
    return y if addition is None else y + addition


def start_bound(inputs: int) -> float:
    """A fresh `down` is uniform within ± this; a fresh `up` is 0, so that nothing is added at first."""
    return 1 / math.sqrt(inputs)
