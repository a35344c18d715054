"""A model from any file that holds one: a run, an artifact, a PyTorch checkpoint or artifact."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from jgolf import config as configs
from jgolf.artifact import container, safe_tensors
from jgolf.artifact.scoring import Artifact, check_shapes, read_artifact
from jgolf.config import Average, Config, ModelConfig
from jgolf.errors import ArtifactError, ConfigError
from jgolf.quantize.stored import StoredTensor, dequantize
from jgolf.run_dir import CONFIG_FILE
from jgolf.torch_bridge import compressed
from jgolf.torch_bridge.config_option import Given

RECIPE = "pr592"
"""Has the settings that a file which holds a model alone does not tell: where its data may be, say."""
Kind = Literal["run", "jgolf", "safetensors", "ptz", "pt"]
_COMPLETE: tuple[Kind, ...] = ("run", "jgolf", "safetensors")  # kinds that hold their settings
MAX_NAMED = 10  # tensors that one message names
PYTORCH_MAGICS = (b"PK\x03\x04", b"\x80\x02")  # torch.save's zip archive, and its older pickle


@dataclass(frozen=True)
class LoadedModel:
    """A model's weights and all that is known about them.

    Attributes:
      config: the run's settings; for a file that holds the model alone, all else is the recipe pr592's.
      params: path → float32 array.
      stored: the same in storage form, where the file holds that; else None.
      assumed: names of the settings in `config.model` that neither the file nor `--config` tells.
      tokenizer_fingerprint: SHA-256 of the tokenizer it was trained with, where the file says so.
      source: the path, for messages.
    """

    config: Config
    params: dict[str, np.ndarray]
    stored: dict[str, StoredTensor] | None
    tokenizer_fingerprint: str | None
    source: str
    assumed: tuple[str, ...] = ()


def load_model(
    path: str | Path, config: str | None = None, average: str | None = None, own: Given | None = None
) -> LoadedModel:
    """Reads a model; its kind is told by what the file holds, not by its name.

    Args:
      path: a run directory, a .jgolf artifact, a .safetensors file of ours, a PyTorch state dict or an artifact of the
        PyTorch reference.
      config: the option `--config`: settings of a PyTorch model that its tensors do not tell.
      average: which weights of a run: raw, ema, swa or ema+swa; None takes those that the run exports.
      own: settings of the script that a PyTorch model belongs to, for what neither its tensors nor `config` tell.

    Raises:
      ArtifactError: the file is missing, unknown, damaged, does not fit the model, or has values that are not finite.
      ConfigError: the option cannot be used, or contradicts the tensors.
      MissingExtraError: a PyTorch or safetensors file, and that package is not installed.
    """
    if average is not None and average not in get_args(Average):
        raise ConfigError(f"--average is {average!r}: expected one of {', '.join(get_args(Average))}")
    kind = kind_of(path)
    if average is not None and kind != "run":
        raise ConfigError(f"{path}: holds one set of weights; --average chooses among those of a run directory")
    if config is not None and kind in _COMPLETE:
        raise ConfigError(f"{path}: holds its own config; --config is for PyTorch files")
    if kind == "run":
        model = _load_run(path, average)
    else:
        holds_settings = {"jgolf": _load_artifact, "safetensors": _load_safetensors}
        model = holds_settings[kind](path) if kind in holds_settings else _load_pytorch(path, kind, config, own)
    _check_finite(model.params, kind, str(path))
    return model


def load_params(path: str | Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """The weights in any model file, path → float32, for a network whose settings are known.

    Raises:
      ArtifactError: the file is missing, unknown or damaged, or its parameters are not those of `model` or not finite.
      MissingExtraError: a PyTorch file, and PyTorch is not installed.
    """
    kind = kind_of(path)
    if kind in _COMPLETE:
        params = load_model(path).params
        check_shapes(_shapes(params), model, str(path))
        return params
    from jgolf.torch_bridge import reference_config

    params, _, tensors, notices = _read_pytorch(path, kind)
    reference_config.check(tensors, model, str(path))
    _check_finite(params, kind, str(path))
    _tell(notices)
    return params


def kind_of(path: str | Path) -> Kind:
    """What kind of model file or directory `path` is.

    Raises:
      ArtifactError: none of them, or nothing.
    """
    path = Path(path)
    if path.is_dir():
        if (path / CONFIG_FILE).is_file():
            return "run"
        raise ArtifactError(f"{path}: not a run directory: there is no {CONFIG_FILE} in it")
    if path.exists() and not path.is_file():  # a pipe, say, which could not be read twice
        raise ArtifactError(f"{path}: not a file, expected one that holds a model: write it to a file first")
    try:
        with path.open("rb") as file:
            start = file.read(len(container.MAGIC))
            further = file.read(safe_tensors.LOOKED_AT_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None
    if start == container.MAGIC:
        return "jgolf"
    if safe_tensors.begins(start + further):
        return "safetensors"
    if compressed.method_of(start) is not None or start == compressed.PER_GROUP_MAGIC:
        return "ptz"
    if start.startswith(PYTORCH_MAGICS):
        return "pt"
    if start and path.suffix == ".ptz":  # brotli, whose data begin with anything
        return "ptz"
    found = f"starts with {start!r}" if start else "an empty file"
    raise ArtifactError(
        f"{path}: {found}, expected a run directory, a jgolf artifact (.jgolf), .safetensors, a PyTorch "
        f"state dict (.pt) or an artifact of a PyTorch script, compressed with {' or '.join(compressed.METHODS)} (.ptz)"
    )


def _load_run(path: str | Path, average: str | None) -> LoadedModel:
    from jgolf.train.checkpoint import load_weights

    config, params = load_weights(path, average)
    return LoadedModel(config, params, None, None, str(path))


def _load_artifact(path: str | Path) -> LoadedModel:
    artifact = read_artifact(path)
    config, params = _with_recipe(artifact), artifact.params()
    return LoadedModel(config, params, artifact.stored, artifact.tokenizer_fingerprint, str(path))


def _load_safetensors(path: str | Path) -> LoadedModel:
    artifact, quantize = safe_tensors.read(path)
    config = dataclasses.replace(_with_recipe(artifact), quantize=quantize)
    return LoadedModel(config, artifact.params(), None, artifact.tokenizer_fingerprint, str(path))


def _with_recipe(artifact: Artifact) -> Config:
    """The settings of an artifact; all that it does not tell is RECIPE's."""
    recipe = configs.load(RECIPE)
    return dataclasses.replace(
        recipe,
        name=artifact.name,
        model=artifact.model,
        train=dataclasses.replace(recipe.train, seq_len=artifact.seq_len, documents=artifact.documents),
    )


