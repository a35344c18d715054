"""What a checkpoint says of itself: its step, clock, settings and data, and a checksum of every array."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jgolf.reading import excerpt, is_number

OWN_CHECKSUM = "sha256"


class NotARecord(ValueError):
    """What was read is not what was written; the text says in what."""


@dataclass(frozen=True)
class Record:
    """What is kept beside the arrays of a checkpoint.

    Attributes:
      step: finished steps.
      elapsed_s: training time in seconds.
      arrays: name → SHA-256 of the type, shape and values, in hexadecimal; see `checksums`.
      settings: of the run, when this was written; None where the writer did not say.
      data: fingerprint of the data that it was trained on; "" where the writer did not say.
    """

    step: int
    elapsed_s: float
    arrays: dict[str, str]
    settings: dict[str, Any] | None = None
    data: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as an object of JSON, with a checksum of its own."""
        content = dataclasses.asdict(self)
        return {**content, OWN_CHECKSUM: _checksum_of_json(content)}

    @classmethod
    def from_json(cls, content: Any) -> Record:
        """The inverse of `to_json`.

        Raises:
          NotARecord: it is damaged.
        """
        if not isinstance(content, dict):
            raise NotARecord(f"expected an object, found a {type(content).__name__}")
        values = {name: value for name, value in content.items() if name != OWN_CHECKSUM}
        if content.get(OWN_CHECKSUM) != _checksum_of_json(values):
            raise NotARecord("its checksum is not that of its contents")
        try:
            record = cls(**values)
        except TypeError as error:
            raise NotARecord(str(error)) from None
        kinds = {"arrays": dict, "settings": dict | None, "data": str}
        odd = [name for name, kind in kinds.items() if not isinstance(getattr(record, name), kind)]
        if odd:
            raise NotARecord(f"its {odd[0]} are {excerpt(getattr(record, odd[0]))}")
        return dataclasses.replace(record, elapsed_s=checked_clock(record.elapsed_s))

    def differing(self, arrays: Any, part: str) -> list[str]:
        """Names of the arrays of a part of the state that are not what was written, are missing, or are too many."""
        found = checksums(arrays, part)
        kept = {name: value for name, value in self.arrays.items() if name.startswith(f"{part}/")}
        return sorted(name for name in kept | found if kept.get(name) != found.get(name))


def checked_clock(elapsed_s: Any) -> float:
    """The training time that was read, if it can be one.

    Raises:
      NotARecord: it cannot.
    """
    if not is_number(elapsed_s) or not 0 <= elapsed_s < math.inf:
        raise NotARecord(f"the training time is {str(elapsed_s)[:40]}, expected seconds, 0 or more")
    return float(elapsed_s)


def checksums(arrays: Any, part: str) -> dict[str, str]:
    """Name → SHA-256 of each array, in the host's memory, of a part of the state."""
    paths, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {f"{part}/{jax.tree_util.keystr(path, simple=True, separator='/')}": _checksum(leaf) for path, leaf in paths}


def _checksum(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _checksum_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
