"""What PyTorch scripts compress their artifacts with, undone within bounds."""

from __future__ import annotations

import lzma
import zlib

import zstandard

from jgolf.errors import ArtifactError, MissingExtraError

METHODS = ("zstd", "zlib", "lzma", "brotli")
"""The last has no magic: it is what is tried where no other method's is there."""
PER_GROUP_MAGIC = b"PGRP"  # of a file that is compressed in parts
ZSTD_MAGIC, LZMA_MAGIC = bytes.fromhex("28b52ffd"), bytes.fromhex("fd377a58")
ZLIB_MAGICS = tuple(bytes.fromhex(start) for start in ("7801", "785e", "789c", "78da"))
SMALL_BYTES = 64 << 20
"""What any artifact may hold once decompressed, be it all zeros."""
LARGEST_RATIO = 8
"""Of what a larger one holds to its own size: integers of trained weights come to 2 or 4."""
LARGEST_BYTES = 1 << 30
LZMA_MEMORY_BYTES = 256 << 20  # its strongest preset takes a quarter of that


def method_of(start: bytes) -> str | None:
    """The method that a file with these first four bytes is compressed with; None for none that has such bytes."""
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
        try:
            return unbrotli(data, source)
        except ArtifactError:
            words = f"{', '.join(METHODS[:-1])} or {METHODS[-1]}"
            raise ArtifactError(f"{source}: starts with {data[:4]!r}, expected data compressed with {words}") from None
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


def unbrotli(data: bytes, source: str, size: int | None = None) -> bytes:
    """The content of brotli's data, up to `largest_content` of their size, or exactly `size` bytes.

    Raises:
      ArtifactError: the data are not brotli's, are cut off or damaged, or hold more.
      MissingExtraError: the package brotli is not installed.
    """
    try:
        import brotli
    except ImportError:
        raise MissingExtraError("brotli", "torch", f"reading {source}") from None
    limit = largest_content(len(data)) if size is None else size
    decompressor, chunks, found = brotli.Decompressor(), [], 0
    try:
        waiting = data
        while found <= limit and not decompressor.is_finished():
            chunk = decompressor.process(waiting, output_buffer_limit=1 << 20)
            waiting = b""
            if not chunk and decompressor.can_accept_more_data():
                break
            chunks.append(chunk)
            found += len(chunk)
    except brotli.error as error:
        raise ArtifactError(f"{source}: not brotli data, or damaged: {error}") from None
    if not decompressor.is_finished() or found > limit or (size is not None and found != size):
        expected = f"at most {limit:,}" if size is None else f"{size:,}"
        raise ArtifactError(f"{source}: brotli data of {found:,} bytes so far, expected {expected}, whole; refused")
    return b"".join(chunks)


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
