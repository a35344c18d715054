"""Artifacts of PyTorch scripts, `final_model.int6.ptz`: what `torch.save` wrote, compressed.

Most scripts save {"w": tensors, "m": form by name}. `w` holds `<name>.q` (int8) with `<name>.scale` (float16, one a
row), or `<name>` itself; `m[name]` is "passthrough", "passthrough_ctrl", "passthrough_fp16" or {"type": "int4" …
"int8"}. The challenge's baseline saves {"quantized": int8 by name, "scales": …, "passthrough": floats by name}.
Integers, scales and floats are kept as they are in both directions; nothing is quantized again.
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
from jgolf.torch_bridge import checkpoint, compressed, names
from jgolf.torch_bridge.families import pr592
from jgolf.torch_bridge.torch_extra import import_torch

ZSTD_LEVEL = 22
FLOAT_MARKS = ("passthrough", "passthrough_ctrl", "passthrough_fp16")
LEVELS = {f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in range(4, 9)}


def read(path: str | Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """The parameters in storage form by path, and a notice for each tensor that is left out.

    Pull request #592 writes "int6" for Int5 as well: an MLP matrix whose levels all lie in −16 … 15 is
    read as int5. Levels and scales are the same either way; only the room kept for them differs.

    Raises:
      ArtifactError: the file is no such artifact or is damaged; every tensor that does not fit is named.
      MissingExtraError: PyTorch is not installed.
    """
    content = checkpoint.load_safely(compressed.decompress(checkpoint.bytes_of(path), str(path)), str(path))
    tensors, marks = _tensors_and_marks(content, str(path))
    checkpoint.check_views(tensors.values(), str(path), names=1)
    problems: list[str] = []
    tensors = {name: checkpoint.to_numpy(name, value, problems) for name, value in tensors.items()}
    marks, notices = names.canonical(marks)
    tensors, _ = names.canonical(tensors)
    stored = {}
    for name, mark in marks.items():
        if tensor := _stored(name, mark, tensors, problems):
            stored[names.path_of_torch_name(name)] = tensor
    problems += [f"{name}: has no entry in m" for name in tensors if _base_name(name) not in marks]
    if problems:
        text = f"{path}: not an artifact of a PyTorch script, or damaged:\n{names.listed([*dict.fromkeys(problems)])}"
        foreign = names.foreign_names(marks)
        raise ArtifactError(f"{text}\n{names.another_architecture(foreign)}" if foreign else text)
    return stored, notices


def _tensors_and_marks(content: Any, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`w` and `m` of what a script saved.

    Raises:
      ArtifactError: it holds neither these nor the baseline's tensors.
    """
    if _holds(content, "w", "m"):
        return checkpoint.by_text(content["w"]), checkpoint.by_text(content["m"])
    if _holds(content, "quantized", "scales", "passthrough"):
        quantized, scales, floats = (checkpoint.by_text(content[key]) for key in ("quantized", "scales", "passthrough"))
        levels = {f"{name}.q": value for name, value in quantized.items()}
        tensors = levels | {f"{name}.scale": value for name, value in scales.items()} | floats
        marks = dict.fromkeys(quantized, {"type": "int8"}) | dict.fromkeys(floats, "passthrough")
        return tensors, marks
    raise ArtifactError(
        f'{source}: expected a dictionary with "w" and "m", or with "quantized", "scales" and "passthrough"; '
        f"found {checkpoint.describe(content)}"
    )


def _holds(content: Any, *keys: str) -> bool:
    return isinstance(content, Mapping) and all(isinstance(content.get(key), Mapping) for key in keys)


def write(path: str | Path, stored: Mapping[str, StoredTensor]) -> None:
    """Writes parameters in storage form as the reference's loader reads them, all or nothing.

    Integers of up to 6 bits are marked int6, wider ones int8; both are level × scale to the loader.
    Floats stay what they are: float16 as passthrough, float32 as passthrough_ctrl.

    Raises:
      ArtifactError: the model is not one of pr592's family, whose artifacts these are.
    """
    torch = import_torch(f"writing {path}")
    if (family := names.family_with([*stored])) is not pr592.FAMILY:
        raise ArtifactError(
            f"{path}: scripts of the family of {family.recipe}, whose parameters these are, have artifacts of another "
            "kind, which jgolf does not write; choose a .pt state dict or a .jgolf artifact"
        )
    tensors: dict[str, np.ndarray] = {}
    marks: dict[str, Any] = {}
    for parameter, tensor in stored.items():
        name = names.torch_name(parameter)
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


def _base_name(name: str) -> str:
    return name.removesuffix(".q").removesuffix(".scale") if names.path_of_torch_name(name) is None else name


def _stored(name: str, mark: Any, tensors: Mapping[str, np.ndarray], problems: list[str]) -> StoredTensor | None:
    """The parameter that `m[name] = mark` describes, or None and an entry in `problems`."""
    form = mark.get("type") if isinstance(mark, Mapping) else mark
    if names.path_of_torch_name(name) is None:
        problems.append(f"{name}: no parameter has that name")
    elif isinstance(form, str) and form in FLOAT_MARKS:
        return _stored_floats(name, tensors, problems)
    elif isinstance(form, str) and form in LEVELS:
        return _stored_integers(name, form, tensors, problems)
    else:
        expected = ", ".join([*FLOAT_MARKS, *LEVELS])
        found = repr(form) if isinstance(form, str) else f"a {type(form).__name__}"
        problems.append(f"{name}: storage form {found}, expected one of {expected}")
    return None


def _stored_floats(name: str, tensors: Mapping[str, np.ndarray], problems: list[str]) -> StoredTensor | None:
    values = tensors.get(name)
    if values is None or values.dtype not in (np.float16, np.float32):
        found = "missing" if values is None else f"found {values.dtype}"
        problems.append(f"{name}: {found}, expected float16 or float32")
        return None
    form = "fp16" if values.dtype == np.float16 else "fp32"
    return StoredTensor.floats(form, names.to_layout(names.path_of_torch_name(name), values))


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
    path = names.path_of_torch_name(name)
    narrow = LEVELS["int5"][0] <= lowest and highest <= LEVELS["int5"][1]
    if rules.rule_of(path).kind == "mlp" and form == "int6" and narrow:
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
