"""`train.py CONFIG [options]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jgolf import config as configs
from jgolf.config import Config
from jgolf.errors import JgolfError
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
    name, rest = configs.leading_name(argv)
    base, run_dir = _resumed(name, rest) if "--resume" in rest else (configs.load(name or DEFAULT_CONFIG), None)
    options = tyro.cli(
        TrainOptions,
        default=TrainOptions(config=base, run_dir=run_dir),
        prog=f"{prog} [CONFIG]",
        args=rest,
        description=(
            f"Train a model. CONFIG is one of {', '.join(configs.config_names())} ({DEFAULT_CONFIG} by default), a .py "
            "file with a function config(), or a run's config.json. Every setting below can be changed by its name. "
            f"Examples: {prog} demo --steps 100 --train.warmdown-steps 80; {prog} pr592 --data data/mine --run-dir "
            f"runs/mine; {prog} --resume --run-dir runs/mine"
        ),
    )
    require_writers(options.writers)
    from jgolf.train import distributed, loop  # JAX starts only when there is something to train

    launch = distributed.launch_from_environment(options.coordinator, options.num_processes, options.process_id)
    run_dir = options.run_dir or _default_run_dir(options.config)
    return loop.train(options.config, run_dir, options.init_from, options.resume, launch, options.writers)


def _resumed(name: str, rest: list[str]) -> tuple[Config, Path]:
    """The settings that the run to be resumed was started with, and its folder.

    The folder is that of --run-dir, or else of the run's config.json that `name` is, or else runs/NAME.
    """
    config = configs.load(name or DEFAULT_CONFIG)
    run_dir = Path(name).parent if Path(name).name == CONFIG_FILE else _default_run_dir(config)
    for index, word in enumerate(rest):
        if word.startswith("--run-dir"):
            run_dir = Path(word.partition("=")[2] or (rest[index + 1] if index + 1 < len(rest) else ""))
    if not (run_dir / CONFIG_FILE).exists():
        return config, run_dir
    stored = configs.read_json(run_dir / CONFIG_FILE)
    if name and stored.name != config.name:
        raise JgolfError(f"{run_dir}: a run of {stored.name}, not of {config.name}; leave out {name}")
    return stored, run_dir


def _default_run_dir(config: Config) -> Path:
    return Path("runs") / config.name


train.parse_and_call = lambda prog, argv: train(argv, "train.py" if sys.argv[0].endswith("train.py") else prog)
