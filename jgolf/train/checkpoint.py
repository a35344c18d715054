"""Checkpoints of the whole state, copied on the device and written by Orbax in the background."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, SingleDeviceSharding
from orbax.checkpoint.options import MultiprocessingOptions

from jgolf import config as configs
from jgolf.config import Average, Config
from jgolf.errors import ArtifactError
from jgolf.run_dir import CONFIG_FILE
from jgolf.train.averages import averaged_params
from jgolf.train.step import TrainState, new_state

FOLDER = "checkpoints"

# Orbax logs the stack traces of errors that it raises as well, and that are told to the user in a sentence.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def but_for_closed_loops(hook: Callable[[sys.UnraisableHookArgs], Any]) -> Callable[[sys.UnraisableHookArgs], None]:
    """The hook for errors that no one can catch, without those of a closed event loop."""

    def shown(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return shown


# Likewise, a write that fails ends Orbax's event loop, and every other write then fails to report to that.
sys.unraisablehook = but_for_closed_loops(sys.unraisablehook)


class Checkpoints:
    """The checkpoints of one run, in the hands of one process: every process holds the whole state.

    Orbax writes a step to a temporary name and renames it when it is whole, so a half-written one is
    never picked up. The weights and averages are one part, the optimizer state another, so that an
    export reads the first alone.

    Training waits for a copy on the device only; a thread brings that to the host and hands it to Orbax.
    """

    def __init__(self, run_dir: str | Path, keep: int | None = None):
        """Opens the run's checkpoints.

        Args:
          run_dir: the folder of the run.
          keep: how many to keep when writing, what killed processes left being removed; None to read only,
            which disturbs no process that writes.
        """
        self._folder = Path(run_dir).absolute() / FOLDER
        if keep is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        me = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            read_only=keep is None,
            cleanup_tmp_directories=keep is not None,
            create=False,
            multiprocessing_options=MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
            ),
        )
        items = ("weights", "optimizer", "clock")
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=items)
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, None where there is none."""
        return max(self._manager.all_steps(), default=None)

    @property
    def is_saving(self) -> bool:
        """Whether one is being written."""
        return self._is_copying or self._manager.is_saving_in_progress()

    @property
    def _is_copying(self) -> bool:
        """Whether the thread is at work, and the manager in its hands."""
        return self._saving is not None and not self._saving.done()

    def warm_up(self, state: TrainState) -> None:
        """Compiles what `save` needs, so that the first one takes no longer than the others."""
        jax.block_until_ready(_copied(_one_device_of(state)))

    def save(self, state: TrainState, step: int, elapsed_s: float) -> None:
        """Begins to write the state after `step` steps; the arrays may be donated once this returns.

        Where an earlier one is still being copied to the host, this waits for it.

        Raises:
          ArtifactError: this one, or the one before, cannot be written.
        """
        self._wait_until_copied()
        self._saving = self._thread.submit(self._write, _copied(_one_device_of(state)), step, elapsed_s)

    def _write(self, state: TrainState, step: int, elapsed_s: float) -> None:
        weights, optimizer = _parts(jax.device_get(state))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(weights),
                optimizer=ocp.args.StandardSave(optimizer),
                clock=ocp.args.JsonSave({"elapsed_s": elapsed_s}),
            ),
        )

    def check(self) -> None:
        """Raises ArtifactError if one could not be written in the background."""
        if self._is_copying:
            return
        self._wait_until_copied()
        with self._naming_the_good_one():
            self._manager.check_for_errors()

    def finish(self) -> None:
        """Waits until everything is on disk; raises ArtifactError if it could not be written."""
        self._wait_until_copied()
        with self._naming_the_good_one():
            self._manager.wait_until_finished()

    def _wait_until_copied(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._naming_the_good_one():
                saving.result()

    def restore(self, config: Config) -> tuple[TrainState, float]:
        """The newest checkpoint, on one device, and its training time in seconds.

        Raises:
          ArtifactError: there is none, or it is of another model.
        """
        weights, optimizer = _parts(abstract_state(config, _one_device()))
        found = self._restore(weights=weights, optimizer=optimizer, clock=None)
        return TrainState(**found["weights"], opt_state=found["optimizer"]), found["clock"]["elapsed_s"]

    def restore_weights(self, config: Config) -> TrainState:
        """The newest checkpoint, on one device, without its optimizer state."""
        weights, _ = _parts(abstract_state(config, _one_device()))
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

    @contextlib.contextmanager
    def _naming_the_good_one(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            whole = whole_steps(self._folder)
            good = f"the last good one is step {max(whole)}" if whole else "there is no earlier one"
            free_mb = shutil.disk_usage(self._folder).free / 1e6
            raise ArtifactError(
                f"{self._folder}: a checkpoint cannot be written: {_reason(error)}; {good}; {free_mb:,.1f} MB are left "
                "there: make room, then go on with --resume"
            ) from error

    def close(self) -> None:
        """Lets go of the folder; `finish` first where something was saved."""
        self._thread.shutdown()
        self._manager.close()


def _one_device_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)


@jax.jit
def _copied(state: TrainState) -> TrainState:
    """A copy in the device's memory, which the step that follows does not overwrite."""
    return jax.tree.map(jnp.copy, state)


def whole_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder that were renamed to their final names."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _reason(error: BaseException) -> str:
    """The storage library's own words, unless they only say that the disk is full."""
    text = str(error).strip() or type(error).__name__
    return "the disk is full" if os.strerror(errno.ENOSPC) in text else text.splitlines()[0]


def _one_device() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.local_devices()[0])


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
        return checkpoints.restore_weights(config)
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
