"""Configs by name, as JSON, and by the dotted name of a setting."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import dacite

from jgolf import files
from jgolf.config.settings import Config
from jgolf.errors import ConfigError


def config_folder() -> Path:
    """The folder configs/: beside the package in a clone, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Names that `load` knows."""
    return sorted(path.stem for path in config_folder().glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> Config:
    """The config called `name`: a name in configs/, a path of such a .py file, or a run's config.json.

    Raises:
      ConfigError: there is none, or it cannot be used.
    """
    path = Path(name)
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix != ".py":
        path = config_folder() / f"{name}.py"
    if not path.is_file():
        known = ", ".join(config_names())
        raise ConfigError(f"no config {name!r}: expected one of {known}, or the path of a .py or config.json file")
    spec = importlib.util.spec_from_file_location(f"jgolf_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "config", None)):
        raise ConfigError(f"{path}: expected a function config() that returns a jgolf.config.Config, found none")
    return module.config()


def read_json(path: str | Path) -> Config:
    """Reads what `write_json` wrote."""
    try:
        return from_dict(json.loads(Path(path).read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{path}: not a jgolf config: {error}") from None


def write_json(config: Config, path: str | Path) -> None:
    """Writes every setting of `config`."""
    files.write_text(path, json.dumps(to_dict(config), indent=1) + "\n")


def to_dict(config: Any) -> dict[str, Any]:
    """A config, or a part of one, as plain dictionaries."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type = Config) -> Any:
    """The inverse of `to_dict`; unknown names and wrong types raise ConfigError."""
    options = dacite.Config(strict=True, cast=[tuple], type_hooks={float: float})
    try:
        return dacite.from_dict(kind, values, options)
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name → value of every setting."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = value
    return found


def replace(config: Any, name: str, value: Any) -> Any:
    """A copy of `config` with the setting of that dotted name changed."""
    first, _, rest = name.partition(".")
    if first not in {item.name for item in dataclasses.fields(config)}:
        raise ConfigError(f"no setting {name!r}: expected one of {', '.join(leaves(config))}")
    return dataclasses.replace(config, **{first: replace(getattr(config, first), rest, value) if rest else value})
