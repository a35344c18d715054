"""What an audit finds: a row for every check, with what may be expected of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jgolf.config import ModelConfig
from jgolf.config.plan import make_plan

ROUNDINGS = 8
"""Places of a block at which the stream, or what is added to it, is rounded."""
DEVIATIONS = 6.0
"""Standard deviations of an error that a largest one stays within: some positions are rounded worse than others."""

LARGEST_LOGIT = 32.0
"""Logits are hardly larger; a scorer that tells of larger ones is granted no more."""
LARGEST_SPREAD = 8.0
"""Standard deviation of logits, of which the same holds."""
LARGEST_SURPRISE = 8.0
"""Nats that targets are less likely than the network expects, of which it holds, too."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
      condition: what the challenge asks for.
      tried: what was done.
      figure: what came of it.
      tolerance: what it may be at most; None for a check that could not be made.
      note: what else there is to say: where the tolerance comes from, what was not tried, what to do.
    """

    condition: str
    tried: str
    figure: float
    tolerance: float | None
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "figure", float(self.figure))  # NumPy's numbers are no JSON
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", float(self.tolerance))

    @property
    def passed(self) -> bool | None:
        """Whether it holds; None where it was not tried."""
        return None if self.tolerance is None else self.figure <= self.tolerance


def rounding(config: ModelConfig, spread: float) -> float:
    """Standard deviation of a target's nats, where the same is computed in another order.

    Each of ROUNDINGS places of every block rounds, with an error of standard deviation u, a quarter of the last place,
    and these add up as in a random walk, to u·√(ROUNDINGS · blocks) of the stream and so of the logits. In float32 sums
    of D products are rounded, too, each as often. The nats themselves are of the size of ln V, and rounded in float32.

    A compiler may keep float32 between two operations, and so round at fewer places. In bfloat16, op by op and
    compiled, trained networks showed an eighth to two thirds of it, random ones of 2 to 12 blocks whose matrices keep
    the size of what they multiply a fifth to all. Matrices twice as large enlarge errors, too, from block to block: of
    such a network it tells too little.

    Args:
      config: the network.
      spread: standard deviation of the logits at a position.
    """
    return math.hypot(_relative_rounding(config) * spread, _last_place(config))


def largest_rounding(config: ModelConfig, spread: float) -> float:
    """What a single target's nats may differ by; see `rounding`."""
    return DEVIATIONS * rounding(config, spread)


def mean_rounding(config: ModelConfig, spread: float, count: int, surprise: float = 0.0) -> float:
    """What the mean of so many targets' nats may differ by.

    To first order an error of the logits changes a target's nats by what it changes the target's logit less than it
    changes the expected one. Where the targets come as often as the network says, that is 0 on average in any context,
    also for errors that all contexts share, as those of rounded weights: they average out, but for three parts. Errors
    of variance e² in all logits make the expected nats larger by up to e²/2, whichever way they point. The last place
    of the nats may be rounded the same way everywhere. And where targets come more rarely than the network says, or
    more often, shared errors stay: one of all logits' size, relative to them as `rounding` is to their spread, changes
    the nats by the same part of the surprise.

    Args:
      config: the network.
      spread: standard deviation of the logits at a position.
      count: of the targets.
      surprise: what the mean of their nats is above what the network expects, the entropy; or below it.
    """
    error = rounding(config, spread)
    shared = _relative_rounding(config) * abs(surprise)
    return DEVIATIONS * error / math.sqrt(count) + error**2 / 2 + shared + _last_place(config)


def _relative_rounding(config: ModelConfig) -> float:
    """Standard deviation of the stream's error, relative to the stream."""
    blocks = len(make_plan(config, True))
    unit = float(jnp.finfo(config.compute_dtype).eps) / 4
    sums = config.model_dim if config.compute_dtype == "float32" else 1
    return unit * math.sqrt(ROUNDINGS * blocks * sums)


def _last_place(config: ModelConfig) -> float:
    return float(np.finfo(np.float32).eps) * math.log(config.vocab_size)


def sum_rounding(vocab_size: int) -> float:
    """What the sum of all probabilities may differ from 1 by, where each is given by its float32 nats.

    A logit and the logarithm of the sum are each rounded in float32, to half a unit in the last place of numbers up to
    LARGEST_LOGIT, and so is each of the log₂ V levels on which the sum is taken; all errors may point the same way.
    """
    return 4 * float(np.finfo(np.float32).eps) * (LARGEST_LOGIT + math.log2(vocab_size))


def print_checks(console: Console, checks: Sequence[Check], title: str) -> None:
    """A row for every check, and behind the table what there is to say of them."""
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for name in ("condition", "tried", "found", "tolerance", ""):
        table.add_column(name, justify="right" if name in ("found", "tolerance") else "left", no_wrap=name == "found")
    for check in checks:
        tolerance = "" if check.tolerance is None else number(check.tolerance)
        found = "" if check.passed is None else number(check.figure)
        table.add_row(check.condition, check.tried, found, tolerance, _verdict(check))
    console.print(table)
    for check in checks:
        if check.note:
            console.print(f"{check.condition}: {check.note}", soft_wrap=True)


def times(count: int) -> str:
    """How often, in words."""
    return "once" if count == 1 else f"{count:,} times"


def number(value: float) -> str:
    """A count in full, anything else to three digits."""
    return f"{value:,.0f}" if value == round(value) and math.isfinite(value) else f"{value:.2e}"


def _verdict(check: Check) -> Text:
    if check.passed is None:
        return Text("not tried", style="yellow")
    return Text("ok") if check.passed else Text("FAILED", style="bold red")
