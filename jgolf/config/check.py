"""Refuses settings that make no sense, before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from jgolf.config.settings import Config
from jgolf.config.store import leaves
from jgolf.errors import ConfigError

LARGEST_INTEGER = 1 << 31  # arrays on the device count in int32
Bound = tuple[Callable[[Any], bool], str]

POSITIVE: Bound = (lambda value: value >= 1, "at least 1")
NOT_NEGATIVE: Bound = (lambda value: 0 <= value < math.inf, "0 or more")
OFF_OR_MORE: Bound = (lambda value: 0 <= value < math.inf, "0 (off) or more")
DECAY: Bound = (lambda value: 0 <= value < 1, "at least 0 and below 1")
MULTIPLIER: Bound = (lambda value: 0 <= value <= 1, "a learning-rate multiplier from 0 (off) to 1")
QUANTILE: Bound = (lambda value: 0 < value <= 1, "a quantile above 0, up to 1")

BOUNDS: dict[str, Bound] = {
    "model.vocab_size": (lambda value: 1 <= value <= 1 << 16, "from 1 to 65536, the ids that shards can hold"),
    "model.num_layers": POSITIVE,
    "model.model_dim": POSITIVE,
    "model.num_heads": POSITIVE,
    "model.num_kv_heads": POSITIVE,
    "model.mlp_multiple": (lambda value: 0 < value < math.inf, "more than 0"),
    "model.bigram_buckets": (lambda value: value == 0 or value >= 2, "0 (off) or at least 2"),
    "model.bigram_dim": POSITIVE,
    "model.rope_dims": OFF_OR_MORE,
    "model.rope_base": (lambda value: 1 < value < math.inf, "more than 1"),
    "model.rope_original_length": POSITIVE,
    "model.value_embedding_dim": POSITIVE,
    "model.q_gain": OFF_OR_MORE,
    "model.logit_softcap": OFF_OR_MORE,
    "model.embedding_init_std": NOT_NEGATIVE,
    "optim.grad_clip": OFF_OR_MORE,
    "optim.muon.learning_rate": NOT_NEGATIVE,
    "optim.muon.momentum": DECAY,
    "optim.muon.momentum_warmup_start": DECAY,
    "optim.muon.momentum_warmup_steps": NOT_NEGATIVE,
    "optim.muon.weight_decay": NOT_NEGATIVE,
    "optim.muon.newton_schulz_steps": NOT_NEGATIVE,
    "optim.adamw.token_learning_rate": NOT_NEGATIVE,
    "optim.adamw.scalar_learning_rate": NOT_NEGATIVE,
    "optim.adamw.matrix_learning_rate": NOT_NEGATIVE,
    "optim.adamw.beta1": DECAY,
    "optim.adamw.beta2": DECAY,
    "optim.adamw.epsilon": NOT_NEGATIVE,
    "optim.adamw.weight_decay": NOT_NEGATIVE,
    "train.steps": NOT_NEGATIVE,
    "train.time_cap_s": OFF_OR_MORE,
    "train.warmdown_steps": NOT_NEGATIVE,
    "train.batch_tokens": POSITIVE,
    "train.seq_len": POSITIVE,
    "train.num_ranks": POSITIVE,
    "train.accumulation": POSITIVE,
    "train.seed": (lambda value: 0 <= value < 1 << 32, "from 0 to 4294967295"),
    "train.validate_every": NOT_NEGATIVE,
    "train.log_every": NOT_NEGATIVE,
    "train.checkpoint_every_steps": OFF_OR_MORE,
    "train.checkpoint_every_s": OFF_OR_MORE,
    "train.keep_checkpoints": POSITIVE,
    "average.ema_decay": (DECAY[0], "0 (off), or below 1"),
    "average.swa_start": MULTIPLIER,
    "average.swa_every": POSITIVE,
    "quantize.control": (lambda form: form in ("fp16", "fp32"), "fp16 or fp32"),
    "quantize.small_size": NOT_NEGATIVE,
    "quantize.table_clip_percentile": QUANTILE,
    "quantize.late_qat_start": MULTIPLIER,
    "evaluate.batch_tokens": POSITIVE,
    "evaluate.sliding_stride": POSITIVE,
    "evaluate.max_tokens": OFF_OR_MORE,
}
"""What each setting may be by itself."""


def validate(config: Config) -> Config:
    """Returns `config`, or raises one ConfigError that lists every setting that makes no sense."""
    values = leaves(config)
    problems = [
        (name, expected) for name, (allowed, expected) in BOUNDS.items() if name in values and not allowed(values[name])
    ]
    wrong = {name for name, _ in problems} | {"train.seed"}
    problems += [
        (name, f"below {LARGEST_INTEGER:,}")
        for name, value in values.items()
        if name not in wrong and isinstance(value, int) and value >= LARGEST_INTEGER
    ]
    # Combinations are looked at only where each part makes sense.
    problems = problems or [*_combination_problems(config)]
    if problems:
        lines = (f"  {name} is {values[name]}: expected {expected}" for name, expected in problems)
        raise ConfigError("settings that cannot be used:\n" + "\n".join(lines))
    return config


def _combination_problems(config: Config) -> Iterator[tuple[str, str]]:
    """Pairs of a setting's name and what it should have been, given the others."""
    model, train, average = config.model, config.train, config.average
    if model.model_dim % model.num_heads:
        yield "model.num_heads", _divisor("model_dim", model.model_dim, model.num_heads)
    if model.num_heads % model.num_kv_heads:
        yield "model.num_kv_heads", _divisor("num_heads", model.num_heads, model.num_kv_heads)
    rotated = model.rope_dims or model.head_dim
    if rotated % 2 or rotated > model.head_dim:
        yield "model.rope_dims", f"an even number up to the head width {model.head_dim}, or 0 for all of an even width"
    if not 1 <= model.mlp_multiple * model.model_dim < LARGEST_INTEGER:  # before it is made an integer
        yield "model.mlp_multiple", f"a hidden width from 1 to below {LARGEST_INTEGER:,}"
    for name in ("xsa_layers", "value_embedding_layers"):
        layers = getattr(model, name)
        if any(not 0 <= layer < model.num_layers for layer in layers) or list(layers) != sorted(set(layers)):
            yield f"model.{name}", f"different layers in rising order, each from 0 to {model.num_layers - 1}"
    clips = config.quantize.clip_percentiles
    if not clips or not all(0 < clip <= 1 for clip in clips):
        yield "quantize.clip_percentiles", "one or more quantiles above 0, up to 1"
    for kept, name in ((average.ema_decay, "ema"), (average.swa_start, "swa")):
        if name in average.export and not kept:
            yield "average.export", f"an average that the run keeps; {name} is switched off"
    unit = train.num_ranks * train.accumulation * train.seq_len
    if train.batch_tokens % unit:
        nearest = max(unit, round(train.batch_tokens / unit) * unit)
        yield (
            "train.batch_tokens",
            f"a multiple of num_ranks {train.num_ranks} × accumulation {train.accumulation} × "
            f"seq_len {train.seq_len} = {unit}, such as {nearest}",
        )


def _divisor(of: str, number: int, near: int) -> str:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    divisors = [*small, *(number // divisor for divisor in small)]
    return f"a divisor of {of} {number}, such as {min(divisors, key=lambda divisor: abs(divisor - near))}"
