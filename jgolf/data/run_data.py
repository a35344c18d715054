"""The data that a run trains on: what its settings name, checked. Training, sweeps and the doctor ask here."""

from __future__ import annotations

from pathlib import Path

from jgolf.config import Config
from jgolf.data.batches import BatchOrder
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.shuffle import ShuffledStream
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer


def run_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that a run's settings name, or that lies with its shards.

    Raises:
      DataError: there is none, or more than one, it cannot be read, or it is of another vocabulary.
    """
    if not Path(config.data.dir).is_dir():
        find_shards(config.data.dir, "train")  # raises, and says how to make them
    return load_tokenizer(find_tokenizer(config.data.dir, config.data.tokenizer), config.model.vocab_size or None)


def training_stream(config: Config, folder: Path | None = None) -> TokenStream:
    """The training split in the order that a run reads it, of `data.dir` or of another folder; nothing is read yet.

    Raises:
      DataError: it is missing, damaged or empty.
    """
    kind = ShuffledStream if config.train.shuffle_documents else TokenStream
    return kind(find_shards(folder or config.data.dir, "train"), config.model.vocab_size)


def training_tokens(config: Config) -> TokenStream:
    """The training split, of which a first row can be had; ids of further shards are checked as these are reached.

    Raises:
      DataError: it is missing, damaged, empty, of another vocabulary, or too short for a batch of whole documents.
    """
    stream = training_stream(config)
    BatchOrder.from_config(config.train).rows(stream, 0, slice(1))
    return stream
