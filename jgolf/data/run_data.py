"""The data of a run: what its settings name, checked. Training, scoring, sweeps and the doctor all ask here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jgolf.config import Config
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import DataError


def run_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that a run's settings name, or that lies with its shards.

    Raises:
      DataError: there is none, or more than one, it cannot be read, or it is of another vocabulary.
    """
    if not Path(config.data.dir).is_dir():
        find_shards(config.data.dir, "train")  # raises, and says how to make them
    return load_tokenizer(find_tokenizer(config.data.dir, config.data.tokenizer), config.model.vocab_size)


def training_tokens(config: Config) -> TokenStream:
    """The training split; the ids of its first shard are checked, those of the others as they are reached.

    Raises:
      DataError: it is missing, damaged, empty, or of another vocabulary.
    """
    stream = TokenStream(find_shards(config.data.dir, "train"), config.model.vocab_size)
    stream.take(0, 1)
    return stream


def validation_tokens(config: Config) -> np.ndarray:
    """The validation split: `uint16[tokens]`, every id checked.

    Raises:
      DataError: it is missing, damaged, of another vocabulary, or too short for one sequence.
    """
    stream = TokenStream(find_shards(config.data.dir, "val"), config.model.vocab_size)
    if len(stream) <= config.train.seq_len:
        raise DataError(
            f"{config.data.dir}: the validation split has {len(stream)} tokens, expected at least "
            f"{config.train.seq_len + 1}, one sequence of train.seq_len and its last target; pack more documents "
            "into it or shorten train.seq_len"
        )
    return stream.take(0, len(stream))
