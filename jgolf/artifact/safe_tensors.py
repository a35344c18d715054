"""A model's float32 parameters as a .safetensors file, which many programs read; the settings are in its header.

The tensors are called by our paths and lie as ours do: a kernel is (in, out).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jgolf import files
from jgolf.artifact.scoring import Artifact, described
from jgolf.config import QuantizeConfig, from_dict, versions
from jgolf.errors import ArtifactError, ConfigError, MissingExtraError, first_line
from jgolf.quantize.stored import StoredTensor
from jgolf.reading import Unreadable, parse_json

KEY = "jgolf"
"""In the header's metadata: what the model is, as JSON."""
LOOKED_AT_BYTES = 8
_LONGEST_HEADER = 100_000_000  # what the format allows


def begins(start: bytes) -> bool:
    """Whether a file that begins so is safetensors: the length of a JSON object, and that."""
    return start[8:10] == b'{"' and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def write(path: str | Path, artifact: Artifact, quantize: QuantizeConfig) -> None:
    """Writes the model, all or nothing.

    Args:
      path: the file.
      artifact: the model; what it stores as integers is written as the floats that they stand for.
      quantize: how it would be stored in an artifact.

    Raises:
      MissingExtraError: safetensors is not installed.
    """
    safetensors = _import_safetensors(f"writing {path}")
    said = {**artifact.metadata(), "quantize": dataclasses.asdict(quantize)}
    params = {name: np.asarray(values, order="C") for name, values in artifact.params().items()}
    files.write_bytes(path, safetensors.numpy.save(params, {KEY: json.dumps(said)}))


def read(path: str | Path) -> tuple[Artifact, QuantizeConfig]:
    """What `write` wrote.

    Raises:
      ArtifactError: the file is damaged, not one of ours, or its tensors are not float32 or not the model's.
      MissingExtraError: safetensors is not installed.
    """
    safetensors = _import_safetensors(f"reading {path}")
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 – it is no dictionary
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: not a safetensors file that we can read: {first_line(error):.500}") from None
    if KEY not in metadata:
        raise ArtifactError(
            f"{path}: says nothing of the model (no {KEY} in its metadata), so it is no file that `jgolf convert` "
            "wrote; a PyTorch script's model is read from its .pt"
        )
    other = [f"{name} ({values.dtype})" for name, values in params.items() if values.dtype != np.float32]
    if other:
        raise ArtifactError(f"{path}: expected float32, found {', '.join(other[:10])}")
    said = _said(path, metadata[KEY])
    stored = {name: StoredTensor.floats("fp32", values) for name, values in params.items()}
    try:
        whole = versions.complete(said.pop("quantize"), said.get(versions.KEY, 0), "quantize")
        quantize = from_dict(whole, QuantizeConfig)
    except (KeyError, TypeError, ConfigError) as error:
        raise ArtifactError(f"{path}: its metadata do not say how it is quantized: {error!s:.500}") from None
    return described(stored, said, str(path)), quantize


def _said(path: str | Path, text: str) -> dict[str, Any]:
    try:
        said = parse_json(text)
    except Unreadable as error:
        raise ArtifactError(f"{path}: its metadata are damaged: {error}") from None
    if not isinstance(said, dict):
        raise ArtifactError(f"{path}: its metadata are damaged: expected a JSON object")
    return said


def _import_safetensors(purpose: str) -> ModuleType:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise MissingExtraError("safetensors", "safetensors", purpose) from None
    return safetensors
