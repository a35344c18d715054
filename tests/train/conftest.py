"""Runs of a very small model in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jgolf import files
from jgolf.data.shards import write_shard
from jgolf.data.train_tokenizer import train_tokenizer
from tests.train.runs import Runs


@pytest.fixture(scope="session")
def nano_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards, 60,000 tokens to train on and 6,000 to validate on, and a tokenizer of 320 pieces."""
    folder = tmp_path_factory.mktemp("nano-data")
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghijklmnop"), size=size)) for size in random.integers(2, 9, 500)]
    texts = [" ".join(random.choice(words, size=30)) for _ in range(100)]
    files.write_bytes(folder / "nano.model", train_tokenizer(texts, 320))
    for split, size in (("train", 60_000), ("val", 6_000)):
        write_shard(folder / f"nano_{split}_000000.bin", np.minimum(4 + random.geometric(0.03, size), 319))
    return folder


@pytest.fixture(scope="session")
def runs(nano_data: Path) -> Runs:
    """Starts runs."""
    return Runs(nano_data)
