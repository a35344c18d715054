"""Runs that differ in their seeds alone, and what their seeds say against those of others."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jgolf.compare.sides import MARGIN, SIGNIFICANCE, compare_sides
from jgolf.compare.ttest import CONFIDENCE
from jgolf.compare.unit import unit_of
from jgolf.errors import JgolfError
from jgolf.history import SCORE_KINDS, History
from jgolf.progress import counted
from jgolf.sweep.ablation import NOTHING, WITHOUT
from jgolf.sweep.results import half_interval

UNINTERESTING = ("version", "name", "data.dir", "data.tokenizer", "data.build_demo")
"""Settings that say nothing about how a run was trained."""
BASELINE = "baseline"
MOST_COMPARED = 24
"""Groups of which every one is tested against every other; of more, against the baseline alone."""
_SEED_IN_NAME = re.compile(r"[-_. ]*seed[-_. ]*[0-9]+", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """Runs of one recipe.

    Attributes:
      name: what plots call it.
      runs: its seeds.
      kind: of SCORE_KINDS, the one that is compared; "" where no run has a score.
    """

    name: str
    runs: Sequence[History]
    kind: str

    @property
    def bpb(self) -> np.ndarray:
        """Bits per byte of the runs whose score is a number, [seeds]."""
        found = np.array([score_of(run, self.kind) for run in self.runs])
        return found[np.isfinite(found)]

    @property
    def mean(self) -> float:
        """Of `bpb`; NaN without any."""
        return float(self.bpb.mean()) if len(self.bpb) else math.nan

    @property
    def half(self) -> float:
        """Half the 95 % confidence interval of the mean; NaN for fewer than two seeds."""
        return half_interval(self.bpb)


class Against(NamedTuple):
    """A group against the baseline, in bits per byte."""

    difference: float
    """Its mean − the baseline's: below 0 it is better."""
    half: float
    """Half the 95 % confidence interval; NaN where seeds do not tell it."""
    told: str
    """In words."""


def score_of(run: History, kind: str) -> float:
    """Bits per byte of one of the run's scores; NaN where it has none."""
    return run.scores[kind].val_bpb if kind in run.scores else math.nan


def compared_kind(runs: Sequence[History]) -> str:
    """The last of SCORE_KINDS that every run that is scored at all has; "" where none is scored."""
    scored = [run for run in runs if any(math.isfinite(score_of(run, kind)) for kind in SCORE_KINDS)]
    kinds = [kind for kind in SCORE_KINDS if scored and all(math.isfinite(score_of(run, kind)) for run in scored)]
    return kinds[-1] if kinds else _most_frequent(scored)


def _most_frequent(runs: Sequence[History]) -> str:
    counts = {kind: sum(math.isfinite(score_of(run, kind)) for run in runs) for kind in reversed(SCORE_KINDS)}
    return max(counts, key=counts.__getitem__) if runs else ""


def with_groups(runs: Sequence[History]) -> list[History]:
    """The runs, those that differ in their seeds alone called alike; a sweep's are already.

    Runs of ours do where all other settings and the commit are alike, and no seed is there twice; logs where they lie
    in one folder and their names are alike but for "seed" and its number.
    """
    members: dict[tuple, list[History]] = {}
    for run in runs:
        members.setdefault(_recipe(run), []).append(run)
    names = {key: _common_name([run.name for run in of]) for key, of in members.items()}
    taken = [run.group for run in runs if run.group] + [run.name for run in runs]
    taken += list(names.values())
    found = []
    for run in runs:
        key = _recipe(run)
        seeds = {one.config.get("train.seed", one.name) for one in members[key]}
        alike = not run.group and len(members[key]) == len(seeds) > 1
        name = names[key] if taken.count(names[key]) == 1 else ", ".join(one.name for one in members[key])
        found.append(replace(run, group=name) if alike else run)
    return found


def _recipe(run: History) -> tuple:
    """What runs of one recipe have in common."""
    if run.group:
        return ("sweep", run.group)
    if run.config:
        left_out = (*UNINTERESTING, "train.seed")
        settings = sorted((name, json.dumps(value)) for name, value in run.config.items() if name not in left_out)
        return (*settings, run.starts[-1].get("commit") if run.starts else None)
    plain = _SEED_IN_NAME.sub("", run.path.stem)
    return ("log", str(run.path.resolve().parent), plain) if plain != run.path.stem else ("log", run.name)