def _load_pytorch(path: str | Path, kind: Kind, option: str | None, own: Given | None) -> LoadedModel:
    from jgolf.torch_bridge import reference_config

    params, stored, tensors, notices = _read_pytorch(path, kind)
    resolved = reference_config.fit(tensors, option, str(path), own)
    _tell(notices + resolved.notices)
    return LoadedModel(resolved.config, params, stored, None, str(path), resolved.assumed)


def _read_pytorch(path: str | Path, kind: Kind) -> tuple[dict, dict | None, dict[str, tuple], list[str]]:
    """Parameters, their storage forms if the file has them, the shapes of its tensors by their names, and notices."""
    from jgolf.torch_bridge import checkpoint, names, reference_artifact

    if kind == "ptz":
        stored, notices = reference_artifact.read(path)
        with np.errstate(invalid="ignore", over="ignore"):  # of scales that are not finite: weights are checked below
            return dequantize(stored), stored, names.by_torch_name(_shapes(stored)), notices
    state, notices = names.canonical(checkpoint.read(path))
    return names.to_params(state)[0], None, _shapes(state), notices


def _shapes(tensors: Mapping[str, np.ndarray | StoredTensor]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in tensors.items()}


def _check_finite(params: Mapping[str, np.ndarray], kind: Kind, source: str) -> None:
    """Raises ArtifactError, naming the tensors by the file's own names, where a weight is infinite or NaN."""
    from jgolf.torch_bridge import names

    lines = []
    for path, values in params.items():
        if wrong := np.count_nonzero(~np.isfinite(values)):
            name = names.torch_name(path) if kind in ("pt", "ptz") else path
            lines.append(f"  {name}: {wrong:,} of {values.size:,} values")
    if lines:
        more = [f"  … and {len(lines) - MAX_NAMED} more"] if len(lines) > MAX_NAMED else []
        first = f"{source}: weights that are infinite or NaN, as of a run that diverged:"
        raise ArtifactError("\n".join([first, *lines[:MAX_NAMED], *more]))


def _tell(notices: list[str]) -> None:
    for notice in notices:
        print(notice, file=sys.stderr)
