"""What general-purpose compressors need for a text, to set a model's bits per byte beside."""

from __future__ import annotations

import lzma
import zlib


def compressor_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits per byte of `text` by zlib and xz at their strongest levels."""
    sizes = {"zlib -9": len(zlib.compress(text, 9)), "xz -9": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}