def _common_name(names: Sequence[str]) -> str:
    """The words that the names begin with, or all of them where that is nothing."""
    start = os.path.commonprefix(list(names)).rstrip("0123456789")
    if not all(name[len(start) :].isdigit() for name in names):
        start = re.sub(r"[^-_. /,]*$", "", start)
    return re.sub(r"((^|[-_. /])(seed|s))?[-_. /,]*$", "", start) or ", ".join(names)


def groups_of(runs: Sequence[History], kind: str) -> list[Group]:
    """The groups in the order of their first runs."""
    members: dict[str, list[History]] = {}
    for run in runs:
        members.setdefault(run.legend, []).append(run)
    return [Group(name, of, kind) for name, of in members.items()]


def default_baseline(groups: Sequence[Group]) -> int:
    """The whole recipe of an ablation, else the group that was named first."""
    whole = f"{WITHOUT} {NOTHING}"
    return next((place for place, group in enumerate(groups) if group.name == whole), 0)


def best_group(groups: Sequence[Group]) -> int | None:
    """The place of the group with the lowest mean; None where none has a score."""
    scored = [(group.mean, place) for place, group in enumerate(groups) if math.isfinite(group.mean)]
    return min(scored)[1] if scored else None


def against(a: Group, b: Group) -> Against:
    """What a group's seeds say against the baseline's, by the challenge's test where there are seeds."""
    difference = a.mean - b.mean
    if a is b or a.name == b.name:
        return Against(0.0, math.nan, BASELINE)
    if not math.isfinite(difference):
        return Against(math.nan, math.nan, f"not comparable with {b.name}: no score of the same kind")
    direction = _direction(difference, b)
    if len(a.bpb) < len(a.runs) or len(b.bpb) < len(b.runs):
        return Against(difference, math.nan, f"{direction}; not tested: some runs have no such score")
    try:
        unit_of([a.runs, b.runs], a.kind)
    except JgolfError:
        return Against(difference, math.nan, f"{direction}; not tested: that both scored the same text is not known")
    if min(len(a.bpb), len(b.bpb)) < 2:
        counts = f"{counted(len(a.bpb), 'run')} against {len(b.bpb)}"
        return Against(difference, math.nan, f"{direction}; {counts}: the seeds’ noise is not known")
    if not all(math.isfinite(run.scores[a.kind].val_loss) for run in (*a.runs, *b.runs)):
        return Against(difference, math.nan, f"{direction}; not tested: some losses in nats are not known")
    try:
        found = compare_sides([a.runs, b.runs], a.kind)
    except JgolfError as error:
        return Against(difference, math.nan, f"{direction}; not tested: {error}")
    in_nats = found.unit.tokens is None
    bits_a_nat = b.mean / found.b.mean if in_nats else 1 / found.unit.nats_per_bit_per_byte
    difference = -bits_a_nat * found.test.difference
    low, high = (-bits_a_nat * nats for nats in reversed(found.test.interval))
    verdict = "passes" if found.is_record() else "does not pass"
    told = (
        f"{_direction(difference, b)}{'' if in_nats else ' over the same bytes'} ({100 * CONFIDENCE:.0f} % interval "
        f"{signed(low)} to {signed(high)}, "
        f"{'paired' if found.is_paired else 'Welch’s'} t-test over {len(a.bpb)} and {len(b.bpb)} seeds); "
        f"{verdict} the challenge’s test for a record: p = {found.test.p_value:.2g} of at least {MARGIN:g} nats, asked "
        f"for < {SIGNIFICANCE:g}"
    )
    return Against(difference, (high - low) / 2, told)


def signed(value: float) -> str:
    """A difference of bits per byte, with its sign."""
    return "–" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _direction(difference: float, b: Group) -> str:
    return f"{abs(difference):.4f} {'lower' if difference < 0 else 'higher'} than {b.name}"


def all_against(groups: Sequence[Group], baseline: int) -> dict[int, list[Against]]:
    """Place of a baseline → what each group is against it; for many groups of the one baseline only."""
    places = range(len(groups)) if len(groups) <= MOST_COMPARED else [baseline]
    return {place: [against(group, groups[place]) for group in groups] for place in places}
