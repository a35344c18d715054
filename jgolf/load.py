"""A model from any file that holds one: a run, an artifact, a PyTorch checkpoint or artifact."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jgolf import config as configs
from jgolf.artifact import container
from jgolf.config import Average, Config, ModelConfig
from jgolf.errors import ArtifactError, ConfigError
from jgolf.quantize.stored import StoredTensor, dequantize

Kind = Literal["run", "jgolf", "ptz", "pt"]
ZSTD_MAGIC = bytes.fromhex("28b52ffd")
PYTORCH_MAGICS = (b"PK\x03\x04", b"\x80\x02")  # torch.save's zip archive, and its older pickle


@dataclass(frozen=True)
class LoadedModel:
    """A model's weights and all that is known about them.

    Attributes:
      config: the run's settings; for a file that holds the model alone, all but `config.model` are the recipe's.
      params: path → float32 array.
      stored: the same in storage form, where the file holds that; else None.
      tokenizer_fingerprint: SHA-256 of the tokenizer it was trained with, where the file says so.
      source: the path, for messages.
    """

    config: Config
    params: dict[str, np.ndarray]
    stored: dict[str, StoredTensor] | None
    tokenizer_fingerprint: str | None
    source: str


def load_model(path: str | Path, config: str | None = None, average: str | None = None) -> LoadedModel:
    """Reads a model; its kind is told by what the file holds, not by its name.

    Args:
      path: a run directory, a .jgolf artifact, a PyTorch state dict or an artifact of the PyTorch reference.
      config: the option `--config`: settings of a PyTorch model that its tensors do not tell.
      average: which weights of a run: raw, ema, swa or ema+swa; None takes those that the run exports.

    Raises:
      ArtifactError: the file is missing, unknown, damaged, or does not fit the model.
      ConfigError: the option cannot be used, or contradicts the tensors.
      MissingExtraError: a PyTorch file, and PyTorch is not installed.
    """
    if average is not None and average not in get_args(Average):
        raise ConfigError(f"--average is {average!r}: expected one of {', '.join(get_args(Average))}")
    kind = kind_of(path)
    if average is not None and kind != "run":
        raise ConfigError(f"{path}: holds one set of weights; --average chooses among those of a run directory")
    if config is not None and kind in ("run", "jgolf"):
        raise ConfigError(f"{path}: holds its own config; --config is for PyTorch files")
    if kind == "run":
        return _load_run(path, average)
    return {"jgolf": _load_artifact, "ptz": _load_reference_artifact, "pt": _load_state_dict}[kind](path, config)


def kind_of(path: str | Path) -> Kind:
    """What kind of model file or directory `path` is.

    Raises:
      ArtifactError: none of them, or nothing.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            return "run"
        raise ArtifactError(f"{path}: not a run directory: there is no config.json in it")
    try:
        with path.open("rb") as file:
            start = file.read(len(container.MAGIC))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None
    if start == container.MAGIC:
        return "jgolf"
    if start == ZSTD_MAGIC:
        return "ptz"
    if start.startswith(PYTORCH_MAGICS):
        return "pt"
    raise ArtifactError(
        f"{path}: starts with {start!r}, expected a run directory, a jgolf artifact (.jgolf), a PyTorch state dict (.pt) "
        "or an artifact of the PyTorch reference, compressed with zstd (.ptz)"
    )


def artifact_metadata(config: Config, tokenizer_fingerprint: str | None) -> dict[str, Any]:
    """What a .jgolf artifact says about its model: all that loading needs besides the weights."""
    return {
        "name": config.name,
        "model": configs.to_dict(config.model),
        "tokenizer_fingerprint": tokenizer_fingerprint,
    }


def _load_run(path: str | Path, average: str | None) -> LoadedModel:
    from jgolf.train.checkpoint import load_weights

    config, params = load_weights(path, average)
    return LoadedModel(config, params, None, None, str(path))


def _load_artifact(path: str | Path, config: str | None) -> LoadedModel:
    stored, metadata = container.read(path)
    try:
        model = configs.from_dict(metadata["model"], ModelConfig)
        name, fingerprint = metadata["name"], metadata["tokenizer_fingerprint"]
        full_config = dataclasses.replace(Config(), name=name, model=model)
        configs.validate(full_config)
    except (KeyError, ConfigError) as error:
        raise ArtifactError(f"{path}: its metadata do not describe a model: {error}") from None
    _check_shapes({parameter: tensor.shape for parameter, tensor in stored.items()}, model, str(path))
    return LoadedModel(full_config, dequantize(stored), stored, fingerprint, str(path))


def _check_shapes(found: Mapping[str, tuple[int, ...]], model: ModelConfig, source: str) -> None:
    from jgolf.model.functional import parameter_shapes

    expected = parameter_shapes(model)
    wrong = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    if wrong:
        lines = (
            f"  {path}: found {found.get(path, 'nothing')}, expected {expected.get(path, 'nothing')}" for path in wrong
        )
        raise ArtifactError(f"{source}: parameters do not fit the model in its metadata:\n" + "\n".join(lines))


def _load_reference_artifact(path: str | Path, config: str | None) -> LoadedModel:
    from jgolf.torch_bridge import reference_artifact, reference_config

    stored, notices = reference_artifact.read(path)
    shapes = {parameter: tensor.shape for parameter, tensor in stored.items()}
    full_config, assumed = reference_config.fit(shapes, {}, config, str(path))
    _tell(notices + assumed)
    return LoadedModel(full_config, dequantize(stored), stored, None, str(path))


def _load_state_dict(path: str | Path, config: str | None) -> LoadedModel:
    from jgolf.torch_bridge import checkpoint, names, reference_config

    state, notices = names.canonical(checkpoint.read(path))
    params, unknown = names.to_params(state)
    shapes = {parameter: array.shape for parameter, array in params.items()}
    full_config, assumed = reference_config.fit(shapes, unknown, config, str(path))
    _tell(notices + assumed)
    return LoadedModel(full_config, params, None, None, str(path))


def _tell(notices: list[str]) -> None:
    for notice in notices:
        print(notice, file=sys.stderr)
