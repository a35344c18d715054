"""What `train.py CONFIG [options]` asks for; without JAX, so that its help comes at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jgolf import config as configs
from jgolf.config import Config
from jgolf.config.same_run import changes
from jgolf.errors import JgolfError
from jgolf.options import PathText
from jgolf.run_dir import CONFIG_FILE, LOG_FILE
from jgolf.train.writers import WriterName

DEFAULT_CONFIG = "demo"


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run that are no settings of it."""

    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    run_dir: Path | None = None
    """Folder of the run: settings, log, metrics, checkpoints; runs/NAME by default."""
    init_from: PathText | None = None
    """Take the first parameters from a run, an artifact or a PyTorch checkpoint."""
    resume: bool = False
    """Go on from the newest checkpoint in the run's folder, with the run's own settings."""
    skip_damaged: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --resume: set a damaged newest checkpoint aside, and go on from the newest that is whole."""
    writers: tuple[WriterName, ...] = ()
    """Write the metrics to these, too, in the run's folder: tensorboard, wandb (offline)."""
    coordinator: str | None = None
    """Of several processes: HOST:PORT of the first one, at a free port. Slurm and Open MPI need no such options."""
    num_processes: int | None = None
    """Of several processes: how many there are."""
    process_id: int | None = None
    """Of several processes: which one this is, from 0."""


def read_command(argv: list[str], prog: str, purpose: str, default: str) -> tuple[TrainOptions, Path]:
    """The options and the run's folder that a command line asks for, with the settings of a run to resume.

    Args:
      argv: a config's name, where there is one, and options.
      prog: how the command is called.
      purpose: what it is for, in a sentence.
      default: the config where none is named.
    """
    name, rest = configs.leading_name(argv)
    base = configs.load(name or default)
    description = (
        f"{purpose} CONFIG is one of {', '.join(configs.config_names())} ({default} by default), a .py file with a "
        "function config(), or a run's config.json. Every setting below can be changed by its name. "
        f"Examples: {prog} demo --steps 100 --train.warmdown-steps 80; {prog} pr592 --data data/mine --run-dir "
        f"runs/mine; {prog} --resume --run-dir runs/mine"
    )
    options = _parse(base, prog, description, rest)
    run_dir = options.run_dir or _default_run_dir(options.config)
    if options.resume:
        if options.run_dir is None and options.config.name == base.name and _is_config_of_run(Path(name)):
            run_dir = Path(name).parent
        if (run_dir / CONFIG_FILE).exists():
            stored = configs.read_json(run_dir / CONFIG_FILE)
            if name and stored.name != options.config.name:
                raise JgolfError(f"{run_dir}: a run of {stored.name}, not of {options.config.name}; leave out {name}")
            given, options = options.config, _parse(stored, prog, description, rest)
            if name:
                _tell_what_does_not_count(name, given, options.config)
    if options.skip_damaged and not options.resume:
        raise JgolfError("--skip-damaged is about checkpoints that are there: it goes with --resume")
    return options, run_dir


def _parse(base: Config, prog: str, description: str, argv: list[str]) -> TrainOptions:
    """The options, with the settings of `base` where the command line says nothing."""
    default = TrainOptions(config=base)
    return tyro.cli(TrainOptions, default=default, prog=f"{prog} [CONFIG]", args=argv, description=description)


def _tell_what_does_not_count(name: str, given: Config, stored: Config) -> None:
    """Says in what a run that goes on, with its own settings, is not what its config's name stands for now."""
    differing = [change for group in changes(given, stored) for change in group if not change.name.startswith("data.")]
    if differing:
        settings = ", ".join(f"{change.name} {change.now} (not {change.was})" for change in differing)
        print(f"note: --resume takes the run's own settings, not those of {name}: {settings}", file=sys.stderr)


def _is_config_of_run(path: Path) -> bool:
    """Whether it is the config.json of a run that has begun, and not only a file of settings."""
    return path.name == CONFIG_FILE and (path.parent / LOG_FILE).exists()


def _default_run_dir(config: Config) -> Path:
    return Path("runs") / config.name
