"""Checkpoints of the whole state, written by Orbax in the background."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, SingleDeviceSharding

from jgolf import config as configs
from jgolf.config import Average, Config
from jgolf.errors import ArtifactError
from jgolf.train.averages import averaged_params
from jgolf.train.step import TrainState, new_state

CONFIG_FILE = "config.json"
FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run.

    Orbax writes a step to a temporary name and renames it when it is whole, so a half-written one is
    never picked up. The weights and averages are one part, the optimizer state another, so that an
    export reads the first alone.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2):
        self._folder = Path(run_dir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_names=("weights", "optimizer", "clock")
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, elapsed_s: float) -> None:
        """Begins to write the state after `step` steps; the arrays may be donated once this returns."""
        weights, optimizer = _parts(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(weights),
                optimizer=ocp.args.StandardSave(optimizer),
                clock=ocp.args.JsonSave({"elapsed_s": elapsed_s}),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, float]:
        """The newest checkpoint and its training time in seconds.

        Args:
          like: a state of the same shapes, of arrays or abstract, placed as the result is to be.

        Raises:
          ArtifactError: there is none, or it is of another model.
        """
        weights, optimizer = _parts(like)
        found = self._restore(weights=weights, optimizer=optimizer, clock=None)
        return TrainState(**found["weights"], opt_state=found["optimizer"]), found["clock"]["elapsed_s"]

    def restore_weights(self, like: TrainState) -> TrainState:
        """The newest checkpoint without its optimizer state."""
        weights, _ = _parts(like)
        return TrainState(**self._restore(weights=weights)["weights"], opt_state=())

    def _restore(self, **like: Any) -> Any:
        step = self.latest_step
        if step is None:
            raise ArtifactError(
                f"{self._folder}: there is no whole checkpoint: expected one from a run that trained at least one step"
            )
        items = {
            name: ocp.args.JsonRestore() if tree is None else ocp.args.StandardRestore(tree)
            for name, tree in like.items()
        }
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            raise ArtifactError(
                f"{self._folder / str(step)}: cannot be restored: damaged, or of a model with other settings than "
                f"{CONFIG_FILE} says: {str(error).splitlines()[0]}"
            ) from error

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_weights(run_dir: str | Path, average: Average | None = None) -> tuple[Config, dict[str, np.ndarray]]:
    """The settings of a run and the weights of its newest checkpoint.

    Args:
      run_dir: the folder of the run.
      average: which weights; None for those that the run's config exports.

    Raises:
      ArtifactError: no checkpoint can be read.
      ConfigError: the config cannot be read, or the run has no such average.
    """
    config = configs.read_json(Path(run_dir) / CONFIG_FILE)
    state = load_state(run_dir, config)
    params = averaged_params(state, average or config.average.export)
    return config, {path: np.asarray(value) for path, value in params.items()}


def load_state(run_dir: str | Path, config: Config) -> TrainState:
    """The newest checkpoint of a run, without its optimizer state, on one device."""
    checkpoints = Checkpoints(run_dir)
    try:
        return checkpoints.restore_weights(abstract_state(config, SingleDeviceSharding(jax.local_devices()[0])))
    finally:
        checkpoints.close()


def abstract_state(config: Config, sharding: NamedSharding | SingleDeviceSharding) -> TrainState:
    """Shapes of a run's state, each to be placed by `sharding`."""
    # Only the shapes matter: a drawn-out orthogonal start would be traced for nothing.
    model = dataclasses.replace(config.model, orthogonal_init=False)
    config = dataclasses.replace(config, model=model)
    shapes = jax.eval_shape(lambda key: new_state(config, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def _parts(state: TrainState) -> tuple[dict[str, Any], Any]:
    weights = state._asdict()
    return weights, weights.pop("opt_state")
