"""How large a network a text and a time can train, by a step's measured time; and for how many steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jgolf import compiling
from jgolf import config as configs
from jgolf.bench.flops import train_flops
from jgolf.bench.running import RunningStep
from jgolf.bench.timing import measure
from jgolf.config import Config
from jgolf.model.functional import parameter_shapes

TOKENS_A_PARAMETER = 5
"""Fewest training tokens for each parameter. 20 are best where the size is free (Hoffmann et al., 2022). Of two sizes
that follow one another, the smaller gets some 14 times as many as the larger in a time, and 5 is as far off as 70."""
MOST_PASSES = 16
"""Over a text: more teach a network its text rather than its language."""
RATE_RISE = 2.0
"""Operations a second of a network's step over those of the next smaller one's: up to so many times."""
RUNS = 3
"""Of a step, to measure its time."""


class Size(NamedTuple):
    """Settings of a network's size."""

    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int

    def settings(self) -> dict[str, int]:
        """Dotted name → value."""
        return {f"model.{name}": value for name, value in self._asdict().items()}


@dataclass(frozen=True)
class Kind:
    """What fits a kind of device.

    Attributes:
      config: the recipe.
      sizes: its network's, rising.
      settings: dotted name → value, what a short run on one device has of its own.
      most_pieces: of a tokenizer.
    """

    config: str
    sizes: tuple[Size, ...]
    settings: dict[str, Any]
    most_pieces: int


CPU = Kind(
    "small",
    (Size(2, 64, 2, 1), Size(4, 128, 4, 2), Size(4, 192, 6, 3), Size(6, 256, 8, 4), Size(8, 384, 12, 6)),
    {},
    1024,
)
GPU = Kind(
    "pr592",
    (Size(4, 128, 2, 1), Size(6, 256, 4, 2), Size(8, 384, 6, 3), Size(12, 512, 8, 4)),
    {
        "model.vocab_size": 0,
        "train.batch_tokens": 65_536,
        "train.seq_len": 1024,
        "train.num_ranks": 1,
        "train.warmdown_steps": 0,
        "train.warmdown_fraction": 0.7,
        "train.checkpoint_every_s": 30.0,
        "quantize.scale_floor": False,
    },
    8192,
)


@dataclass(frozen=True)
class Candidate:
    """A network that might be trained.

    Attributes:
      settings: dotted name → value, of its size.
      parameters: how many it has.
      flops: floating-point operations of a training step.
    """

    settings: dict[str, int]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Choice:
    """What is trained, and for how long.

    Attributes:
      config: name or path of the recipe.
      settings: dotted name → value, what is other than the recipe's.
      parameters: how many the network has.
      step_s: seconds that a step was measured to take.
      steps: that it will probably take.
      passes: over the text in so many steps.
      by_text: whether the text, and not the time, ends it.
      device: what it was measured on.
    """

    config: str
    settings: dict[str, Any]
    parameters: int
    step_s: float
    steps: int
    passes: float
    by_text: bool
    device: str


def kind_here() -> Kind:
    """What fits the device that JAX computes on. It starts JAX."""
    return CPU if jax.default_backend() == "cpu" else GPU


def most_pieces_here() -> int:
    """Pieces of a tokenizer that fits the device. It starts JAX."""
    return kind_here().most_pieces


