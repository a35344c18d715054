"""What PyTorch scripts compress their artifacts with, undone within bounds."""

from __future__ import annotations

import lzma
import zlib

import zstandard

from jgolf.errors import ArtifactError

METHODS = ("zstd", "zlib", "lzma")
ZSTD_MAGIC, LZMA_MAGIC = bytes.fromhex("28b52ffd"), bytes.fromhex("fd377a58")
ZLIB_MAGICS = tuple(bytes.fromhex(start) for start in ("7801", "785e", "789c", "78da"))
SMALL_BYTES = 64 << 20
"""What any artifact may hold once decompressed, be it all zeros."""
LARGEST_RATIO = 8
"""Of what a larger one holds to its own size: integers of trained weights come to 2 or 4."""
LARGEST_BYTES = 1 << 30
LZMA_MEMORY_BYTES = 256 << 20  # its strongest preset takes a quarter of that


def method_of(start: bytes) -> str | None:
    """The method that a file with these first four bytes is compressed with; None for none of METHODS."""
    if start.startswith(ZSTD_MAGIC):
        return "zstd"
    if start.startswith(LZMA_MAGIC):
        return "lzma"
    return "zlib" if start.startswith(ZLIB_MAGICS) else None


def largest_content(compressed_bytes: int) -> int:
    """How many bytes a file of this size may hold: more than real ones do, less than fills the memory."""
    return min(LARGEST_BYTES, max(SMALL_BYTES, LARGEST_RATIO * compressed_bytes))


def decompress(data: bytes, source: str) -> bytes:
    """The content of a compressed file, up to `largest_content` of its size.

    Raises:
      ArtifactError: `data` is not compressed with one of METHODS, is cut off or damaged, or holds more.
    """
    method, limit = method_of(data), largest_content(len(data))
    if method is None:
        raise ArtifactError(f"{source}: starts with {data[:4]!r}, expected data compressed with {' or '.join(METHODS)}")
    try:
        raw, whole = _unzstd(data, limit) if method == "zstd" else _inflate(data, method, limit)
    except (zstandard.ZstdError, zlib.error, lzma.LZMAError) as error:
        raise ArtifactError(f"{source}: not {method} data, or damaged: {error}") from None
    if len(raw) > limit:
        raise ArtifactError(
            f"{source}: its {len(data):,} bytes hold more than {limit:,} decompressed, as no artifact does; refused"
        )
    if not whole:
        raise ArtifactError(f"{source}: cut off: only {len(raw):,} bytes of its content are there")
    return raw


def _unzstd(data: bytes, limit: int) -> tuple[bytes, bool]:
    """At most a little more than `limit` bytes, and whether the content is whole, as far as that is known."""
    chunks, size = [], 0
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        while size <= limit and (chunk := reader.read(1 << 20)):
            chunks.append(chunk)
            size += len(chunk)
    told = zstandard.get_frame_parameters(data).content_size
    return b"".join(chunks), told in (zstandard.CONTENTSIZE_UNKNOWN, size)


def _inflate(data: bytes, method: str, limit: int) -> tuple[bytes, bool]:
    decompressor = zlib.decompressobj() if method == "zlib" else lzma.LZMADecompressor(memlimit=LZMA_MEMORY_BYTES)
    raw = decompressor.decompress(data, limit + 1)
    return raw, decompressor.eof
