"""The file format: a checked header, then the tensors' streams.

    magic (4 bytes "JGLF"), version (1), checksum (8: BLAKE2b of all that follows),
    header (one chunk: JSON), the chunks that `layout` reads back, nothing after them.

The header is {"codec": …, "metadata": {…}, "tensors": [[path, form, shape], …]}; a corrected tensor has a fourth
entry, and an artifact with one the version 2. A chunk is a length (uint32, little-endian) and a zstd frame. A reader
believes nothing: the checksum catches damage, and every size is checked before memory is taken for it, so that a file
made to do harm ends in an ArtifactError too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jgolf import files, rules
from jgolf.artifact.chunks import ZSTD_LEVEL, ChunkReader, ChunkWriter
from jgolf.artifact.codes import READERS
from jgolf.artifact.layout import CorrectionSpec, TensorSpec, decode, encode
from jgolf.config import STORAGE_FORMS
from jgolf.errors import ArtifactError
from jgolf.quantize.stored import FLOAT_TYPES, StoredTensor
from jgolf.reading import Unreadable, excerpt, parse_json

MAGIC = b"JGLF"
PLAIN_VERSION, VERSION = 1, 2  # without corrections, and with them
CHECKSUM_BYTES = 8
START_BYTES = len(MAGIC) + 1 + CHECKSUM_BYTES
MAX_FILE_BYTES = 1 << 28
MAX_HEADER_BYTES = 1 << 20
MAX_VALUES = 1 << 27  # of all tensors: at this number 16 MB would leave one bit each

CodecName = Literal["zstd", "range"]


def pack(
    stored: Mapping[str, StoredTensor],
    metadata: Mapping[str, Any],
    codec: CodecName = "zstd",
    zstd_level: int = ZSTD_LEVEL,
) -> bytes:
    """An artifact that holds `stored` and `metadata`.

    Args:
      stored: parameters by path, as `jgolf.quantize.export.quantize` returns them.
      metadata: anything that JSON can hold.
      codec: how levels are coded; "range" is smaller and needs the extra "entropy" to read, too.
      zstd_level: 1 to 22.

    Raises:
      ArtifactError: the header would be too long, or the parameters too many, to be read back.
    """
    tensors = [_entry(path, tensor) for path, tensor in stored.items()]
    header = {"codec": codec, "metadata": dict(metadata), "tensors": tensors}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise ArtifactError(f"the artifact's header needs {len(text)} bytes, more than the {MAX_HEADER_BYTES} allowed")
    _specs(tensors, "the artifact")
    writer = ChunkWriter(zstd_level)
    writer.add(text)
    encode(stored, codec, writer)
    body = writer.finish()
    corrected = any(tensor.correction is not None for tensor in stored.values())
    return MAGIC + bytes([VERSION if corrected else PLAIN_VERSION]) + _checksum(body) + body


def unpack(data: bytes, source: str = "artifact") -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The inverse of `pack`: parameters by path, and the metadata.

    Args:
      data: a whole artifact.
      source: what error messages call it.

    Raises:
      ArtifactError: `data` is not an artifact that `pack` wrote, whole and unchanged.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"{source}: not a jgolf artifact: starts with {data[:4]!r}, expected {MAGIC!r}")
    if len(data) < START_BYTES:
        raise ArtifactError(f"{source}: cut off: {len(data)} bytes, expected at least {START_BYTES}")
    if not PLAIN_VERSION <= data[len(MAGIC)] <= VERSION:
        raise ArtifactError(
            f"{source}: format version {data[len(MAGIC)]}, expected at most {VERSION}: use the jgolf that wrote it"
        )
    body = memoryview(data)[START_BYTES:]
    if _checksum(body) != data[len(MAGIC) + 1 : START_BYTES]:
        raise ArtifactError(
            f"{source}: damaged or cut off: the checksum of its {len(data)} bytes is not the one it holds"
        )
    reader = ChunkReader(body, source)
    codec, metadata, specs = _parse_header(reader.take("header", range(2, MAX_HEADER_BYTES + 1)).tobytes(), source)
    stored = decode(specs, codec, reader)
    reader.finish()
    return stored, metadata


def write(path: str | Path, data: bytes) -> None:
    """Writes a packed artifact to `path`, all or nothing."""
    files.write_bytes(path, data)


def read(path: str | Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Reads the artifact at `path`; as `unpack`.

    Raises:
      ArtifactError: there is no such file, or it is not a whole artifact.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE_BYTES:
            raise ArtifactError(f"{path}: {size} bytes are too many for an artifact, expected at most {MAX_FILE_BYTES}")
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None
    return unpack(data, str(path))


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


def _parse_header(text: bytes, source: str) -> tuple[str, dict[str, Any], list[TensorSpec]]:
    try:
        header = parse_json(text)
    except Unreadable as error:
        raise ArtifactError(f"{source}: the header is damaged: {error}") from None
    if not isinstance(header, dict) or set(header) != {"codec", "metadata", "tensors"}:
        raise ArtifactError(f"{source}: the header needs the entries codec, metadata and tensors, and no others")
    if header["codec"] not in list(READERS):
        raise ArtifactError(f"{source}: codec {excerpt(header['codec'])}, expected one of {', '.join(READERS)}")
    for name, kind in (("metadata", dict), ("tensors", list)):
        if not isinstance(header[name], kind):
            raise ArtifactError(f"{source}: the header's {name} is a {type(header[name]).__name__}")
    return header["codec"], header["metadata"], _specs(header["tensors"], source)


def _specs(tensors: list[Any], source: str) -> list[TensorSpec]:
    """Checks paths, forms and shapes, before anything is allocated from them."""
    specs = [_spec(entry, source) for entry in tensors]
    path, times = Counter(spec.path for spec in specs).most_common(1)[0] if specs else ("", 0)
    if times > 1:
        raise ArtifactError(f"{source}: lists {path} {times} times, expected once")
    values = sum(spec.size + spec.correction_size for spec in specs)
    if values > MAX_VALUES:
        raise ArtifactError(f"{source}: lists tensors of {values} values in all, expected at most {MAX_VALUES}")
    return specs


def _entry(path: str, tensor: StoredTensor) -> list[Any]:
    """What the header says of a tensor."""
    entry = [path, tensor.form, list(tensor.shape)]
    return entry if tensor.correction is None else [*entry, list(CorrectionSpec.of(tensor.correction))]


def _spec(entry: Any, source: str) -> TensorSpec:
    match entry:
        case [str(path), str(form), list(shape), *correction] if form in STORAGE_FORMS and len(correction) < 2:
            try:
                rules.rule_of(path)
            except ArtifactError as error:
                raise ArtifactError(f"{source}: {error}") from None
            plausible = all(type(size) is int and 1 <= size <= MAX_VALUES for size in shape)
            if plausible and len(shape) <= 3 and (len(shape) == 2 or form in FLOAT_TYPES):
                spec = TensorSpec(path, form, tuple(shape))
                return replace(spec, correction=_correction(spec, correction[0], source)) if correction else spec
    raise ArtifactError(
        f"{source}: tensor {excerpt(entry, 120)} is none of ours: expected a path, one of {', '.join(STORAGE_FORMS)}, "
        "and a shape of up to three sizes (two for integers)"
    )


def _correction(spec: TensorSpec, entry: Any, source: str) -> CorrectionSpec:
    match entry:
        case [_, _, _, _] if spec.form not in FLOAT_TYPES and all(type(number) is int for number in entry):
            if (found := CorrectionSpec(*entry)).fits(spec.levels_shape):
                return found
    raise ArtifactError(
        f"{source}: {spec.path} has the correction {excerpt(entry)}: expected, for integers, a rank of at most the "
        "matrix's sizes, numbers of steps that divide its factors, and 1 to 8 bits"
    )
