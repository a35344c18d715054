"""The order in which a network's blocks run, as data: no arrays, so it can be checked before anything is compiled.

Layers are counted from 0 here: settings come through `jgolf.config.resolve`.

A plan is a tuple of visits, one for each execution of a block. The first half encode: what they leave is read
by the second half, the decoders, last in, first out. A loop runs some blocks more than once, with the same weights;
with it the two halves are those of the longer order. From `lanes_from` on attention and MLP have a lane each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jgolf.config.settings import ModelConfig


class Visit(NamedTuple):
    """One execution of a block."""

    layer: int
    """The block: its weights, and its number where something depends on the depth."""
    run: int
    """How often the block has run before."""
    reads: int | None
    """Place in the plan of the visit whose output is blended in first."""
    skip: int | None
    """Row of the skips' weights that blends it; rows belong to decoders, not to layers."""
    two_lanes: bool
    """Attention and MLP read and write a lane each."""

    @property
    def name(self) -> str:
        """The block's number, and which run of it this is where it is not the first."""
        return f"block {self.layer}" + f", run {self.run + 1}" * (self.run > 0)


Plan = tuple[Visit, ...]


def make_plan(config: ModelConfig, looped: bool = True) -> Plan:
    """The visits of `config`'s network, with its loop on or off; without loop layers both are the same."""
    order = layer_order(config, looped)
    encoders = len(order) // 2
    lanes_from, skips = first_lane_layer(config), num_skips(config)
    visits: list[Visit] = []
    unread = list(range(encoders))
    for place, layer in enumerate(order):
        decoder = place - encoders
        reads = unread.pop() if 0 <= decoder < skips and unread else None
        skip = None if reads is None else decoder
        two_lanes = decoder >= 0 and layer >= lanes_from
        visits.append(Visit(layer, order[:place].count(layer), reads, skip, two_lanes))
    return tuple(visits)


def layer_order(config: ModelConfig, looped: bool) -> tuple[int, ...]:
    """The layers as they run one after the other."""
    layers = tuple(range(config.num_layers))
    if not (looped and config.loop_layers):
        return layers
    first, last = config.loop_layers[0], config.loop_layers[-1]
    return layers[:first] + config.loop_layers * (config.num_loops + 1) + layers[last + 1 :]


def num_skips(config: ModelConfig) -> int:
    """Rows of the skips' weights: as many as encoders and decoders of the longer order have in common."""
    return len(layer_order(config, looped=True)) // 2 if config.unet_skips else 0


def first_lane_layer(config: ModelConfig) -> int:
    """The first layer with two lanes; past the last where there is none."""
    return config.lanes_from or config.num_layers


def kept(plan: Plan) -> set[int]:
    """Places of the visits whose output a later one reads."""
    return {visit.reads for visit in plan if visit.reads is not None}


def plan_problems(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Pairs of a setting's name and what it should have been for a plan that makes sense."""
    loop, first = config.loop_layers, first_lane_layer(config)
    if loop and loop != tuple(range(loop[0], loop[0] + len(loop))):
        yield "model.loop_layers", "layers that follow one another"
        return
    if loop and first <= loop[-1]:
        yield (
            "model.lanes_from",
            f"a layer after the loop, {loop[-1] + 1} or more: the loop's next run would read a stream that has "
            "already been split into lanes",
        )
        return
    for looped in (False, True):
        encoders = layer_order(config, looped)[: len(layer_order(config, looped)) // 2]
        if any(layer >= first for layer in encoders):
            yield (
                "model.lanes_from",
                f"a layer of the decoder's, {max(encoders) + 1} or more: encoders leave one stream for the skips",
            )
            return
