"""Artifacts of pull request #1855, which keep the integers of each role in a stream of its own.

    "PGRP", number of streams (9), their lengths; streams 1 to 7: the matrices of a role, layer after layer, by lrzip;
    stream 8: everything else, a brotli-compressed file of torch.save; stream 9: orders of rows, uint16, by brotli

All numbers are uint32, little-endian. A matrix is written by columns; the rows of some roles are put in an order first,
in which neighbours are alike.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jgolf import files
from jgolf.artifact.container import MAX_VALUES
from jgolf.errors import ArtifactError
from jgolf.torch_bridge import checkpoint, compressed

ROLES = {
    r"tok_emb\.weight": True,
    r"blocks\.(\d+)\.attn\.c_k\.weight": False,
    r"blocks\.(\d+)\.attn\.c_q\.weight": True,
    r"blocks\.(\d+)\.attn\.c_v\.weight": False,
    r"blocks\.(\d+)\.attn\.proj\.weight": False,
    r"blocks\.(\d+)\.mlp\.fc\.weight": True,
    r"blocks\.(\d+)\.mlp\.proj\.weight": False,
}
"""The names of a stream's matrices, in the streams' order, and whether their rows are."""
STREAMS = len(ROLES) + 2
LRZIP_MAGIC = b"LRZI"
LRZIP_SIZE = slice(6, 14)  # of the content, in lrzip's own header
LRZIP_MEMORY_BYTES = 4 << 30
LRZIP_START_S, LRZIP_BYTES_A_S = 30, 50_000  # it takes up to three seconds a megabyte of integers
MOST_ROWS = 1 << 16

Shape = tuple[int, int]


def read(data: bytes, source: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """What is beside the matrices, name → tensor; form by name; and name + ".q" → int8 [rows, columns].

    Raises:
      ArtifactError: the data are damaged, or claim to hold more than an artifact does.
      JgolfError: the program lrzip is missing.
      MissingExtraError: PyTorch or brotli is not installed.
    """
    streams = _split(data, source)
    rest = checkpoint.load_safely(compressed.unbrotli(streams[-2], source), source)
    if not isinstance(rest, Mapping) or not all(isinstance(rest.get(key), Mapping) for key in "rms"):
        raise ArtifactError(
            f'{source}: expected "r", "m" and "s" beside the matrices; found {checkpoint.describe(rest)}'
        )
    tensors, marks, shapes = (checkpoint.by_text(rest[key]) for key in "rms")
    roles = [_matrices(pattern, marks, shapes, source) for pattern in ROLES]
    sizes = [sum(rows * columns for rows, columns in role.values()) for role in roles]
    if sum(sizes) > MAX_VALUES:
        raise ArtifactError(f"{source}: lists matrices of {sum(sizes)} values in all, expected at most {MAX_VALUES}")
    ordered = [
        shape for role, is_ordered in zip(roles, ROLES.values(), strict=True) if is_ordered for shape in role.values()
    ]
    orders = iter(_orders(streams[-1], [rows for rows, _ in ordered], source))
    for stream, size in zip(streams, sizes, strict=False):
        if size and (not stream.startswith(LRZIP_MAGIC) or int.from_bytes(stream[LRZIP_SIZE], "little") != size):
            raise ArtifactError(f"{source}: a stream of integers is not lrzip's, or not one of the {size:,} expected")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = [*pool.map(lambda stream, size: _unlrzip(stream, size, source), streams, sizes)]
    matrices = {}
    for content, role, is_ordered in zip(contents, roles, ROLES.values(), strict=True):
        start = 0
        for name, (rows, columns) in role.items():
            by_column = np.frombuffer(content, np.int8, rows * columns, start).reshape(columns, rows)
            start += rows * columns
            matrix = np.empty((rows, columns), np.int8)
            matrix[next(orders) if is_ordered else slice(None)] = by_column.T
            matrices[name + ".q"] = matrix
    return tensors, marks, matrices


def _split(data: bytes, source: str) -> list[bytes]:
    """The streams, whose lengths come to that of the file."""
    head = np.frombuffer(data, "<u4", min(len(data) // 4, 2 + STREAMS))
    if len(head) < 2 + STREAMS or head[1] != STREAMS:
        raise ArtifactError(f"{source}: cut off, or not {STREAMS} streams after {compressed.PER_GROUP_MAGIC!r}")
    ends = 4 * (2 + STREAMS) + np.cumsum(head[2:].astype(np.int64))
    if ends[-1] != len(data):
        raise ArtifactError(f"{source}: {len(data):,} bytes, expected {ends[-1]:,} by the lengths of its streams")
    return [data[start:end] for start, end in zip([4 * (2 + STREAMS), *ends[:-1]], ends, strict=True)]


def _matrices(pattern: str, marks: Mapping[str, Any], shapes: Mapping[str, Any], source: str) -> dict[str, Shape]:
    """Name → shape of the integer matrices of a role, layer after layer."""
    found = {}
    for name, mark in marks.items():
        match = re.fullmatch(pattern, name)
        if match and isinstance(mark, str) and mark.startswith("gptq "):
            shape = shapes.get(name + ".q", shapes.get(name))
            plausible = isinstance(shape, tuple | list) and len(shape) == 2
            if not plausible or not all(type(size) is int and 1 <= size <= MOST_ROWS for size in shape):
                raise ArtifactError(f"{source}: {name} has no shape of two sizes from 1 to {MOST_ROWS} in its s")
            found[int(match[1]) if match.groups() else 0, name] = tuple(shape)
    return {name: found[number, name] for number, name in sorted(found)}


def _orders(stream: bytes, heights: list[int], source: str) -> list[np.ndarray]:
    """For each matrix the number of each row that is written."""
    flat = np.frombuffer(compressed.unbrotli(stream, source, 2 * sum(heights)), "<u2")
    orders = np.split(flat, np.cumsum(heights)[:-1]) if heights else []
    if any(not np.array_equal(np.sort(order), np.arange(rows)) for order, rows in zip(orders, heights, strict=True)):
        raise ArtifactError(f"{source}: an order of rows does not name each row once")
    return orders


def _unlrzip(stream: bytes, size: int, source: str) -> bytes:
    """The `size` bytes that lrzip packed; it is told nothing else, and given no more room."""
    if not size:
        return b""
    program = shutil.which("lrzip")
    if program is None:
        raise ArtifactError(
            f"{source}: its integers are packed by lrzip, a program that is not installed here: install it "
            "(Debian and Ubuntu: apt-get install lrzip; macOS: brew install lrzip)"
        )
    with tempfile.TemporaryDirectory() as folder:
        packed, unpacked = Path(folder) / "packed.lrz", Path(folder) / "unpacked"
        files.write_bytes(packed, stream)
        environment = {**os.environ, "LRZIP": "NOCONFIG", "TMP": folder}
        process = subprocess.Popen(
            [program, "-d", "-Q", "-f", "-o", str(unpacked), str(packed)],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _limit(process.pid, size)
            status = process.wait(LRZIP_START_S + size / LRZIP_BYTES_A_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
        if status != 0 or not unpacked.is_file() or unpacked.stat().st_size != size:
            raise ArtifactError(f"{source}: lrzip cannot unpack a stream of integers: damaged")
        return unpacked.read_bytes()


def _limit(process: int, size: int) -> None:
    """Leaves a process LRZIP_MEMORY_BYTES of memory, and its files little more than `size`, where that can be done."""
    with suppress(ImportError, AttributeError, OSError):
        import resource

        resource.prlimit(process, resource.RLIMIT_AS, (LRZIP_MEMORY_BYTES, LRZIP_MEMORY_BYTES))
        largest_file = size + (1 << 20)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (largest_file, largest_file))
