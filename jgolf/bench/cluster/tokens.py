"""Random tokens where there is no data: as unequal in frequency as words are, in documents of the usual length."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jgolf.bench.running import MEAN_DOCUMENT_TOKENS
from jgolf.config import Config
from jgolf.data.shards import BOS_ID, write_shard


def write_random_shard(path: Path, config: Config, steps: int) -> None:
    """Writes a shard of at least so many steps' worth of tokens, each about as frequent as 1 over its number.

    A network learns that within its first steps, so that their losses tell whether it does so everywhere alike.
    """
    train, first = config.train, BOS_ID + 1
    count = (steps + 1) * (
        train.batch_tokens + train.num_ranks * train.accumulation
    )  # a rank's last target is one more
    rng = np.random.default_rng(0)
    tokens = (first * (config.model.vocab_size / first) ** rng.random(count)).astype(np.uint16)
    tokens[rng.random(count) < 1 / MEAN_DOCUMENT_TOKENS] = BOS_ID
    tokens[0] = BOS_ID
    write_shard(path, tokens)
