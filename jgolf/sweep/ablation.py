"""What each technique of a recipe is worth: the recipe without it, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from jgolf import config as configs
from jgolf.config import Config
from jgolf.errors import ConfigError
from jgolf.sweep.grid import SweepRun, spelled, with_seeds
from jgolf.sweep.results import CONFIDENCE, QUANTIZED, RunResult, half_interval

WITHOUT = "without"
NOTHING = "nothing"

OFF: dict[str, dict[str, Any]] = {
    "BigramHash": {"model.bigram_buckets": 0},
    "SmearGate": {"model.smear_gate": False},
    "XSA": {"model.xsa_layers": ()},
    "partial RoPE": {"model.rope_dims": 0},
    "value embedding": {"model.value_embedding_layers": ()},
    "U-Net skips": {"model.unet_skips": False},
    "LN scale": {"model.ln_scale": False},
    "q gain": {"model.q_gain": 0.0},
    "logit softcap": {"model.logit_softcap": 0.0},
    "3× MLP": {"model.mlp_multiple": 2.0},
    "tied embeddings": {"model.tie_embeddings": False},
    "OrthoInit": {"model.orthogonal_init": False},
    "Muon": {"optim.matrices": "adamw"},
    "momentum warm-up": {"optim.muon.momentum_warmup_steps": 0},
    "weight decay": {"optim.muon.weight_decay": 0.0, "optim.adamw.weight_decay": 0.0},
    "gradient clip": {"optim.grad_clip": 0.0},
    "warmdown": {"train.warmdown_steps": 0},
    "EMA": {"average.export": "raw"},
    "late QAT": {"quantize.late_qat_start": 0.0},
    "clip search": {"quantize.clip_percentiles": (1.0,)},
    "Int5 MLP": {"quantize.mlp": "int6"},
}
"""Technique → the settings that leave it out, or put what is usual in its place.

Without a warmdown the learning rate never falls to where late QAT and SWA begin, so these go with it.
"""
ON: dict[str, dict[str, Any]] = {
    "3× MLP": {"model.mlp_multiple": 3.0},
    "EMA": {"average.export": "ema"},
    "Int5 MLP": {"quantize.mlp": "int5"},
}
"""What a config must say to have the technique; of the others, it has those that OFF would change."""


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
      technique: its name in OFF.
      quantized: what it gains in bits per byte, in the artifact's weights.
      before: the same in the average that the run exports, before quantization.
      artifact_bytes: what it adds to the artifact, in the mean of the seeds with which both have one; NaN without any.
    """

    technique: str
    quantized: Difference
    before: Difference
    artifact_bytes: float


def make_ablation(base: Config, seeds: int, techniques: Sequence[str] = ()) -> list[SweepRun]:
    """The recipe, then the recipe without each technique that it has, each with `seeds` seeds.

    Args:
      base: the recipe.
      seeds: runs of each.
      techniques: names in OFF, in any case, with x for ×; all of them by default.

    Raises:
      ConfigError: there are no seeds, nothing to leave out, or a name is not in OFF.
    """
    known = {_typed(name): name for name in OFF}
    unknown = [name for name in techniques if _typed(name) not in known]
    if unknown:
        raise ConfigError(f"--techniques {unknown[0]!r}: expected some of {', '.join(map(repr, OFF))}")
    techniques = [known[_typed(name)] for name in techniques]
    runs = with_seeds(base, seeds, {WITHOUT: NOTHING})
    for technique, settings in OFF.items():
        config = configs.replace_all(base, settings)
        has_it = config != base and configs.replace_all(base, ON.get(technique, {})) == base
        if has_it and technique in (techniques or OFF):
            runs += with_seeds(config, seeds, {WITHOUT: technique})
    if len(runs) == seeds:
        names = ", ".join(techniques or OFF)
        raise ConfigError(f"--ablate: {base.name} has none of the techniques that can be left out: {names}")
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


def worths_table(found: Sequence[Worth]) -> Table:
    """The techniques for a terminal; under each, what leaves it out."""
    table = Table(
        title="What each technique is worth: bits per byte without it − with it", box=box.SIMPLE, pad_edge=False
    )
    table.add_column("technique, and\nwhat leaves it out", no_wrap=True)
    for column in ("quantized", "before\nquantization", "bytes it\nadds"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        settings = dict.fromkeys(
            f"{name.rpartition('.')[2]}={spelled(value) or 'none'}" for name, value in OFF[one.technique].items()
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
