"""The file format of compressed files: a header, segments of the original one after the other, a checksum.

    magic (4 bytes "JGLZ"), version (1), header (numbers, hashes and texts, see `Header`), segments,
    checksum (16: BLAKE2b of all that stands before)

A segment is its numbers, the rest of its pieces compressed by LZMA, and its coded tokens. One without tokens has its
bytes for a rest: LZMA makes them smaller than the model does. A reader believes nothing: the checksum catches damage
before anything else is done, and every size is checked before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from jgolf.errors import ArtifactError

MAGIC = b"JGLZ"
VERSION = 1
SEGMENT_BYTES = 1 << 22
"""Most bytes of the original in one segment, which bounds the memory that either side takes."""
HASH_BYTES = 16
MOST_STREAMS, MOST_CONTEXT = 1 << 12, 1 << 16
_NUMBERS = struct.Struct("<QI")
_SEGMENT = struct.Struct("<IIII")  # bytes of the original, tokens, bytes of the rest, the same compressed
_CODED = struct.Struct(f"<II{HASH_BYTES}s")  # of a segment with tokens: streams, coded bytes, probe
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": SEGMENT_BYTES}]
_LONGEST_TEXT = 1 << 12
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Header:
    """What is needed to decompress.

    Attributes:
      size: bytes of the original.
      context: most tokens that a prediction sees.
      model: hash of the model.
      name: of the original, without a folder.
      model_name, model_path: what the model is called, and where it was.
      machine: device and versions of what compressed.
    """

    size: int
    context: int
    model: bytes
    name: str
    model_name: str
    model_path: str
    machine: str

    def packed(self) -> bytes:
        """Its bytes."""
        parts = [_NUMBERS.pack(self.size, self.context), self.model]
        for text in (self.name, self.model_name, self.model_path, self.machine):
            data = text.encode(errors="surrogateescape")[:_LONGEST_TEXT]
            parts += [struct.pack("<H", len(data)), data]
        return b"".join(parts)


@dataclass(frozen=True)
class Segment:
    """A stretch of the original.

    Attributes:
      size: its bytes.
      num_tokens: of its pieces; without any, the rest are its bytes as they are.
      rest_size: bytes of the rest, as `jgolf.compress.pieces.split` gives it.
      squeezed: the rest, compressed.
      streams, probe: of the coder; see `jgolf.compress.coding`.
      coded: the tokens, as it gives them.
    """

    size: int
    num_tokens: int
    rest_size: int
    squeezed: bytes
    streams: int = 0
    probe: bytes = b""
    coded: bytes = b""

    def packed(self) -> bytes:
        """Its bytes."""
        numbers = _SEGMENT.pack(self.size, self.num_tokens, self.rest_size, len(self.squeezed))
        coder = _CODED.pack(self.streams, len(self.coded), self.probe) if self.num_tokens else b""
        return numbers + coder + self.squeezed + self.coded

    @property
    def rest(self) -> bytes | None:
        """What the tokens do not hold; None where it is damaged."""
        return expanded(self.squeezed, self.rest_size)


class Writer:
    """Writes a compressed file."""

    def __init__(self, file: BinaryIO, header: Header):
        self._file, self._digest, self.size = file, hashlib.blake2b(digest_size=HASH_BYTES), 0
        self._write(MAGIC + bytes([VERSION]) + header.packed())

    def add(self, segment: Segment) -> None:
        """Writes the next segment."""
        self._write(segment.packed())

    def finish(self, original: bytes) -> None:
        """Writes the original's hash and the checksum."""
        self._write(original)
        self._write(self._digest.digest())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


