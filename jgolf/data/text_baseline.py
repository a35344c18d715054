"""What general-purpose compressors need for a text, to set a model's bits per byte beside."""

from __future__ import annotations

import importlib.util
import lzma
import zlib
from collections.abc import Callable
from functools import partial

import zstandard


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    """General-purpose compressors by name, at strong levels; brotli where it is installed."""
    found = {
        "zlib -9": partial(zlib.compress, level=9),
        "xz -9": partial(lzma.compress, preset=9),
        "zstd -19": zstandard.ZstdCompressor(level=19).compress,
    }
    if importlib.util.find_spec("brotli"):
        import brotli

        found["brotli -11"] = partial(brotli.compress, quality=11)
    return found


def compressor_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits per byte of `text` by zlib and xz at their strongest levels."""
    every = compressors()
    return {name: 8 * len(every[name](text)) / len(text) for name in ("zlib -9", "xz -9")}
