"""`train.py CONFIG [options]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jgolf import config as configs
from jgolf.config import Config
from jgolf.run_dir import CONFIG_FILE
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
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (DEFAULT_CONFIG, argv)
    base = _base_config(name, rest)
    options = tyro.cli(
        TrainOptions,
        default=TrainOptions(config=base),
        prog=f"{prog} [CONFIG]",
        args=rest,
        description=(
            f"Train a model. CONFIG is one of {', '.join(configs.config_names())} ({DEFAULT_CONFIG} by default), a .py "
            "file with a function config(), or a run's config.json. Every setting below can be changed by its name."
        ),
    )
    require_writers(options.writers)
    from jgolf.train import distributed, loop  # JAX starts only when there is something to train

    launch = distributed.launch_from_environment(options.coordinator, options.num_processes, options.process_id)
    run_dir = options.run_dir or _default_run_dir(options.config)
    return loop.train(options.config, run_dir, options.init_from, options.resume, launch, options.writers)


def _base_config(name: str, rest: list[str]) -> Config:
    """The config to override: the named one, or with --resume the one that the run was started with."""
    config = configs.load(name)
    if "--resume" not in rest:
        return config
    run_dir = _default_run_dir(config)
    for index, word in enumerate(rest):
        if word.startswith("--run-dir"):
            run_dir = Path(word.partition("=")[2] or (rest[index + 1] if index + 1 < len(rest) else ""))
    stored = run_dir / CONFIG_FILE
    return configs.read_json(stored) if stored.exists() else config


def _default_run_dir(config: Config) -> Path:
    return Path("runs") / config.name


train.parse_and_call = lambda prog, argv: train(argv, "train.py" if sys.argv[0].endswith("train.py") else prog)
