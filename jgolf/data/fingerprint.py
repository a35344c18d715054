"""Telling data from other data."""

from __future__ import annotations

import hashlib

from jgolf.config import DataConfig
from jgolf.data.shards import find_shards, open_shard, sidecar_of
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer

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
        shards = find_shards(data.dir, split)
        sidecars = [sidecar for path in shards if (sidecar := sidecar_of(path)) and sidecar.is_file()]
        for path in [*shards, *sidecars]:
            tokens = open_shard(path)
            digest.update(f"{path.name} {len(tokens)} ".encode())
            digest.update(tokens[:_TOKENS].tobytes() + tokens[-_TOKENS:].tobytes())
    return digest.hexdigest()