class Reader:
    """Reads a compressed file whose checksum is right.

    Raises, from every method:
      ArtifactError: the file is damaged, or none of ours.
    """

    def __init__(self, file: BinaryIO, source: str):
        """
        Args:
          file: can be read from anywhere.
          source: what error messages call it.
        """
        self._file, self._source = file, source
        file.seek(0)
        start = file.read(len(MAGIC) + 1)
        if start[: len(MAGIC)] != MAGIC:
            raise ArtifactError(
                f"{source}: not compressed by jgolf: starts with {start[: len(MAGIC)]!r}, expected {MAGIC!r}"
            )
        if start[len(MAGIC) :] != bytes([VERSION]):
            raise ArtifactError(
                f"{source}: format version {start[len(MAGIC) :].hex() or 'none'}, expected {VERSION}: use the jgolf "
                "that wrote it"
            )
        self._left = file.seek(0, os.SEEK_END) - len(start) - HASH_BYTES
        if self._left < 0 or not self._is_whole():
            raise ArtifactError(f"{source}: damaged or cut off: its checksum is not the one it holds")
        file.seek(len(start))
        numbers = _NUMBERS.unpack(self._take(_NUMBERS.size))
        self.header = Header(*numbers, self._take(HASH_BYTES), *(self._text() for _ in range(4)))
        if not 1 <= self.header.context <= MOST_CONTEXT:
            raise self._fault(f"{self.header.context:,} tokens of context, expected from 1 to {MOST_CONTEXT:,}")

    def segments(self) -> Iterator[Segment]:
        """The segments, as many as the original's size asks for."""
        size = 0
        while size < self.header.size:
            segment = self._segment()
            size += segment.size
            if size > self.header.size:
                raise self._fault(f"segments of {size:,} bytes, expected {self.header.size:,}")
            yield segment

    def original(self) -> bytes:
        """The original's hash, which stands behind the segments."""
        found = self._take(HASH_BYTES)
        if self._left:
            raise self._fault(f"{self._left:,} bytes too many")
        return found

    def _segment(self) -> Segment:
        size, num_tokens, rest_size, squeezed_size = _SEGMENT.unpack(self._take(_SEGMENT.size))
        if not 1 <= size <= SEGMENT_BYTES:
            raise self._fault(f"a segment of {size:,} bytes, expected from 1 to {SEGMENT_BYTES:,}")
        if not plausible(size, num_tokens, rest_size):
            raise self._fault(f"{num_tokens:,} tokens and {rest_size:,} other bytes for a segment of {size:,}")
        if not num_tokens:
            return Segment(size, 0, rest_size, self._take(squeezed_size))
        streams, coded_size, probe = _CODED.unpack(self._take(_CODED.size))
        if not 1 <= streams <= min(num_tokens, MOST_STREAMS):
            raise self._fault(f"{streams:,} streams of {num_tokens:,} tokens")
        rest = self._take(squeezed_size)
        return Segment(size, num_tokens, rest_size, rest, streams, probe, self._take(coded_size))

    def _is_whole(self) -> bool:
        """Whether the checksum at the end is that of all before."""
        self._file.seek(0)
        digest, left = hashlib.blake2b(digest_size=HASH_BYTES), len(MAGIC) + 1 + self._left
        while left:
            data = self._file.read(min(left, _READ_AT_ONCE))
            if not data:
                return False
            digest.update(data)
            left -= len(data)
        return digest.digest() == self._file.read(HASH_BYTES)

    def _take(self, size: int) -> bytes:
        data = self._file.read(size) if size <= self._left else b""
        if len(data) < size:
            raise self._fault("it ends too early")
        self._left -= size
        return data

    def _text(self) -> str:
        (size,) = struct.unpack("<H", self._take(2))
        if size > _LONGEST_TEXT:
            raise self._fault(f"a name of {size:,} bytes")
        return self._take(size).decode(errors="surrogateescape")

    def _fault(self, found: str) -> ArtifactError:
        return ArtifactError(f"{self._source}: not a compressed file that jgolf wrote, or damaged: {found}")


def plausible(size: int, num_tokens: int, rest_size: int) -> bool:
    """Whether so many bytes may have so many tokens and so long a rest: a few of either for a byte."""
    return num_tokens <= 4 * size and rest_size <= 16 * size + 64


def squeezed(data: bytes) -> bytes:
    """Bytes compressed by LZMA; nothing stays nothing."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA) if data else b""


def expanded(data: bytes, size: int) -> bytes | None:
    """The inverse of `squeezed` for so many bytes; None where the data are not its result."""
    if not size:
        return None if data else b""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
    try:
        found = decompressor.decompress(data, size)
        more = b"" if decompressor.eof else decompressor.decompress(b"", 1)
    except (lzma.LZMAError, EOFError):
        return None
    whole = len(found) == size and not more and decompressor.eof and not decompressor.unused_data
    return found if whole else None
