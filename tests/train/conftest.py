"""Runs of a very small model in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import Runs

from jgolf import files
from jgolf.data.pack import pack_documents
from jgolf.data.train_tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def nano_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards, of about 60,000 tokens to train on and 6,000 to validate on, and their tokenizer."""
    folder = tmp_path_factory.mktemp("nano-data")
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghijklmnop"), size=size)) for size in random.integers(2, 9, 500)]
    lines = [" ".join(random.choice(words, size=30)) for _ in range(550)]
    (folder / "train.txt").write_text("\n".join(lines[:500]))
    (folder / "val.txt").write_text("\n".join(lines[500:]))
    files.write_bytes(folder / "nano.model", train_tokenizer(lines, 320))
    for split in ("train", "val"):
        pack_documents([folder / f"{split}.txt"], folder / "nano.model", folder, split)
    return folder


@pytest.fixture(scope="session")
def runs(nano_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Starts runs, which share the programs that they have compiled."""
    return Runs(nano_data, tmp_path_factory.mktemp("programs"))
