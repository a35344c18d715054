"""Artifacts of PyTorch scripts, `final_model.int6.ptz`: what `torch.save` wrote, compressed.

Most scripts save {"w": tensors, "m": form by name}. `w` holds `<name>.q` (int8) with `<name>.scale` (float16, one a
row), or `<name>` itself; `m[name]` is "passthrough", "passthrough_ctrl", "passthrough_fp16" or {"type": "int4" …
"int8"}. The challenge's baseline saves {"quantized": int8 by name, "scales": …, "passthrough": floats by name}.
Pull request #1855 has marks of its own: "passthrough (float16)", "gate_int8_row" (`<name>.gq`, `.gs`) and
"gptq (int6)", which "+lqer" or "+lqer_asym" may follow: a correction, `<name>.lqA` [out, rank], `.lqB` [rank, in] with
steps `.lqAs`, `.lqBs`, all of them with `_a` at the end in the asymmetric form. Its files are those of `per_group`.
Integers, scales and floats are kept as they are in both directions; nothing is quantized again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jgolf import files, rules
from jgolf.errors import ArtifactError
from jgolf.quantize.stored import Correction, Factor, StoredTensor
from jgolf.torch_bridge import checkpoint, compressed, names, per_group
from jgolf.torch_bridge.families import pr592
from jgolf.torch_bridge.torch_extra import import_torch

ZSTD_LEVEL = 22
FLOAT_MARKS = ("passthrough", "passthrough_ctrl", "passthrough_fp16", "passthrough (float16)")
GATE_MARK = "gate_int8_row"
GPTQ_MARK = re.compile(r"gptq \((int[4-8])\)(\+lqer(_asym)?)?")
SUFFIXES = re.compile(r"\.(q|scale|gq|gs|lq[AB]s?(_a)?)$")
LEVELS = {f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in range(4, 9)}


def read(path: str | Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """The parameters in storage form by path, and a notice for each tensor that is left out.

    Pull request #592 writes "int6" for Int5 as well: an MLP matrix whose levels all lie in −16 … 15 is
    read as int5. Levels and scales are the same either way; only the room kept for them differs.

    Raises:
      ArtifactError: the file is no such artifact or is damaged; every tensor that does not fit is named.
      MissingExtraError: PyTorch, or what else the file needs, is not installed.
    """
    data, matrices = checkpoint.bytes_of(path), {}
    if data.startswith(compressed.PER_GROUP_MAGIC):
        tensors, marks, matrices = per_group.read(data, str(path))
    else:
        content = checkpoint.load_safely(compressed.decompress(data, str(path)), str(path))
        tensors, marks = _tensors_and_marks(content, str(path))
    checkpoint.check_views(tensors.values(), str(path), names=1)
    problems: list[str] = []
    tensors = {name: checkpoint.to_numpy(name, value, problems) for name, value in tensors.items()} | matrices
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
    if corrected := next((path for path, tensor in stored.items() if tensor.correction is not None), None):
        raise ArtifactError(
            f"{path}: {corrected} has a correction, which such artifacts cannot hold; write a .jgolf one"
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
    return SUFFIXES.sub("", name) if names.path_of_torch_name(name) is None else name


def _stored(name: str, mark: Any, tensors: Mapping[str, np.ndarray], problems: list[str]) -> StoredTensor | None:
    """The parameter that `m[name] = mark` describes, or None and an entry in `problems`."""
    form = mark.get("type") if isinstance(mark, Mapping) else mark
    if names.path_of_torch_name(name) is None:
        problems.append(f"{name}: no parameter has that name")
    elif isinstance(form, str) and form in FLOAT_MARKS:
        return _stored_floats(name, tensors, problems)
    elif isinstance(form, str) and form in LEVELS:
        tensor = _stored_integers(name, form, tensors, problems)
        return tensor and _narrow(tensor, rules.rule_of(names.path_of_torch_name(name)).kind)
    elif form == GATE_MARK:
        return _stored_integers(name, "int8", tensors, problems, (".gq", ".gs"))
    elif isinstance(form, str) and (gptq := GPTQ_MARK.fullmatch(form)):
        tensor = _stored_integers(name, gptq[1], tensors, problems)
        if tensor is None or not gptq[2]:
            return tensor
        correction = _correction(name, tensor, gptq[3] or "", tensors, problems)
        return correction and replace(tensor, correction=correction)
    else:
        expected = ", ".join([*FLOAT_MARKS, *LEVELS, GATE_MARK, "gptq (int6)"])
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
    name: str,
    form: str,
    tensors: Mapping[str, np.ndarray],
    problems: list[str],
    suffixes: tuple[str, str] = (".q", ".scale"),
) -> StoredTensor | None:
    q, scale = (name + suffix for suffix in suffixes)
    levels, scales = tensors.get(q), tensors.get(scale)
    if levels is None or levels.dtype != np.int8 or levels.ndim != 2:
        problems.append(f"{q}: {_found(levels)}, expected int8 [rows, columns]")
        return None
    if scales is None or scales.dtype != np.float16 or scales.shape != levels.shape[:1]:
        problems.append(f"{scale}: {_found(scales)}, expected float16 [{len(levels)}], one a row of {q}")
        return None
    lowest, highest = (int(levels.min()), int(levels.max())) if levels.size else (0, 0)
    if lowest < LEVELS[form][0] or highest > LEVELS[form][1]:
        problems.append(f"{q}: levels from {lowest} to {highest}, expected {form}'s {LEVELS[form]}")
        return None
    return StoredTensor.integers(names.path_of_torch_name(name), form, levels, scales)


def _narrow(tensor: StoredTensor, kind: rules.Kind) -> StoredTensor:
    """An MLP matrix marked int6 as int5 where its levels allow it."""
    lowest, highest = LEVELS["int5"]
    fits = not tensor.values.size or (lowest <= tensor.values.min() and tensor.values.max() <= highest)
    return replace(tensor, form="int5") if kind == "mlp" and tensor.form == "int6" and fits else tensor


def _correction(
    name: str, tensor: StoredTensor, asymmetric: str, tensors: Mapping[str, np.ndarray], problems: list[str]
) -> Correction | None:
    """The factors of a matrix's correction, of any rank, and with any number of steps that divides them."""
    end = "_a" if asymmetric else ""
    rows, columns = tensor.values.shape
    left, right = (tensors.get(f"{name}.lq{factor}{end}") for factor in "AB")
    factors = []
    for factor, levels, length, axis in (("A", left, rows, 0), ("B", right, columns, 1)):
        plausible = levels is not None and levels.dtype == np.int8 and levels.ndim == 2
        if not plausible or levels.shape[axis] != length or not 1 <= levels.shape[1 - axis] <= min(rows, columns):
            shape = f"[{rows}, rank]" if factor == "A" else f"[rank, {columns}]"
            problems.append(f"{name}.lq{factor}{end}: {_found(levels)}, expected int8 {shape}")
            return None
        scales = tensors.get(f"{name}.lq{factor}s{end}")
        if scales is None or scales.dtype != np.float16 or not scales.size or levels.size % scales.size:
            problems.append(f"{name}.lq{factor}s{end}: {_found(scales)}, expected float16 steps that divide its levels")
            return None
        factors.append(Factor(levels, scales.ravel()))
    if left.shape[1] != right.shape[0]:
        problems.append(f"{name}.lqA{end}: {_found(left)}, expected the rank of its lqB, {right.shape[0]}")
        return None
    return Correction(*factors)


def _found(array: np.ndarray | None) -> str:
    return "missing" if array is None else f"found {array.dtype} {list(array.shape)}"


def _float_mark(path: str, tensor: StoredTensor) -> str:
    """The reference marks its large FP16 embeddings apart, and float32 as control."""
    if tensor.form == "fp32":
        return "passthrough_ctrl"
    large = tensor.values.size > 65_536 and rules.rule_of(path).kind == "embedding"
    return "passthrough_fp16" if large else "passthrough"
