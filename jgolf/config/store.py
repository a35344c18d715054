"""Configs by name, as JSON, and by the dotted name of a setting."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import dacite

from jgolf import files
from jgolf.config import versions
from jgolf.config.settings import Config, DataConfig
from jgolf.errors import ConfigError, error_in_file
from jgolf.reading import excerpt
from jgolf.reading import read_json as read_json_value

MOST_NAMED = 5
"""Unknown settings that an error names."""


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
    if Path(name).suffix == ".json":
        return read_json(Path(name).expanduser())
    module = load_module(name)
    path = Path(module.__file__)
    try:
        found = module.config() if callable(getattr(module, "config", None)) else None
    except (Exception, SystemExit) as error:  # the user's own code may do anything
        raise ConfigError(f"{path}: cannot be used: {error_in_file(error, path)}") from None
    if not isinstance(found, Config):
        what = "no such function" if found is None else f"one that returns a {type(found).__name__}"
        raise ConfigError(f"{path}: expected a function config() that returns a jgolf.config.Config, found {what}")
    try:
        return from_dict(to_dict(found), Config)  # types are checked, and lists become tuples
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_module(name: str) -> ModuleType:
    """The file in which a config is written, as a module: a name in configs/, or a path of such a .py file.

    Raises:
      ConfigError: there is none, or it cannot be run.
    """
    path = Path(name).expanduser()
    if path.suffix != ".py":
        path = config_folder() / f"{name}.py"
    if not path.is_file():
        known = ", ".join(config_names())
        near = difflib.get_close_matches(name, config_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"no config {name!r}: expected one of {known}, or the path of a .py or config.json file{hint}"
        )
    spec = importlib.util.spec_from_file_location(f"jgolf_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}: cannot be used: {error_in_file(error, path)}") from None
    return module


def leading_name(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The config's name that a command line may begin with, "" where it does not, and the rest of it."""
    named = bool(argv) and not argv[0].startswith("-")
    return (argv[0], list(argv[1:])) if named else ("", list(argv))


def read_json(path: str | Path) -> Config:
    """Reads what `write_json` wrote.

    Raises:
      ConfigError: the file cannot be read, or holds no config.
    """
    try:
        return from_written(read_json_value(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, ConfigError) as error:
        raise ConfigError(
            f"{path}: not a jgolf config, or damaged: {error}; expected the config.json of a run's folder"
        ) from None


def write_json(config: Config, path: str | Path) -> None:
    """Writes every setting of `config`, and the version."""
    files.write_text(path, config_text(config))


def config_text(config: Config) -> str:
    """Every setting of `config`, and the version, as `write_json` writes them."""
    return json.dumps({versions.KEY: versions.VERSION, **to_dict(config)}, indent=1) + "\n"


def from_written(values: dict[str, Any]) -> Config:
    """The config that a file of any version holds; see `jgolf.config.versions`.

    Raises:
      ConfigError: it is of a later version, or holds unknown names or wrong types.
    """
    if isinstance(values, dict):
        said = {name: value for name, value in values.items() if name != versions.KEY}
        values = versions.complete(said, values.get(versions.KEY, 0))
    return from_dict(values, Config)


def to_dict(config: Any) -> dict[str, Any]:
    """A config, or a part of one, as plain dictionaries."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type) -> Any:
    """The inverse of `to_dict`, for settings of a kind; unknown names and wrong types raise ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"expected an object of settings, found a {type(values).__name__}")
    options = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _as_float})
    try:
        return dacite.from_dict(kind, values, options)
    except dacite.UnexpectedDataError as error:
        known = [item.name for item in dataclasses.fields(kind)] + [name.rpartition(".")[2] for name in leaves(kind())]
        names = sorted(error.keys)[:MOST_NAMED]
        near = [match for key in names for match in difflib.get_close_matches(key, known, n=1)]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        listed = ", ".join(f"{name:.80}" for name in names) + (" …" if len(error.keys) > len(names) else "")
        raise ConfigError(f"no setting is called {listed}{hint}") from None
    except dacite.WrongTypeError as error:
        kind = error.field_type.__name__ if isinstance(error.field_type, type) else str(error.field_type)
        raise ConfigError(
            f"{error.field_path} is {excerpt(error.value)}: expected {kind.removeprefix('typing.')}"
        ) from None
    except (dacite.DaciteError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{error!s:.500}") from None


def _as_float(value: Any) -> Any:
    """Any real number as a float; what is none stays what it is, and is refused by its setting's name."""
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


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


def choices(name: str, kind: type = Config) -> tuple[str, ...]:
    """The words that the setting of that dotted name may be; none where it is no matter of choice."""
    first, _, rest = name.partition(".")
    hint = get_type_hints(kind)[first]
    if rest:
        return choices(rest, hint)
    return get_args(hint) if get_origin(hint) is Literal else ()


def with_absolute_paths(data: DataConfig) -> DataConfig:
    """The data's paths as they hold from any working directory: a run's config is read from others."""
    paths = {"dir": data.dir, "tokenizer": data.tokenizer}
    return replace_all(data, {name: str(Path(path).absolute()) if path else "" for name, path in paths.items()})


def replace(config: Any, name: str, value: Any) -> Any:
    """A copy of `config` with the setting of that dotted name changed."""
    first, _, rest = name.partition(".")
    if first not in {item.name for item in dataclasses.fields(config)}:
        raise ConfigError(f"no setting {name!r}: expected one of {', '.join(leaves(config))}")
    return dataclasses.replace(config, **{first: replace(getattr(config, first), rest, value) if rest else value})


def replace_all(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of `config` with several settings changed: dotted name → value."""
    for name, value in values.items():
        config = replace(config, name, value)
    return config
