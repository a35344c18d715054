"""Small files that ask for much memory, and files of others' formats whose parts are changed but still fit together."""

from __future__ import annotations

import functools
import io
import lzma
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import zstandard

from tests.fuzz.mutations import ODD_TEXTS, chunks_of, damaged_file, flipped_bit, framed, sealed

BOMB_BYTES = 5 << 29  # more than a reader may take
LARGE_INTEGERS = (255, 65_535, 2**31 - 1, -1, 2**40, 2**63 - 1, 2**64)
_CHUNK = bytes(1 << 20)

# --- compressed --------------------------------------------------------------------------------

COMPRESSORS: dict[str, Callable[[], zlib._Compress]] = {
    "zstd": lambda: zstandard.ZstdCompressor(level=1).compressobj(),
    "zlib": lambda: zlib.compressobj(1),
    "lzma": lambda: lzma.LZMACompressor(preset=0),
}


def compressed(raw: bytes, method: str) -> bytes:
    compressor = COMPRESSORS[method]()
    return compressor.compress(raw) + compressor.flush()


@functools.cache
def zeros(method: str) -> bytes:
    """BOMB_BYTES of zeros, compressed."""
    compressor = COMPRESSORS[method]()
    parts = [compressor.compress(_CHUNK) for _ in range(BOMB_BYTES // len(_CHUNK))]
    return b"".join([*parts, compressor.flush()])


def artifact_bomb(rng: np.random.Generator, raw: bytes) -> bytes:
    """An artifact with zeros for one of its chunks: more than it may hold, or than there should be."""
    frames = [framed(chunk) for chunk in chunks_of(raw)]
    few = compressed(bytes(int(rng.integers(1 << 26))), "zstd")
    frame = zeros("zstd") if rng.random() < 0.5 else few
    frames[rng.integers(len(frames))] = len(frame).to_bytes(4, "little") + frame
    return sealed(b"".join(frames))


# --- PyTorch's files ---------------------------------------------------------------------------


def state_bomb(rng: np.random.Generator, raw: bytes) -> bytes:
    """A state dict whose tensors have few values of their own, or an archive that unpacks to much, or says so."""
    match rng.integers(5):
        case 0:
            return _of_views(rng, raw)
        case 1:
            return _zip_of_zeros(raw)
        case 2:
            return _with_other_sizes(rng, raw)
        case _:
            return _with_larger_integers(rng, raw)


def reference_bomb(rng: np.random.Generator, raw: bytes) -> bytes:
    """The same, compressed by any of the methods; or nothing but zeros."""
    method = str(rng.choice(list(COMPRESSORS)))
    if rng.random() < 0.2:
        return zeros(method)
    return compressed(state_bomb(rng, zstandard.decompress(raw)), method)


def _of_views(rng: np.random.Generator, raw: bytes) -> bytes:
    """The tensors of `raw`, each one value or one storage repeated."""
    import torch

    content = torch.load(io.BytesIO(raw), weights_only=True)
    names = list(content.get("w", content))
    size = 1 << int(rng.integers(10, 36))
    one = torch.zeros(1) if rng.random() < 0.5 else torch.zeros(min(size, 1 << 18))
    views = {name: one.expand(size) if len(one) == 1 else one for name in names}
    views |= {f"{number}": one for number in range(int(rng.choice([0, 10, 3000])))}
    buffer = io.BytesIO()
    torch.save(content | {"w": views} if "w" in content else views, buffer)
    return buffer.getvalue()


def _unzipped(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@functools.lru_cache(2)
def _zip_of_zeros(raw: bytes) -> bytes:
    """The archive with many zeros for the values of a tensor."""
    content = _unzipped(raw)
    name = next(name for name in content if "/data/" in name)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, data in content.items():
            if other != name:
                archive.writestr(other, data)
        with archive.open(name, "w", force_zip64=True) as file:
            for _ in range(BOMB_BYTES // len(_CHUNK)):
                file.write(_CHUNK)
    return buffer.getvalue()


def _with_other_sizes(rng: np.random.Generator, raw: bytes) -> bytes:
    """The archive with other sizes in its directory."""
    changed, position = bytearray(raw), raw.find(b"PK\x01\x02")
    while position >= 0:
        if rng.random() < 0.5:
            size = int(rng.choice([0, 1, 1 << 20, 1 << 31, 2**32 - 2, 2**32 - 1])).to_bytes(4, "little")
            for offset in (20, 24) if rng.random() < 0.5 else (24,):  # compressed and not
                changed[position + offset : position + offset + 4] = size
        position = raw.find(b"PK\x01\x02", position + 1)
    return bytes(changed)


def _with_larger_integers(rng: np.random.Generator, raw: bytes) -> bytes:
    """The archive with one to three integers of its pickle replaced: sizes, strides, offsets, numbers of values."""
    content = _unzipped(raw)
    name = next(name for name in content if name.endswith(".pkl"))
    for _ in range(rng.integers(1, 4)):
        data = content[name]
        operations = [*pickletools.genops(data)]
        ends = [place for _, _, place in operations[1:]] + [len(data)]
        found = [
            (place, end)
            for (kind, _, place), end in zip(operations, ends, strict=True)
            if kind.name in ("BININT", "BININT1", "BININT2", "LONG1")
        ]
        place, end = found[rng.integers(len(found))]
        number = LARGE_INTEGERS[rng.integers(len(LARGE_INTEGERS))]
        content[name] = data[:place] + pickle.dumps(number, 2)[2:-1] + data[end:]
    return _zipped(content)


# --- protocol buffers, which SentencePiece's models are ------------------------------------------


def restructured(rng: np.random.Generator, raw: bytes) -> bytes:
    """A message with one to three of its fields, or of those of messages in it, changed; lengths fit again."""
    for _ in range(rng.integers(1, 4)):
        raw = _with_a_change(rng, raw)
    return raw


def _with_a_change(rng: np.random.Generator, raw: bytes) -> bytes:
    fields = _fields(raw)
    if not fields:
        return bytes(ODD_TEXTS[rng.integers(len(ODD_TEXTS))])
    kinds = sorted({number for number, _, _ in fields})  # pieces are many, the other fields one each
    kind = kinds[rng.integers(len(kinds))]
    index = int(rng.choice([index for index, field in enumerate(fields) if field[0] == kind]))
    number, wire, value = fields[index]
    match rng.integers(6):
        case 0:
            del fields[index]
        case 1:
            fields.insert(int(rng.integers(len(fields) + 1)), fields[index])
        case 2:
            other = int(rng.integers(len(fields)))
            fields[index], fields[other] = fields[other], fields[index]
        case _ if wire == 2:
            inner = _with_a_change(rng, value) if rng.random() < 0.7 and _fields(value) else damaged_file(rng, value)
            odd = ODD_TEXTS[rng.integers(len(ODD_TEXTS))]
            fields[index] = number, wire, inner if rng.random() < 0.8 else odd
        case _ if wire == 0:
            fields[index] = number, wire, _varint(LARGE_INTEGERS[rng.integers(len(LARGE_INTEGERS))] & (2**64 - 1))
        case _:
            fields[index] = number, wire, flipped_bit(rng, value)
    return b"".join(
        _varint(number << 3 | wire) + (_varint(len(value)) if wire == 2 else b"") + value
        for number, wire, value in fields
    )


def _fields(raw: bytes) -> list[tuple[int, int, bytes]]:
    """Number, wire type and content of each field of a message; none where it is no message."""
    found, position = [], 0
    try:
        while position < len(raw):
            key, position = _read_varint(raw, position)
            wire = key & 7
            if wire == 0:
                _, end = _read_varint(raw, position)
            elif wire == 2:
                size, position = _read_varint(raw, position)
                end = position + size
            else:
                end = position + {1: 8, 5: 4}[wire]
            if end > len(raw) or not key >> 3:
                return []
            found.append((key >> 3, wire, raw[position:end]))
            position = end
    except (IndexError, KeyError):
        return []
    return found


def _read_varint(raw: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while raw[position] >= 128:
        value |= (raw[position] & 127) << shift
        position, shift = position + 1, shift + 7
    return value | raw[position] << shift, position + 1


def _varint(value: int) -> bytes:
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
