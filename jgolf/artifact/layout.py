"""How tensors become streams that pack well, and come back.

Integers. The spread of a matrix's levels differs from row to row and from column to column, so one
code for all of it wastes bits. Each level is given a class by how large it is expected to be: the
mean magnitude of its row times that of its column over that of the matrix, in quarter octaves. The
levels of one class, over all tensors of one form, are one group with one code. The classes are
computed from one byte for each row and column, which the artifact holds; sampling noise is shrunk
out of them, so that a matrix without structure has one class and its bytes cost nothing.

Floating point. Equal bytes of all values lie together: the highest ones repeat, the lowest are noise.

Corrections. Their steps, then their levels, each factor a group of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jgolf import rules
from jgolf.artifact.chunks import ChunkReader, ChunkWriter
from jgolf.artifact.codes import READERS, WRITERS
from jgolf.config import form_bits
from jgolf.errors import ArtifactError
from jgolf.quantize.stored import FLOAT_TYPES, Correction, Factor, StoredTensor

CLASSES = 64
CLASSES_PER_OCTAVE = 4
SMALLEST_MEAN = 2.0**-5  # mean magnitudes from here …
# … to 128 give row classes from 0 to 48; column classes are differences.


class CorrectionSpec(NamedTuple):
    """What the header tells about a tensor's correction: its rank, steps of each factor, bits of the widest level."""

    rank: int
    left_scales: int
    right_scales: int
    bits: int

    @classmethod
    def of(cls, correction: Correction) -> CorrectionSpec:
        """Of a correction in storage form."""
        left, right = correction.left, correction.right
        return cls(len(right.levels), left.scales.size, right.scales.size, max(left.bits, right.bits))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix of levels of this shape may have it."""
        return (
            1 <= self.rank <= min(shape)
            and 1 <= self.bits <= 8
            and all(
                steps >= 1 and size * self.rank % steps == 0
                for size, steps in zip(shape, (self.left_scales, self.right_scales), strict=True)
            )
        )


@dataclass(frozen=True)
class TensorSpec:
    """What the header tells about one tensor."""

    path: str
    form: str
    shape: tuple[int, ...]
    correction: CorrectionSpec | None = None

    @property
    def levels_shape(self) -> tuple[int, ...]:
        """Rows and columns of the levels of an integer tensor."""
        return self.shape[::-1] if rules.rule_of(self.path).transposed else self.shape

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def correction_size(self) -> int:
        """Number of levels of the correction's factors; 0 without one."""
        return 0 if self.correction is None else self.correction.rank * sum(self.shape)


def encode(stored: dict[str, StoredTensor], codec: str, writer: ChunkWriter) -> None:
    """Adds the chunks of all tensors to `writer`; `decode` with the tensors' specs is the inverse."""
    for form in sorted({tensor.form for tensor in stored.values()}):
        tensors = [tensor for tensor in stored.values() if tensor.form == form]
        if form in FLOAT_TYPES:
            _write_planes(writer, np.concatenate([tensor.values.ravel() for tensor in tensors]))
        else:
            _write_integers(writer, tensors, codec)
    if corrections := [tensor.correction for tensor in stored.values() if tensor.correction is not None]:
        _write_corrections(writer, corrections, codec)


def decode(specs: Sequence[TensorSpec], codec: str, reader: ChunkReader) -> dict[str, StoredTensor]:
    """Reads every tensor that `specs` lists, in their order."""
    found: dict[str, StoredTensor] = {}
    for form in sorted({spec.form for spec in specs}):
        same_form = [spec for spec in specs if spec.form == form]
        if form in FLOAT_TYPES:
            flat = _read_planes(reader, f"{form} values", FLOAT_TYPES[form], sum(spec.size for spec in same_form))
            for spec, values in zip(same_form, _split(flat, [spec.size for spec in same_form]), strict=True):
                found[spec.path] = StoredTensor.floats(form, values.reshape(spec.shape))
        else:
            found |= _read_integers(reader, same_form, codec)
    if corrected := [spec for spec in specs if spec.correction is not None]:
        for spec, correction in zip(corrected, _read_corrections(reader, corrected, codec), strict=True):
            found[spec.path] = replace(found[spec.path], correction=correction)
    return {spec.path: found[spec.path] for spec in specs}


# --- integers --------------------------------------------------------------------------------


def _write_integers(writer: ChunkWriter, tensors: list[StoredTensor], codec: str) -> None:
    axes = [level_classes(tensor.values) for tensor in tensors]
    _write_planes(writer, np.concatenate([tensor.scales for tensor in tensors]))
    writer.add(np.concatenate([rows for rows, _ in axes]))
    writer.add(np.concatenate([columns for _, columns in axes]))
    parts = []
    for tensor, (rows, columns) in zip(tensors, axes, strict=True):
        classes = _classes(rows, columns)
        levels = tensor.values.ravel()[_order(classes)]
        parts.append(_split(levels, _class_sizes(classes)))
    groups = [np.concatenate(same_class) for same_class in zip(*parts, strict=True)]
    WRITERS[codec](writer, groups, tensors[0].bits)


