"""The PyTorch reference's artifact, `final_model.int6.ptz`.

It is `torch.save({"w": tensors, "m": form by name})`, compressed with zstd. `w` holds `<name>.q`
(int8) with `<name>.scale` (float16, one a row), or `<name>` itself; `m[name]` is "passthrough",
"passthrough_ctrl", "passthrough_fp16" or {"type": "int6" | "int8"}. Integers, scales and floats are
kept as they are in both directions; nothing is quantized again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jgolf import files, rules
from jgolf.errors import ArtifactError
from jgolf.quantize.stored import StoredTensor
from jgolf.torch_bridge import checkpoint, names
from jgolf.torch_bridge.torch_extra import import_torch

ZSTD_LEVEL = 22
MAX_RAW_BYTES = 1 << 30  # no artifact of 16 MB holds more; a crafted one could fill the memory
FLOAT_MARKS = ("passthrough", "passthrough_ctrl", "passthrough_fp16")
LEVELS = {"int6": (-32, 31), "int8": (-128, 127)}
INT5_LEVELS = (-16, 15)


def read(path: str | Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """The parameters in storage form by path, and a notice for each tensor that is left out.

    The reference writes "int6" for Int5 as well: an MLP matrix whose levels all lie in −16 … 15 is
    read as int5. Levels and scales are the same either way; only the room kept for them differs.

    Raises:
      ArtifactError: the file is no such artifact or is damaged; every tensor that does not fit is named.
      MissingExtraError: PyTorch is not installed.
    """
    content = checkpoint.load_safely(decompress(checkpoint.bytes_of(path), str(path)), str(path))
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), Mapping) for key in ("w", "m")):
        raise ArtifactError(f'{path}: expected a dictionary with "w" and "m"; found {checkpoint.describe(content)}')
    problems: list[str] = []
    tensors = {str(name): checkpoint.to_numpy(str(name), value, problems) for name, value in content["w"].items()}
    marks, notices = names.canonical({str(name): mark for name, mark in content["m"].items()})
    tensors, _ = names.canonical(tensors)
    stored = {}
    for name, mark in marks.items():
        if tensor := _stored(name, mark, tensors, problems):
            stored[rules.path_of_torch_name(name)] = tensor
    problems += [f"{name}: has no entry in m" for name in tensors if _base_name(name) not in marks]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        raise ArtifactError(f"{path}: not an artifact of the PyTorch reference, or damaged:\n{lines}")
    return stored, notices


def write(path: str | Path, stored: Mapping[str, StoredTensor]) -> None:
    """Writes parameters in storage form as the reference's loader reads them, all or nothing.

    Integers of up to 6 bits are marked int6, wider ones int8; both are level × scale to the loader.
    Floats stay what they are: float16 as passthrough, float32 as passthrough_ctrl.
    """
    torch = import_torch(f"writing {path}")
    tensors: dict[str, np.ndarray] = {}
    marks: dict[str, Any] = {}
    for parameter, tensor in stored.items():
        name = rules.torch_name(parameter)
        if tensor.scales is None:
            tensors[name] = names.to_layout(parameter, tensor.values)
            marks[name] = _float_mark(parameter, tensor)
        else:
            tensors[name + ".q"], tensors[name + ".scale"] = tensor.values, tensor.scales
            marks[name] = {"type": "int6" if tensor.bits <= 6 else "int8"}
    buffer = io.BytesIO()
    content = {"w": {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}, "m": marks}
    torch.save(content, buffer)
    files.write_bytes(path, zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(buffer.getvalue()))


def decompress(data: bytes, source: str) -> bytes:
    """The content of one zstd frame of at most MAX_RAW_BYTES.

    Raises:
      ArtifactError: `data` is no such frame, is cut off or damaged, or holds more.
    """
    raw = bytearray()
    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            while len(raw) <= MAX_RAW_BYTES and (chunk := reader.read(1 << 20)):
                raw += chunk
        size = zstandard.get_frame_parameters(data).content_size
    except zstandard.ZstdError as error:
        raise ArtifactError(f"{source}: not zstd data, or damaged: {error}") from None
    if len(raw) > MAX_RAW_BYTES:
        raise ArtifactError(f"{source}: holds more than {MAX_RAW_BYTES:,} bytes once decompressed; refused")
    if size not in (zstandard.CONTENTSIZE_UNKNOWN, len(raw)):
        raise ArtifactError(f"{source}: cut off: {len(raw):,} of {size:,} bytes are there")
    return bytes(raw)


def _base_name(name: str) -> str:
    return name.removesuffix(".q").removesuffix(".scale") if rules.path_of_torch_name(name) is None else name


def _stored(name: str, mark: Any, tensors: Mapping[str, np.ndarray], problems: list[str]) -> StoredTensor | None:
    """The parameter that `m[name] = mark` describes, or None and an entry in `problems`."""
    form = mark.get("type") if isinstance(mark, Mapping) else mark
    if rules.path_of_torch_name(name) is None:
        problems.append(f"{name}: no parameter has that name")
    elif isinstance(form, str) and form in FLOAT_MARKS:
        return _stored_floats(name, tensors, problems)
    elif isinstance(form, str) and form in LEVELS:
        return _stored_integers(name, form, tensors, problems)
    else:
        expected = ", ".join([*FLOAT_MARKS, *LEVELS])
        problems.append(f"{name}: storage form {mark!r}, expected one of {expected}")
    return None


def _stored_floats(name: str, tensors: Mapping[str, np.ndarray], problems: list[str]) -> StoredTensor | None:
    values = tensors.get(name)
    if values is None or values.dtype not in (np.float16, np.float32):
        found = "missing" if values is None else f"found {values.dtype}"
        problems.append(f"{name}: {found}, expected float16 or float32")
        return None
    form = "fp16" if values.dtype == np.float16 else "fp32"
    return StoredTensor.floats(form, names.to_layout(rules.path_of_torch_name(name), values))


def _stored_integers(
    name: str, form: str, tensors: Mapping[str, np.ndarray], problems: list[str]
) -> StoredTensor | None:
    levels, scales = tensors.get(name + ".q"), tensors.get(name + ".scale")
    if levels is None or levels.dtype != np.int8 or levels.ndim != 2:
        problems.append(f"{name}.q: {_found(levels)}, expected int8 [rows, columns]")
        return None
    if scales is None or scales.dtype != np.float16 or scales.shape != levels.shape[:1]:
        problems.append(f"{name}.scale: {_found(scales)}, expected float16 [{len(levels)}], one a row of {name}.q")
        return None
    lowest, highest = (int(levels.min()), int(levels.max())) if levels.size else (0, 0)
    if lowest < LEVELS[form][0] or highest > LEVELS[form][1]:
        problems.append(f"{name}.q: levels from {lowest} to {highest}, expected {form}'s {LEVELS[form]}")
        return None
    path = rules.path_of_torch_name(name)
    if rules.rule_of(path).kind == "mlp" and form == "int6" and INT5_LEVELS[0] <= lowest <= highest <= INT5_LEVELS[1]:
        form = "int5"
    return StoredTensor.integers(path, form, levels, scales)


def _found(array: np.ndarray | None) -> str:
    return "missing" if array is None else f"found {array.dtype} {list(array.shape)}"


def _float_mark(path: str, tensor: StoredTensor) -> str:
    """The reference marks its large FP16 embeddings apart, and float32 as control."""
    if tensor.form == "fp32":
        return "passthrough_ctrl"
    large = tensor.values.size > 65_536 and rules.rule_of(path).kind == "embedding"
    return "passthrough_fp16" if large else "passthrough"
