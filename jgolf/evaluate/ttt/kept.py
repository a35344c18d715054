"""The file from which an interrupted evaluation goes on: what was scored, and what the rest of it begins with."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgolf import files
from jgolf.data.text import Text
from jgolf.errors import JgolfError
from jgolf.model.functional import Params

MOST_OTHER_BYTES = 1 << 20
"""What the file holds beside its arrays, at most."""
EVERY_S = 60.0
"""Seconds between two savings, at least."""
ADVICE = "remove it to begin anew, or name another file"


def fingerprint(params: Params, text: Text, *settings: Any) -> str:
    """Tells evaluations apart that would give other scores."""
    digest = hashlib.sha256(repr(settings).encode())
    for path, values in sorted(params.items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(values))
    digest.update(np.ascontiguousarray(text.tokens))
    digest.update(np.ascontiguousarray(text.starts))
    return digest.hexdigest()


class Kept:
    """Arrays and numbers in a file that is replaced, all or nothing, every so often; without a path nothing is kept."""

    def __init__(self, path: Path | None, fingerprint: str = ""):
        self._path, self._fingerprint = path, fingerprint
        self._saved_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return self._path is not None and time.monotonic() - self._saved_s >= EVERY_S

    def save(self, arrays: Mapping[str, np.ndarray], **numbers: float) -> None:
        """Replaces the file.

        Raises:
          JgolfError: it cannot be written.
        """
        said = json.dumps({"fingerprint": self._fingerprint, **numbers}).encode()
        with files.atomic_write(self._path) as file:
            np.savez(file, said=np.frombuffer(said, np.uint8), **arrays)
        self._saved_s = time.monotonic()

    def load(self, most_bytes: int) -> tuple[dict[str, np.ndarray], dict[str, float]] | None:
        """The arrays and numbers of the file; None where there is none.

        Args:
          most_bytes: of all arrays.

        Raises:
          JgolfError: the file cannot be read, is damaged, or was kept by an evaluation of something else; or there can
            be none.
        """
        if self._path is None:
            return None
        if not self._path.exists():
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:  # told now, not after a minute's work
                raise files.writing_error(self._path, error) from None
            return None
        try:
            with zipfile.ZipFile(self._path) as archive:
                found_bytes = sum(member.file_size for member in archive.infolist())
            if found_bytes > most_bytes + MOST_OTHER_BYTES:
                raise ValueError(f"{found_bytes:,} bytes, expected at most {most_bytes + MOST_OTHER_BYTES:,}")
            with np.load(self._path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            numbers = json.loads(arrays.pop("said").tobytes())
            own = numbers.pop("fingerprint")
        except OSError as error:
            raise JgolfError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise JgolfError(
                f"{self._path}: not what an interrupted evaluation keeps, or damaged: {error!s:.200}; {ADVICE}"
            ) from None
        if own != self._fingerprint:
            raise JgolfError(f"{self._path}: kept by an evaluation of other weights, text or settings; {ADVICE}")
        return arrays, numbers

    def remove(self) -> None:
        """Removes the file: the evaluation has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