def choose_here(vocab_size: int, text_tokens: int, seconds: float, config: str = "") -> Choice:
    """Chooses for the device that JAX computes on; of its kind's sizes, or a config as it is.

    Args:
      vocab_size: of the tokenizer.
      text_tokens: of the training split.
      seconds: of training.
      config: name or path of a config that is to be taken as it is; empty for the kind's.
    """
    compiling.keep_programs()
    kind = kind_here()
    base = configs.load(config or kind.config)
    own = {} if config else kind.settings
    base = configs.replace_all(base, {**own, "model.vocab_size": base.model.vocab_size or vocab_size})

    def step_s(settings: dict[str, int]) -> float:
        running = RunningStep.compiled(_sized(base, settings))
        return measure(running, RUNS).median_ms / 1000

    sizes = [{}] if config else [size.settings() for size in kind.sizes]
    candidates = [_candidate(base, settings) for settings in sizes]
    chosen, seconds_a_step = choose(candidates, base.train.batch_tokens, text_tokens, seconds, step_s)
    by_time = max(1, int(seconds / seconds_a_step))
    by_text = math.ceil(MOST_PASSES * text_tokens / base.train.batch_tokens)
    steps = min(by_time, by_text)
    of_length = run_settings(steps, by_text, seconds)
    if base.average.ema_share:
        del of_length["average.ema_decay"]  # its average fits any length
    return Choice(
        config=config or kind.config,
        settings={**own, **chosen.settings, **of_length},
        parameters=chosen.parameters,
        step_s=seconds_a_step,
        steps=steps,
        passes=steps * base.train.batch_tokens / text_tokens,
        by_text=by_text < by_time,
        device=jax.devices()[0].device_kind,
    )


def choose(
    candidates: Sequence[Candidate],
    batch_tokens: int,
    text_tokens: int,
    seconds: float,
    step_s: Callable[[dict[str, int]], float],
) -> tuple[Candidate, float]:
    """The largest candidate that gets TOKENS_A_PARAMETER, or the smallest, and the seconds of its step.

    The steps of few are measured: the smallest's, then that of the largest which gets enough if its operations take as
    long as those of the one before, and so on, as long as one gets enough. The next larger one is measured, too, where
    it gets enough if it does RATE_RISE times as many a second.

    Args:
      candidates: rising.
      batch_tokens: of a step.
      text_tokens: of the training split, which is passed over MOST_PASSES times at most.
      seconds: of training.
      step_s: measures a step, from a candidate's settings.
    """

    def gets_enough(index: int, step_s: float) -> bool:
        tokens = min(seconds / step_s * batch_tokens, MOST_PASSES * text_tokens)
        return tokens >= TOKENS_A_PARAMETER * candidates[index].parameters

    best, best_s = 0, step_s(candidates[0].settings)
    above = len(candidates) if gets_enough(0, best_s) else 1
    while best + 1 < above:
        rate = candidates[best].flops / best_s
        rates = {index: rate * (RATE_RISE if index == best + 1 else 1) for index in range(best + 1, above)}
        likely = [index for index in rates if gets_enough(index, candidates[index].flops / rates[index])]
        if not likely:
            break
        found_s = step_s(candidates[likely[-1]].settings)
        if gets_enough(likely[-1], found_s):
            best, best_s = likely[-1], found_s
        else:
            above = likely[-1]
    return candidates[best], best_s


def run_settings(steps: int, most_steps: int, seconds: float) -> dict[str, Any]:
    """What goes with a run's length: dotted name → value.

    Args:
      steps: that it will probably take.
      most_steps: at which it ends though there is time.
      seconds: of training.
    """
    return {
        "train.steps": most_steps,
        "train.time_cap_s": seconds,
        "train.validate_every": max(1, steps // 5),
        "train.log_every": max(1, steps // 20),
        "optim.muon.momentum_warmup_steps": steps // 5,
        "average.ema_decay": round(min(0.997, max(0.8, 1 - 20 / steps)), 4),  # over a twentieth of the run
    }


def _sized(base: Config, settings: dict[str, int]) -> Config:
    config = configs.replace_all(base, settings)
    return configs.validate(dataclasses.replace(config, model=configs.resolved(config.model)))


def _candidate(base: Config, settings: dict[str, int]) -> Candidate:
    config = _sized(base, settings)
    shapes, train = parameter_shapes(config.model).values(), config.train
    rows = np.zeros((train.batch_tokens // train.seq_len, train.seq_len), np.int32)
    return Candidate(settings, sum(int(np.prod(shape)) for shape in shapes), train_flops(config.model, rows))
