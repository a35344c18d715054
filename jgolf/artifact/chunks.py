"""A sequence of zstd frames whose sizes the reader knows beforehand."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import zstandard

from jgolf.errors import ArtifactError

LENGTH_BYTES = 4
ZSTD_LEVEL = 22


class ChunkWriter:
    """Collects arrays and compresses each as one frame, all cores at work."""

    def __init__(self, level: int = ZSTD_LEVEL):
        self._level = level
        self._raw: list[bytes] = []

    def add(self, values: np.ndarray | bytes) -> None:
        """Appends one chunk: the bytes of `values`."""
        self._raw.append(bytes(values) if isinstance(values, bytes) else values.tobytes())

    def finish(self) -> bytes:
        """Every chunk as its compressed length (uint32, little-endian) and its zstd frame."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            frames = pool.map(lambda raw: zstandard.ZstdCompressor(level=self._level).compress(raw), self._raw)
            return b"".join(len(frame).to_bytes(LENGTH_BYTES, "little") + frame for frame in frames)


class ChunkReader:
    """Reads the chunks of a ChunkWriter back, trusting none of them.

    Attributes:
      source: what error messages call the artifact.
    """

    def __init__(self, data: bytes, source: str):
        self.source = source
        self._data = memoryview(data)
        self._position = 0

    def take(self, what: str, expected_bytes: int | range) -> np.ndarray:
        """The next chunk as uint8; nothing is unpacked before it claims that size (or one in that range).

        Raises:
          ArtifactError: the data end early, are no zstd frame, or unpack to another size.
        """
        start = self._position + LENGTH_BYTES
        length = int.from_bytes(self._data[self._position : start], "little")
        if start + length > len(self._data):
            left = max(0, len(self._data) - start)
            raise ArtifactError(f"{self.source}: cut off in the {what}: {left} bytes are left, expected {length}")
        self._position = start + length
        return np.frombuffer(
            decompress(self._data[start : start + length], expected_bytes, what, self.source), np.uint8
        )

    def finish(self) -> None:
        """Raises ArtifactError if anything is left."""
        left = len(self._data) - self._position
        if left:
            raise ArtifactError(f"{self.source}: {left} bytes follow the last tensor, expected none")


def decompress(frame: bytes | memoryview, expected_bytes: int | range, what: str, source: str) -> bytes:
    """Unpacks one zstd frame that says it holds `expected_bytes` bytes (or a number in that range).

    Raises:
      ArtifactError: it says something else, is damaged, or is followed by other bytes.
    """
    allowed = range(expected_bytes, expected_bytes + 1) if isinstance(expected_bytes, int) else expected_bytes
    try:
        size = zstandard.frame_content_size(frame)
        if size not in allowed:
            raise ArtifactError(f"{source}: the {what} unpack to {size} bytes, expected {expected_bytes}")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"{source}: the {what} cannot be unpacked: {error}") from None
