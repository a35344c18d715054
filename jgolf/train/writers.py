"""Where a run's metrics go beside its own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from jgolf import config as configs
from jgolf.config import Config
from jgolf.errors import MissingExtraError

WriterName = Literal["tensorboard", "wandb"]
_MODULES: dict[WriterName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    """Takes the same objects as metrics.jsonl, in their order."""

    def write(self, metrics: Mapping[str, float]) -> None:
        """Takes numbers by name, "step" among them."""

    def close(self) -> None:
        """Ends the writing; nothing comes after."""


def open_writers(names: Sequence[WriterName], run_dir: Path, config: Config, first_step: int) -> list[Writer]:
    """A writer for each name.

    Args:
      names: which.
      run_dir: the run's folder, in which they keep their files.
      config: the run's settings.
      first_step: steps that a resumed run has behind it.

    Raises:
      MissingExtraError: the package of one is not installed.
    """
    require_writers(names)
    make = {"tensorboard": TensorBoardWriter, "wandb": WandbWriter}
    return [make[name](run_dir, config, first_step) for name in dict.fromkeys(names)]


def require_writers(names: Sequence[WriterName]) -> None:
    """Raises MissingExtraError unless the packages of all these writers are installed."""
    for name in names:
        try:
            importlib.import_module(_MODULES[name])
        except ImportError:
            raise MissingExtraError(_MODULES[name], name, f"--writers {name}") from None


class TensorBoardWriter:
    """Scalars in RUN/tensorboard; look at them with `tensorboard --logdir runs`."""

    def __init__(self, run_dir: Path, config: Config, first_step: int):
        from tensorboardX import SummaryWriter

        # What a resumed run does again replaces what was written before it was interrupted.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self._writer.add_text(
            "config", "\n".join(f"    {name} = {value}" for name, value in configs.leaves(config).items())
        )

    def write(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, float(value), int(metrics["step"]))

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A Weights & Biases run in RUN/wandb: offline, unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, run_dir: Path, config: Config, first_step: int):
        import wandb

        settings: dict[str, Any] = {**configs.leaves(config), "resumed_after_step": first_step}
        self._run = wandb.init(
            project="jgolf",
            name=run_dir.resolve().name,
            dir=str(run_dir),
            config=settings,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True),  # the run has its own lines on the console
        )

    def write(self, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items() if name != "step"}
        self._run.log(values, step=int(metrics["step"]))

    def close(self) -> None:
        self._run.finish()