def _read_integers(reader: ChunkReader, specs: list[TensorSpec], codec: str) -> dict[str, StoredTensor]:
    form = specs[0].form
    bits = form_bits(form)
    heights, widths = zip(*(spec.levels_shape for spec in specs), strict=True)
    scales = _split(_read_planes(reader, f"{form} scales", np.dtype(np.float16), sum(heights)), heights)
    rows = _split(reader.take(f"{form} row classes", sum(heights)), heights)
    columns = _split(reader.take(f"{form} column classes", sum(widths)).view(np.int8), widths)
    classes = [_classes(*pair) for pair in zip(rows, columns, strict=True)]
    sizes = np.stack([_class_sizes(one) for one in classes])
    groups = _read_groups(reader, sizes.sum(axis=0).tolist(), bits, codec)
    parts = zip(*(_split(group, sizes[:, i]) for i, group in enumerate(groups)), strict=True)
    found = {}
    for spec, one, levels_by_class, row_scales in zip(specs, classes, parts, scales, strict=True):
        levels = np.empty(spec.size, np.int8)
        levels[_order(one)] = np.concatenate(levels_by_class)
        found[spec.path] = StoredTensor.integers(spec.path, form, levels.reshape(spec.levels_shape), row_scales)
    return found


def _read_groups(reader: ChunkReader, sizes: Sequence[int], bits: int, codec: str) -> list[np.ndarray]:
    groups = READERS[codec](reader, sizes, bits)
    if any(group.size and (group.min() < -(2 ** (bits - 1)) or group.max() >= 2 ** (bits - 1)) for group in groups):
        raise ArtifactError(f"{reader.source}: some levels do not fit into {bits} bits")
    return groups


def level_classes(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the rows (uint8) and, relative to them, of the columns (int8) of `levels` [rows, columns].

    They are quarter octaves of mean magnitude. The deviations from the mean are shrunk by the share of
    their variance that sampling explains (James–Stein).
    """
    magnitudes = np.abs(levels.astype(np.float32))
    mean = max(float(magnitudes.mean(dtype=np.float64)), SMALLEST_MEAN)
    relative_variance = float(magnitudes.var(dtype=np.float64)) / mean**2
    deviations = []
    for axis in (1, 0):
        octaves = np.log2(np.maximum(magnitudes.mean(axis=axis, dtype=np.float64), SMALLEST_MEAN) / mean)
        noise = relative_variance / levels.shape[axis] / np.log(2) ** 2
        deviations.append(octaves * max(0.0, 1 - noise / max(float(octaves.var()), 1e-12)))
    rows = np.rint(CLASSES_PER_OCTAVE * (deviations[0] + np.log2(mean / SMALLEST_MEAN)))
    return np.clip(rows, 0, CLASSES - 1).astype(np.uint8), np.rint(CLASSES_PER_OCTAVE * deviations[1]).astype(np.int8)


def _classes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The class of every level, flat."""
    return np.clip(rows.astype(np.int16)[:, None] + columns, 0, CLASSES - 1).astype(np.uint8).ravel()


def _class_sizes(classes: np.ndarray) -> np.ndarray:
    return np.bincount(classes, minlength=CLASSES)


def _order(classes: np.ndarray) -> np.ndarray:
    """Positions sorted by class; within one class as they lie."""
    return np.argsort(classes, kind="stable")


# --- corrections -----------------------------------------------------------------------------


def _write_corrections(writer: ChunkWriter, corrections: list[Correction], codec: str) -> None:
    factors = [factor for one in corrections for factor in one.factors]
    _write_planes(writer, np.concatenate([factor.scales for factor in factors]))
    bits = max(CorrectionSpec.of(one).bits for one in corrections)
    WRITERS[codec](writer, [factor.levels.ravel() for factor in factors], bits)


def _read_corrections(reader: ChunkReader, specs: list[TensorSpec], codec: str) -> Iterator[Correction]:
    shapes, counts = [], []
    for spec in specs:
        rows, columns = spec.levels_shape
        shapes += [(rows, spec.correction.rank), (spec.correction.rank, columns)]
        counts += [spec.correction.left_scales, spec.correction.right_scales]
    scales = _split(_read_planes(reader, "scales of corrections", np.dtype(np.float16), sum(counts)), counts)
    bits = max(spec.correction.bits for spec in specs)
    levels = _read_groups(reader, [rows * columns for rows, columns in shapes], bits, codec)
    factors = iter([Factor(one.reshape(shape), own) for one, shape, own in zip(levels, shapes, scales, strict=True)])
    return (Correction(left, right) for left, right in zip(factors, factors, strict=True))


# --- floating point --------------------------------------------------------------------------


def _write_planes(writer: ChunkWriter, values: np.ndarray) -> None:
    for plane in values.astype(values.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, values.itemsize).T:
        writer.add(plane)


def _read_planes(reader: ChunkReader, what: str, dtype: np.dtype, count: int) -> np.ndarray:
    planes = [reader.take(f"{what}, byte {byte}", count) for byte in range(dtype.itemsize)]
    values = np.stack(planes, axis=-1).view(dtype.newbyteorder("<"))[:, 0].astype(dtype)
    if not np.isfinite(values).all():
        raise ArtifactError(f"{reader.source}: some of the {what} are not finite numbers")
    return values


def _split(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(values, np.cumsum(sizes)[:-1])
