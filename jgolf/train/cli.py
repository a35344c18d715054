"""`train.py CONFIG [options]`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jgolf import config as configs
from jgolf.config import Config
from jgolf.errors import JgolfError
from jgolf.run_dir import CONFIG_FILE, LOG_FILE
from jgolf.train.launch import launch_from_environment
from jgolf.train.writers import WriterName, require_writers

DEFAULT_CONFIG = "demo"


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run that are no settings of it."""

    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    run_dir: Path | None = None
    """Folder of the run: settings, log, metrics, checkpoints; runs/NAME by default."""
    init_from: str | None = None
    """Take the first parameters from a run, an artifact or a PyTorch checkpoint."""
    resume: bool = False
    """Go on from the newest checkpoint in the run's folder, with the run's own settings."""
    writers: tuple[WriterName, ...] = ()
    """Write the metrics to these, too, in the run's folder: tensorboard, wandb (offline)."""
    coordinator: str | None = None
    """Of several processes: HOST:PORT of the first one, at a free port. Slurm and Open MPI need no such options."""
    num_processes: int | None = None
    """Of several processes: how many there are."""
    process_id: int | None = None
    """Of several processes: which one this is, from 0."""


def train(argv: list[str], prog: str = "train.py") -> int:
    """Parses the command line and trains; returns the exit code."""
    name, rest = configs.leading_name(argv)
    base = configs.load(name or DEFAULT_CONFIG)
    options = _parse(base, prog, rest)
    run_dir = options.run_dir or _default_run_dir(options.config)
    run_dir = Path(os.path.expanduser(run_dir))  # the shell leaves --run-dir='~/x' as it is
    if options.resume:
        if options.run_dir is None and options.config.name == base.name and _is_config_of_run(Path(name)):
            run_dir = Path(name).parent
        if (run_dir / CONFIG_FILE).exists():
            stored = configs.read_json(run_dir / CONFIG_FILE)
            if name and stored.name != options.config.name:
                raise JgolfError(f"{run_dir}: a run of {stored.name}, not of {options.config.name}; leave out {name}")
            options = _parse(stored, prog, rest)
    require_writers(options.writers)
    from jgolf.train import loop  # JAX starts only when there is something to train

    launch = launch_from_environment(options.coordinator, options.num_processes, options.process_id)
    return loop.train(options.config, run_dir, options.init_from, options.resume, launch, options.writers)


def _parse(base: Config, prog: str, argv: list[str]) -> TrainOptions:
    """The options, with the settings of `base` where the command line says nothing."""
    return tyro.cli(
        TrainOptions,
        default=TrainOptions(config=base),
        prog=f"{prog} [CONFIG]",
        args=argv,
        description=(
            f"Train a model. CONFIG is one of {', '.join(configs.config_names())} ({DEFAULT_CONFIG} by default), a .py "
            "file with a function config(), or a run's config.json. Every setting below can be changed by its name. "
            f"Examples: {prog} demo --steps 100 --train.warmdown-steps 80; {prog} pr592 --data data/mine --run-dir "
            f"runs/mine; {prog} --resume --run-dir runs/mine"
        ),
    )


def _is_config_of_run(path: Path) -> bool:
    """Whether it is the config.json of a run that has begun, and not only a file of settings."""
    return path.name == CONFIG_FILE and (path.parent / LOG_FILE).exists()


def _default_run_dir(config: Config) -> Path:
    return Path("runs") / config.name


train.parse_and_call = lambda prog, argv: train(argv, "train.py" if sys.argv[0].endswith("train.py") else prog)
