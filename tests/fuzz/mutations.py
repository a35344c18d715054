"""Damage at random: to bytes, to JSON, to lines, to artifacts whose checksum is then made right again."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard

START_BYTES = 13  # of an artifact: magic, version, checksum
ABSURD = [
    None, True, 0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), "", "fp16", "int8", "zstd", "range",
    "\0", "é" * 99, "../../x", "blocks/0/mlp/up_proj/kernel", "blocks/٣/mlp_scale", [], [[]], {}, {"a": 1}, [1] * 2000,
]  # fmt: skip
ODD_TEXTS = [
    b"", b"nan", b"-inf", b"1.2.3", b"1e999", b"-0", b"0.0000", b"9" * 5000, b"1" + b"0" * 400, b"\xd9\xa3",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\r", b"\n", b"\xe2\x80\xa8", b"[" * 3000, b'{"a":' * 3000,
    b'"\\ud800"', b"$x_{", b"[/x]", b"NaN", b"true", b"null", b'"' * 9, b"x" * 70_000,
]  # fmt: skip


def changed_bytes(rng: np.random.Generator, raw: bytes) -> bytes:
    """With some bytes overwritten, cut off, or added."""
    raw = bytearray(raw)
    match rng.integers(4):
        case 0:
            del raw[rng.integers(len(raw) + 1) :]
        case 1:
            raw += rng.bytes(int(rng.integers(1, 9)))
        case _:
            for position in rng.integers(len(raw), size=rng.integers(1, 9)) if raw else ():
                raw[position] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    return bytes(raw)


def flipped_bit(rng: np.random.Generator, raw: bytes) -> bytes:
    """With one bit flipped, as a disk or a wire may do."""
    raw = bytearray(raw)
    if raw:
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    return bytes(raw)


def damaged_file(rng: np.random.Generator, raw: bytes) -> bytes:
    """A bit flipped, or bytes changed, moved or doubled."""
    match rng.integers(4):
        case 0:
            return flipped_bit(rng, raw)
        case 1:
            first, end = sorted(int(place) for place in rng.integers(len(raw) + 1, size=2))
            at = int(rng.integers(len(raw) + 1))
            return raw[:at] + raw[first:end] + raw[at:] if rng.random() < 0.5 else raw[:first] + raw[end:]
        case _:
            return changed_bytes(rng, raw)


def damaged_text(rng: np.random.Generator, raw: bytes) -> bytes:
    """Bytes changed, a number or a word replaced by something odd, or lines of the text moved."""
    match rng.integers(4):
        case 0:
            return damaged_file(rng, raw)
        case 1:
            lines = raw.splitlines(keepends=True)
            rng.shuffle(lines)
            return b"".join(lines[: int(rng.integers(len(lines) + 1))])
        case _:
            for _ in range(rng.integers(1, 3)):
                first = int(rng.integers(len(raw) + 1))
                end = first + int(rng.choice([0, 1, 4]))
                raw = raw[:first] + ODD_TEXTS[rng.integers(len(ODD_TEXTS))] + raw[end:]
            return raw


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every entry of a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from places(entry, (*path, key))


def changed_json(rng: np.random.Generator, text: str | bytes) -> bytes:
    """With one to three entries replaced, removed, doubled, or swapped for another of the same value."""
    header = json.loads(text)
    for _ in range(rng.integers(1, 4)):
        known = list(places(header))
        *way, last = known[rng.integers(len(known))]
        parent = header
        for key in way:
            parent = parent[key]
        match rng.integers(4):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, list):
                parent.insert(last, copy.deepcopy(parent[rng.integers(len(parent))]))
            case 2 if isinstance(parent[last], int):
                parent[last] += int(rng.integers(-2, 3))
            case _:
                parent[last] = copy.deepcopy(ABSURD[rng.integers(len(ABSURD))])
        if not header:
            break
    text = json.dumps(header).encode()
    return text.replace(b"Infinity", b"1e999")  # what JSON allows and float cannot hold


def damaged_json(rng: np.random.Generator, raw: bytes) -> bytes:
    """Another value, or none."""
    return changed_json(rng, raw) if rng.random() < 0.6 else damaged_text(rng, raw)


def damaged_json_lines(rng: np.random.Generator, raw: bytes) -> bytes:
    """One line with another value, or the text damaged."""
    if rng.random() < 0.4:
        return damaged_text(rng, raw)
    lines = raw.splitlines(keepends=True)
    index = rng.integers(len(lines))
    lines[index] = changed_json(rng, lines[index]) + b"\n"
    return b"".join(lines)


def resealed_record(rng: np.random.Generator, raw: bytes) -> bytes:
    """The record of a checkpoint, changed on purpose: its checksum is right."""
    content = json.loads(raw)
    del content["sha256"]
    content = json.loads(changed_json(rng, json.dumps(content)))
    if isinstance(content, dict):
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content).encode()


def resealed_compressed(rng: np.random.Generator, raw: bytes) -> bytes:
    """A compressed file, changed on purpose: the checksum at its end is right."""
    body = damaged_file(rng, raw[:-16])
    return body + hashlib.blake2b(body, digest_size=16).digest()


# --- artifacts ---------------------------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    return b"JGLF\x01" + hashlib.blake2b(body, digest_size=8).digest() + body


def framed(raw: bytes, level: int = 1) -> bytes:
    frame = zstandard.ZstdCompressor(level=level).compress(raw)
    return len(frame).to_bytes(4, "little") + frame


def chunks_of(data: bytes) -> list[bytes]:
    """The unpacked chunks of an artifact."""
    chunks, position = [], START_BYTES
    while position < len(data):
        end = position + 4 + int.from_bytes(data[position : position + 4], "little")
        chunks.append(zstandard.decompress(data[position + 4 : end]))
        position = end
    return chunks


def damaged_chunks(rng: np.random.Generator, chunks: list[bytes]) -> bytes:
    """A sealed artifact in which the header, some chunks, their order or their frames are not as they should be."""
    chunks = list(chunks)
    if rng.random() < 0.4:
        chunks[0] = changed_json(rng, chunks[0])
    for _ in range(rng.integers(0, 3)):
        i = rng.integers(len(chunks))
        match rng.integers(6):
            case 0 if len(chunks) > 1:
                del chunks[i]
            case 1:
                chunks.insert(i, chunks[rng.integers(len(chunks))])
            case _:
                chunks[i] = changed_bytes(rng, chunks[i])
    body = b"".join(map(framed, chunks))
    return sealed(changed_bytes(rng, body) if rng.random() < 0.2 else body)


def resealed(rng: np.random.Generator, raw: bytes) -> bytes:
    """An artifact damaged on purpose: its checksum is right."""
    return damaged_chunks(rng, chunks_of(raw))


# --- archives ----------------------------------------------------------------------------------


def rezipped(rng: np.random.Generator, raw: bytes) -> bytes:
    """A zip archive with the content of one of its files changed, and the checksums right."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in content if name.endswith(".pkl")]
    name = pickles[0] if pickles and rng.random() < 0.7 else list(content)[rng.integers(len(content))]
    content[name] = damaged_file(rng, content[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def recompressed(rng: np.random.Generator, raw: bytes) -> bytes:
    """A zip archive in a zstd frame, changed inside."""
    inner = zstandard.decompress(raw)
    inner = rezipped(rng, inner) if rng.random() < 0.8 else damaged_file(rng, inner)
    return zstandard.ZstdCompressor(level=1).compress(inner)


def compressed_lines(rng: np.random.Generator, raw: bytes) -> bytes:
    """Lines in a zstd frame: changed before, or after, being compressed; or a line of hundreds of megabytes."""
    inner = zstandard.decompress(raw)
    if rng.random() < 0.02:
        inner += b"x" * (1 << 28)
    compress = zstandard.ZstdCompressor(level=1).compress
    return (
        compress(damaged_json_lines(rng, inner[: 1 << 20]) + inner[1 << 20 :])
        if rng.random() < 0.6
        else (damaged_file(rng, compress(inner)))
    )
