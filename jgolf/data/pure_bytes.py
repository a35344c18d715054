"""The tokenizer whose pieces are bytes: a byte's id is its value and an offset, behind four special ids.

Its file is the challenge's JSON, `{"tokenizer_type": "pure_byte", "config": {…}, "vocab_size": 260}`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jgolf.errors import DataError
from jgolf.reading import Unreadable, excerpt, parse_json

MOST_BYTES = 1 << 16  # of such a file
_TYPE = "pure_byte"
_CONFIG = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": 4, "byte_count": 256}


class ByteTokenizer:
    """Text as its UTF-8 bytes; see `jgolf.data.tokenizer.Tokenizer`."""

    table_fault = ""
    counts_ends = True

    def __init__(self, path: str | Path, model_bytes: bytes):
        self.path = Path(path)
        self.model_bytes = model_bytes
        config = _CONFIG | _config(self.path, model_bytes)
        self.bos_id: int = config["bos_id"]
        self._offset: int = config["byte_offset"]
        self.vocab_size = self._offset + config["byte_count"]

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model_bytes).hexdigest()

    def encode(self, text: str) -> list[int]:
        return (np.frombuffer(text.encode(), np.uint8).astype(np.uint16) + self._offset).tolist()

    def encode_with_bytes(self, text: str) -> tuple[list[int], list[int]]:
        ids = self.encode(text)
        return ids, [1] * len(ids)

    def written_and_kept(self, text: str, ids: list[int]) -> tuple[str, str]:
        return text, self.decode(ids)

    def decode(self, ids: Iterable[int]) -> str:
        values = (int(token) - self._offset for token in ids)
        return bytes(value for value in values if 0 <= value < 256).decode(errors="replace")

    def target_bytes(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        is_byte = (targets >= self._offset) & (targets < self.vocab_size)
        return np.broadcast_to(is_byte, np.broadcast_shapes(previous.shape, targets.shape)).astype(np.int32)


def byte_tokenizer_file() -> bytes:
    """The file of the challenge's byte tokenizer, 260 ids."""
    description = {"tokenizer_type": _TYPE, "config": _CONFIG, "vocab_size": 260}
    return (json.dumps(description, indent=2, sort_keys=True) + "\n").encode()


def described(data: bytes) -> dict[str, Any] | None:
    """What the contents of such a file say; None for those of any other file."""
    try:
        found = parse_json(data) if len(data) <= MOST_BYTES else None
    except Unreadable:
        return None
    return found if isinstance(found, dict) and found.get("tokenizer_type") == _TYPE else None


def _config(path: Path, model_bytes: bytes) -> dict[str, int]:
    """What the file says of its ids.

    Raises:
      DataError: it is no such file, or its numbers make no tokenizer.
    """
    description = described(model_bytes)
    if description is None:
        raise DataError(f'{path}: not a byte tokenizer: expected a JSON object with "tokenizer_type": "{_TYPE}"')
    config = description.get("config", {})
    known = {name: config[name] for name in _CONFIG if name in config} if isinstance(config, dict) else None
    if known is None or not _makes_sense(**(_CONFIG | known)):
        raise DataError(
            f"{path}: a byte tokenizer of {excerpt(config, 200)}: expected 256 bytes, and the ids of BOS and its like "
            "below those of the bytes"
        )
    return known


def _makes_sense(bos_id: Any, byte_offset: Any, byte_count: Any, **others: Any) -> bool:
    if not all(type(number) is int for number in (bos_id, byte_offset, byte_count)):
        return False
    return 0 <= bos_id < byte_offset <= 1 << 15 and byte_count == 256
