"""Which runs a sweep is made of, and which of them can be one program."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jgolf import config as configs
from jgolf.config import Config, Mark
from jgolf.errors import ConfigError
from jgolf.progress import counted
from jgolf.reading import excerpt

SEED = "train.seed"
MOST_RUNS = 10_000
"""Of a sweep: as many as are made, told apart and tabulated in seconds."""
SWITCHES = configs.marked(Config, Mark.TRACED_ABOVE_0)
"""Settings of which 0 and another value are two programs: they are a part of the state or not."""
TRACEABLE = configs.marked(Config, Mark.TRACED, Mark.TRACED_ABOVE_0)
"""Settings that the step takes as values: runs that differ in these alone are one program, but for SWITCHES."""
AFTER_TRAINING = configs.marked(Config, Mark.AFTER_TRAINING)
"""Settings that training never looks at."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      config: its settings.
      setting: what tells it from the others, without the seed: the varied settings' values, say.
    """

    config: Config
    setting: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.config.train.seed


def make_runs(base: Config, seeds: int, assignments: Sequence[str]) -> list[SweepRun]:
    """Every combination of the assigned values, each with seeds `base.train.seed`, + 1, ….

    Args:
      base: settings of all that is not varied.
      seeds: runs of each combination.
      assignments: as on the command line, "optim.muon.learning_rate=0.02,0.025".

    Raises:
      ConfigError: a name, a value or a combination that makes no sense.
    """
    varied: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, values = _parse(base, assignment)
        if name in varied:
            raise ConfigError(f"--set {name}: given twice; expected all its values in one: {name}=A,B")
        varied[name] = values
    settings = math.prod(len(values) for values in varied.values())
    if seeds * settings > MOST_RUNS:
        of = f" of {counted(settings, 'setting')}" if varied else ""
        raise ConfigError(
            f"--seeds {seeds}{of}: {seeds * settings:,} runs, expected at most {MOST_RUNS:,}: give fewer of either"
        )
    runs = []
    for values in itertools.product(*varied.values()):
        setting = dict(zip(varied, values, strict=True))
        runs += with_seeds(configs.replace_all(base, setting), seeds, setting)
    return runs


def with_seeds(config: Config, seeds: int, setting: dict[str, Any]) -> list[SweepRun]:
    """`seeds` runs of `config`, with seeds `config.train.seed`, + 1, ….

    Raises:
      ConfigError: there are no seeds, or the settings make no sense.
    """
    if not 1 <= seeds <= MOST_RUNS:
        raise ConfigError(f"--seeds {seeds}: expected from 1 to {MOST_RUNS:,}")
    first = config.train.seed
    return [
        SweepRun(configs.validate(configs.replace(config, SEED, seed)), setting) for seed in range(first, first + seeds)
    ]


def groups(runs: Sequence[SweepRun]) -> list[list[int]]:
    """Indices of the runs that are one program: all but their seeds, TRACEABLE and AFTER_TRAINING settings agree."""
    return _alike(runs, _structure)


def trainings(runs: Sequence[SweepRun]) -> list[list[int]]:
    """Indices of the runs that training cannot tell apart: they differ in AFTER_TRAINING settings at most."""
    return _alike(runs, _as_trained)


def varying_values(runs: Sequence[SweepRun]) -> dict[str, list[float]]:
    """Of a group, the settings that differ between its runs: name → value of each run.

    Settings that are the same everywhere stay constants of the program.
    """
    found = {name: [configs.leaves(run.config)[name] for run in runs] for name in TRACEABLE}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _alike(runs: Sequence[SweepRun], key: Callable[[Config], tuple]) -> list[list[int]]:
    """Indices of the runs whose configs have the same key, in the order of their first ones."""
    found: dict[tuple, list[int]] = {}
    for index, run in enumerate(runs):
        found.setdefault(key(run.config), []).append(index)
    return list(found.values())


def _as_trained(config: Config) -> tuple:
    return tuple(value for name, value in configs.leaves(config).items() if name not in AFTER_TRAINING)


def _structure(config: Config) -> tuple:
    values = configs.leaves(config)
    free = (SEED, *TRACEABLE, *AFTER_TRAINING)
    values |= {name: bool(values[name]) if name in SWITCHES else None for name in free}
    return tuple(values.items())


def _parse(base: Config, assignment: str) -> tuple[str, list[Any]]:
    """The name and values of NAME=V1,V2,…; values of a tuple setting hold commas, so ; is between them."""
    name, equals, text = assignment.partition("=")
    name = name.replace("-", "_")  # as the command line spells it elsewhere
    settings = configs.leaves(base)
    if not equals or not text:
        raise ConfigError(
            f"--set {assignment:.200}: expected NAME=VALUE,VALUE,… such as optim.muon.learning_rate=0.02,0.025"
        )
    if name == SEED:
        raise ConfigError(f"--set {assignment:.200}: seeds are varied by --seeds, counted from --train.seed")
    if name not in settings:
        near = difflib.get_close_matches(name, settings, n=3, cutoff=0.4) or list(settings)
        raise ConfigError(
            f"--set {assignment:.200}: no setting is called {excerpt(name)}; did you mean {', '.join(near)}?"
        )
    current = settings[name]
    words = text.split(";" if isinstance(current, tuple) else ",")
    if len(words) > MOST_RUNS:
        raise ConfigError(f"--set {name}: {len(words):,} values, expected at most {MOST_RUNS:,}")
    values = [_value(base, name, current, word.strip()) for word in words]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"--set {name}: the value {excerpt(twice)} is given twice")
    return name, values


def _value(base: Config, name: str, current: Any, word: str) -> Any:
    try:
        if isinstance(current, bool):
            value: Any = {"true": True, "false": False}[word.lower()]
        elif isinstance(current, tuple):
            kind = type(current[0]) if current else int
            value = tuple(kind(part) for part in word.split(",") if part.strip())
        else:
            value = type(current)(word)
        configs.from_dict(configs.to_dict(configs.replace(base, name, value)), Config)  # one of the allowed words?
    except (ValueError, KeyError, OverflowError, ConfigError):
        words = configs.choices(name)
        expected = f"one of {', '.join(words)}" if words else f"a value such as the present {name}={spelled(current)}"
        raise ConfigError(f"--set {name}={word:.200}: expected {expected}") from None
    return value


def spelled(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
