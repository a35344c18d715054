"""What each technique of a recipe is worth: the recipe without it, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from jgolf.config import Config
from jgolf.config.parts import PARTS, Part
from jgolf.errors import ConfigError
from jgolf.sweep.grid import SweepRun, spelled, with_seeds
from jgolf.sweep.results import CONFIDENCE, QUANTIZED, RunResult, half_interval

WITHOUT = "without"
NOTHING = "nothing"


@dataclass(frozen=True)
class Difference:
    """One figure of the recipe without a technique against that of the whole recipe.

    Attributes:
      seeds: with which both have a figure that is a number.
      without: mean of the recipe without it, over these seeds.
      gain: that mean − the whole recipe's; NaN without a seed.
      interval: half the width of the 95 % confidence interval of `gain`; NaN for fewer than two seeds.
    """

    seeds: int
    without: float
    gain: float
    interval: float


@dataclass(frozen=True)
class Worth:
    """What a technique gives and what it takes.

    Attributes:
      technique: the name of its part.
      quantized: what it gains in bits per byte, in the artifact's weights.
      before: the same in the average that the run exports, before quantization.
      artifact_bytes: what it adds to the artifact, in the mean of the seeds with which both have one; NaN without any.
    """

    technique: str
    quantized: Difference
    before: Difference
    artifact_bytes: float


def make_ablation(
    base: Config, seeds: int, techniques: Sequence[str] = (), parts: Sequence[Part] = PARTS
) -> list[SweepRun]:
    """The recipe, then the recipe without each technique that it has, each with `seeds` seeds.

    Args:
      base: the recipe.
      seeds: runs of each.
      techniques: names of parts, in any case, with x for ×; all of them by default.
      parts: those that the recipe may have.

    Raises:
      ConfigError: there are no seeds, nothing to leave out, or a name is no part's.
    """
    known = {_typed(part.name): part.name for part in parts}
    unknown = [name for name in techniques if _typed(name) not in known]
    if unknown:
        raise ConfigError(f"--techniques {unknown[0]!r}: expected some of {', '.join(map(repr, known.values()))}")
    names = [known[_typed(name)] for name in techniques] or list(known.values())
    runs = with_seeds(base, seeds, {WITHOUT: NOTHING})
    for part in parts:
        if part.name in names and part.is_in(base):
            runs += with_seeds(part.left_out_of(base), seeds, {WITHOUT: part.name})
    if len(runs) == seeds:
        raise ConfigError(f"--ablate: {base.name} has none of the techniques that can be left out: {', '.join(names)}")
    return runs


def _typed(name: str) -> str:
    return name.casefold().replace("×", "x")


def worths(results: Sequence[RunResult]) -> list[Worth]:
    """What each technique is worth, in the order of the results; `make_ablation` made their runs.

    A run is compared with the whole recipe of the same seed, which a variant of the same shapes has its first
    weights in common with. The intervals are those of Student's paired t-test, one for each technique: what
    a change of the network adds to the noise says nothing about a change at the end of training.
    """
    quantized = _differences(_by_variant(results, lambda result: _bpb(result, QUANTIZED)))
    before = _differences(_by_variant(results, lambda result: _bpb(result, result.run.config.average.export)))
    sizes = _differences(_by_variant(results, lambda result: result.artifact_bytes))
    return [
        Worth(technique, quantized[technique], before[technique], -sizes[technique].gain) for technique in quantized
    ]


def _by_variant(
    results: Sequence[RunResult], value: Callable[[RunResult], float | None]
) -> dict[str, dict[int, float]]:
    """What was left out → seed → the value of its run, as far as it is a number."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        of = found.setdefault(result.run.setting[WITHOUT], {})
        one = value(result)
        if one is not None and math.isfinite(one):
            of[result.run.seed] = one
    return found


def _bpb(result: RunResult, weights: str) -> float | None:
    return result.scores[weights].val_bpb if weights in result.scores else None


def _differences(values: Mapping[str, Mapping[int, float]]) -> dict[str, Difference]:
    whole = values.get(NOTHING, {})
    return {technique: _difference(of, whole) for technique, of in values.items() if technique != NOTHING}


def _difference(without: Mapping[int, float], whole: Mapping[int, float]) -> Difference:
    seeds = [seed for seed in without if seed in whole]
    if not seeds:
        return Difference(0, math.nan, math.nan, math.nan)
    gains = np.array([without[seed] - whole[seed] for seed in seeds])
    mean = float(np.mean([without[seed] for seed in seeds]))
    return Difference(len(seeds), mean, float(gains.mean()), half_interval(gains))


def worths_table(found: Sequence[Worth], parts: Sequence[Part] = PARTS) -> Table:
    """The techniques for a terminal; under each, what leaves it out."""
    off = {part.name: part.off for part in parts}
    table = Table(
        title="What each technique is worth: bits per byte without it − with it", box=box.SIMPLE, pad_edge=False
    )
    table.add_column("technique, and\nwhat leaves it out", no_wrap=True)
    for column in ("quantized", "before\nquantization", "bytes it\nadds"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        settings = dict.fromkeys(
            f"{name.rpartition('.')[2]}={spelled(value) or 'none'}" for name, value in off[one.technique].items()
        )
        size = "–" if math.isnan(one.artifact_bytes) else f"{one.artifact_bytes:+,.0f}"
        name = Text.assemble(f"{one.technique}\n", (", ".join(settings), "dim"))
        table.add_row(name, _shown(one.quantized), _shown(one.before), size)
    table.caption = f"± half the {CONFIDENCE:.0%} confidence interval of the differences, seed by seed"
    return table


def _shown(one: Difference) -> str:
    if math.isnan(one.gain):
        return "no score"
    return f"{one.gain:+.4f}" + ("" if math.isnan(one.interval) else f" ± {one.interval:.4f}")
