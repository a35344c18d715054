"""The tokenizer whose pieces are bytes: a byte's id is its value and an offset, behind four special ids.

Its file is the challenge's JSON, `{"tokenizer_type": "pure_byte", "config": {…}, "vocab_size": 260}`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jgolf.errors import DataError

MOST_BYTES = 1 << 16  # of such a file
_TYPE = "pure_byte"
_CONFIG = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": 4, "byte_count": 256}


class ByteTokenizer:
    """Text as its UTF-8 bytes; see `jgolf.data.tokenizer.Tokenizer`."""

    table_fault = ""

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


def is_byte_tokenizer(path: Path) -> bool:
    """Whether the file is such JSON, whatever its numbers."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return False
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("tokenizer_type") == _TYPE


def _config(path: Path, model_bytes: bytes) -> dict[str, int]:
    """What the file says of its ids.

    Raises:
      DataError: it is no such file, or its numbers make no tokenizer.
    """
    try:
        found = json.loads(model_bytes) if len(model_bytes) <= MOST_BYTES else None
        config = found["config"]
        is_right = found["tokenizer_type"] == _TYPE and isinstance(config, dict)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_right = False
    if not is_right:
        raise DataError(f'{path}: not a byte tokenizer: expected a JSON object with "tokenizer_type": "{_TYPE}"')
    known = {name: config[name] for name in _CONFIG if name in config}
    offset = known.get("byte_offset", _CONFIG["byte_offset"])
    wrong = [name for name, value in known.items() if not isinstance(value, int) or isinstance(value, bool)]
    if wrong or known.get("byte_count", 256) != 256 or not 0 <= known.get("bos_id", 1) < offset <= 1 << 15:
        raise DataError(f"{path}: a byte tokenizer of {known}: expected 256 bytes, and special ids below their offset")
    return known
