"""Models from one kind of file to another: `jgolf convert`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from jgolf.artifact import container, safe_tensors
from jgolf.artifact.scoring import Artifact
from jgolf.config import QuantizeConfig
from jgolf.errors import JgolfError
from jgolf.load import LoadedModel, load_model
from jgolf.options import PathText
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import StoredTensor
from jgolf.torch_bridge import checkpoint, names, reference_artifact

SUFFIXES = {
    ".pt": "PyTorch state dict, float32",
    ".ptz": "artifact of the PyTorch reference",
    ".jgolf": "jgolf artifact",
    ".safetensors": "safetensors, float32, with the model's settings",
}


def convert(
    source: tyro.conf.Positional[Path],
    destination: tyro.conf.Positional[Path],
    to: Literal["pt", "ptz", "jgolf", "safetensors"] | None = None,
    config: PathText | None = None,
    average: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a model between PyTorch checkpoints, the PyTorch reference's artifacts, jgolf's and safetensors.

    Integers, scales and floats of an artifact are kept as they are; full-precision weights are quantized by
    the rules of the config where the destination is an artifact.

    Args:
      source: A .pt state dict, a .ptz or .jgolf artifact, a .safetensors file of ours, or a run directory.
      destination: A file; its ending, .pt, .ptz, .jgolf or .safetensors, says what to write.
      to: What to write, whatever the ending.
      config: For PyTorch files: a config's name, a run's config.json, or a JSON object of settings (inline or a file).
      average: Weights of a run: raw, ema, swa or ema+swa.
      overwrite: Replace the destination where it exists.
    """
    write = {
        ".pt": _write_state_dict,
        ".ptz": _write_reference_artifact,
        ".jgolf": _write_artifact,
        ".safetensors": _write_safetensors,
    }
    suffix = f".{to}" if to else destination.suffix.lower()
    if suffix not in write:
        kinds = ", ".join(f"{suffix} ({kind})" for suffix, kind in SUFFIXES.items())
        raise JgolfError(f"{destination}: the ending says what to write; expected one of {kinds}, or --to")
    if destination.exists() and not overwrite:
        raise JgolfError(f"{destination}: exists already; choose another name or add --overwrite")
    model = load_model(source, config, average)
    write[suffix](destination, model)
    values = sum(array.size for array in model.params.values())
    print(f"{destination}: {SUFFIXES[suffix]}, {values:,} parameters, {destination.stat().st_size:,} bytes")


def stored_form(params: Mapping[str, np.ndarray], stored: dict[str, StoredTensor] | None, how: QuantizeConfig) -> dict:
    """The parameters in storage form: as they were read, or quantized where they were read in full precision."""
    if stored is not None:
        return stored
    if how.gptq:
        print("rounded to the nearest levels: GPTQ learns from training text, as export.py does it", file=sys.stderr)
    return quantize(params, how)


def _write_state_dict(path: Path, model: LoadedModel) -> None:
    checkpoint.write(path, names.from_params(model.params))


def _write_reference_artifact(path: Path, model: LoadedModel) -> None:
    reference_artifact.write(path, stored_form(model.params, model.stored, model.config.quantize))


def _write_safetensors(path: Path, model: LoadedModel) -> None:
    floats = {path: StoredTensor.floats("fp32", values) for path, values in model.params.items()}
    artifact = Artifact.of_run(model.config, floats, model.tokenizer_fingerprint)
    safe_tensors.write(path, artifact, model.config.quantize)


def _write_artifact(path: Path, model: LoadedModel) -> None:
    stored = stored_form(model.params, model.stored, model.config.quantize)
    config = model.config
    artifact = Artifact.of_run(config, stored, model.tokenizer_fingerprint)
    container.write(path, container.pack(stored, artifact.metadata()))
