"""Codes for groups of levels that share a distribution.

`zstd` needs nothing else installed. zstd can only give each byte a whole number of bits (Huffman), so
what is a coin toss is taken out of the bytes (signs), and several magnitudes are put into one.
`range` (an ANS coder, from the package constriction) reaches the entropy itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import zstandard

from jgolf.artifact.chunks import ChunkReader, ChunkWriter
from jgolf.errors import ArtifactError, MissingExtraError

Groups = list[np.ndarray]


# --- zstd ------------------------------------------------------------------------------------

# Levels that one digit can tell apart; a byte holds as many digits as fit. 129 is every magnitude.
BASES = (2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 129)
SAMPLE_LEVELS = 1 << 17


def write_zstd(writer: ChunkWriter, groups: Groups, bits: int) -> None:
    """For each group its base, its digits, and what the highest digit leaves over; then all signs."""
    magnitudes = [np.abs(group.astype(np.int16)).astype(np.uint8) for group in groups]
    bases = [best_base(group[:SAMPLE_LEVELS]) for group in magnitudes]
    writer.add(np.array(bases, np.uint8))
    for group, base in zip(magnitudes, bases, strict=True):
        if group.size:
            writer.add(pack_digits(group, base))
            writer.add(group[group >= base - 1] - np.uint8(base - 1))
    levels = np.concatenate(groups)
    writer.add(np.packbits(levels[levels != 0] < 0))


def read_zstd(reader: ChunkReader, sizes: Sequence[int], bits: int) -> Groups:
    """The inverse of `write_zstd`."""
    bases = reader.take("digit bases", len(sizes))
    if not np.isin(bases, BASES).all():
        raise ArtifactError(f"{reader.source}: a digit base is not one of {BASES}")
    groups = []
    for size, base in zip(sizes, bases.tolist(), strict=True):
        if size:
            digits = unpack_digits(reader.take("digits", -(-size // digit_places(base).size)), base)[:size]
            highest = np.flatnonzero(digits == base - 1)
            digits[highest] += reader.take("large magnitudes", highest.size)
        groups.append(digits if size else np.empty(0, np.uint8))
    magnitudes = np.concatenate(groups)
    nonzero = magnitudes != 0
    count = int(np.count_nonzero(nonzero))
    negative = np.zeros(magnitudes.size, bool)
    negative[nonzero] = np.unpackbits(reader.take("signs", -(-count // 8)), count=count)
    levels = magnitudes.view(np.int8)
    np.negative(levels, out=levels, where=negative)
    return np.split(levels, np.cumsum(sizes)[:-1])


def best_base(magnitudes: np.ndarray) -> int:
    """The base that packs `magnitudes` into the fewest bytes, tried out at zstd's fastest level."""
    compressor = zstandard.ZstdCompressor(level=1)

    def packed_bytes(base: int) -> int:
        left_over = magnitudes[magnitudes >= base - 1] - np.uint8(base - 1)
        return len(compressor.compress(pack_digits(magnitudes, base))) + len(compressor.compress(left_over.tobytes()))

    return min(BASES, key=packed_bytes)


@cache
def digit_places(base: int) -> np.ndarray:
    """What each digit counts in a byte, of the largest number of digits whose combinations fit into one."""
    places = [base**place for place in range(8) if base ** (place + 1) <= 256]
    return np.array(places, np.uint8)


def pack_digits(magnitudes: np.ndarray, base: int) -> bytes:
    """min(magnitude, base − 1) of as many values as fit into each byte, the first one lowest."""
    places = digit_places(base)
    digits = np.zeros(-(-magnitudes.size // places.size) * places.size, np.uint8)
    np.minimum(magnitudes, base - 1, out=digits[: magnitudes.size])
    return (digits.reshape(-1, places.size) @ places).tobytes()


def unpack_digits(packed: np.ndarray, base: int) -> np.ndarray:
    """The inverse of `pack_digits`, with the zeros that filled up the last byte."""
    return (np.arange(256)[:, None] // digit_places(base) % base).astype(np.uint8)[packed].ravel()


# --- range coder -----------------------------------------------------------------------------


def write_range(writer: ChunkWriter, groups: Groups, bits: int) -> None:
    """The levels' frequencies in each group, then all groups in one stream of ANS words."""
    coder = _constriction().stream.stack.AnsCoder()
    frequencies = np.stack([_frequencies(group, bits) for group in groups])
    for group, row in zip(reversed(groups), reversed(frequencies), strict=True):
        if group.size:
            coder.encode_reverse(group.astype(np.int32) + 2 ** (bits - 1), _model(row))
    words = coder.get_compressed()
    writer.add(frequencies.astype("<u2"))
    writer.add(np.array([words.size], "<u4"))
    writer.add(words.astype("<u4"))


def read_range(reader: ChunkReader, sizes: Sequence[int], bits: int) -> Groups:
    """The inverse of `write_range`."""
    frequencies = reader.take("level frequencies", 2 * len(sizes) << bits).view("<u2").reshape(len(sizes), -1)
    word_count = int(reader.take("word count", 4).view("<u4")[0])
    words = reader.take("coded levels", 4 * word_count).view("<u4").astype(np.uint32)
    if word_count and words[-1] == 0:
        raise ArtifactError(f"{reader.source}: the coded levels end in a zero word, which no coder writes")
    coder = _constriction().stream.stack.AnsCoder(words)
    groups = []
    for size, row in zip(sizes, frequencies, strict=True):
        if size and not row.any():
            raise ArtifactError(f"{reader.source}: a group of {size} levels has no level frequencies")
        symbols = coder.decode(_model(row), size) if size else np.empty(0, np.int32)
        groups.append((symbols - 2 ** (bits - 1)).astype(np.int8))
    return groups


def _frequencies(levels: np.ndarray, bits: int) -> np.ndarray:
    """Counts of the 2^bits levels, scaled to 16 bits; none that occurs becomes 0."""
    counts = np.bincount(levels.astype(np.int32) + 2 ** (bits - 1), minlength=2**bits)
    return np.where(counts > 0, np.maximum(np.rint(counts * (65535 / max(1, counts.max()))), 1), 0)


def _model(frequencies: np.ndarray):
    weights = frequencies.astype(np.float64)
    return _constriction().stream.model.Categorical(weights / weights.sum(), perfect=False)


def _constriction():
    try:
        import constriction
    except ImportError:
        raise MissingExtraError("constriction", "entropy", "An artifact whose codec is 'range'") from None
    return constriction


# Apart, so that code that reads does not need what writes.
WRITERS = {"zstd": write_zstd, "range": write_range}
"""How groups of int8 levels of so many bits are written, by codec."""
READERS = {"zstd": read_zstd, "range": read_range}
"""How groups of known sizes are read."""
