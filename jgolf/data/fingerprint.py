"""Telling data from other data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jgolf.config import DataConfig
from jgolf.data.shards import find_shards, open_shard, sidecar_of
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.errors import DataError

_TOKENS = 1 << 15  # of each end of a shard


def data_fingerprint(data: DataConfig) -> str:
    """SHA-256, in hexadecimal, of the tokenizer and of each shard's and sidecar's name, length, first and last numbers.

    Reads no more than these, so it takes milliseconds; a change in the middle of a shard that keeps its
    length is not seen.

    Raises:
      DataError: there are no such data, or they cannot be read.
    """
    digest = hashlib.sha256(load_tokenizer(find_tokenizer(data.dir, data.tokenizer)).model_bytes)
    for split in ("train", "val"):
        for path in _with_sidecars(find_shards(data.dir, split)):
            tokens = open_shard(path)
            digest.update(f"{path.name} {len(tokens)} ".encode())
            digest.update(tokens[:_TOKENS].tobytes() + tokens[-_TOKENS:].tobytes())
    return digest.hexdigest()


def validation_sha256(data: DataConfig) -> dict[str, str]:
    """SHA-256, in hexadecimal, of each file of the validation split by its name: whoever publishes shards tells theirs.

    Raises:
      DataError: there are none, or they cannot be read.
    """
    found = {}
    for path in _with_sidecars(find_shards(data.dir, "val")):
        try:
            with open(path, "rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return found


def _with_sidecars(shards: Sequence[Path]) -> list[Path]:
    return [*shards, *(sidecar for path in shards if (sidecar := sidecar_of(path)) and sidecar.is_file())]
