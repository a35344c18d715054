"""Checkpoints of the whole state, copied on the device and written by Orbax in the background."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jgolf import config as configs
from jgolf import files
from jgolf.config import Average, Config
from jgolf.config.same_run import changes
from jgolf.errors import ArtifactError, ConfigError, JgolfError
from jgolf.reading import read_json
from jgolf.run_dir import CONFIG_FILE
from jgolf.train.averages import averaged_params
from jgolf.train.record import NotARecord, Record, checked_clock, checksums
from jgolf.train.step import TrainState, abstract_state
from jgolf.train.storage import manager_options, plain_path, reason, silence, unused, whole_steps

FOLDER = "checkpoints"
PARTS = ("weights", "optimizer")
RECORD = "record"
CLOCK = "clock"
"""All that checkpoints without a record say of themselves: the training time."""
OTHER_SETTINGS = f"of a model with other settings than {CONFIG_FILE} says"


class DamagedError(ArtifactError):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The checkpoints of one run, in the hands of one process: every process holds the whole state.

    Orbax writes a step to a temporary name and renames it when it is whole, so a half-written one is
    never picked up. The weights and averages are one part, the optimizer state another, so that an
    export reads the first alone. A record beside them holds a checksum of every array, taken before Orbax
    has them, and the last step is read back when all is finished.

    Training waits for a copy on the device only; a thread brings that to the host and hands it to Orbax.
    """

    def __init__(self, run_dir: str | Path, keep: int | None = None, config: Config | None = None, data: str = ""):
        """Opens the run's checkpoints.

        Args:
          run_dir: the folder of the run.
          keep: how many to keep when writing, what killed processes left being removed; None to read only,
            which disturbs no process that writes.
          config: the settings that go into the record of what is written.
          data: likewise, the data's fingerprint.

        Raises:
          JgolfError: the folder cannot be used.
        """
        self._folder = Path(run_dir).absolute() / FOLDER
        self._settings = None if config is None else configs.to_dict(config)
        self._data = data
        if keep is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise files.writing_error(self._folder, error) from error
        with contextlib.ExitStack() as stack:
            stack.enter_context(silence())
            self._plain_folder = stack.enter_context(plain_path(self._folder))
            try:
                items = (*PARTS, RECORD, CLOCK)
                self._manager = ocp.CheckpointManager(
                    self._plain_folder, options=manager_options(keep), item_names=items
                )
            except Exception as error:  # of any kind, Orbax's own
                raise ArtifactError(
                    f"{self._folder}: cannot be used for checkpoints: {self._reason(error)}; move away what is in it "
                    "and is no checkpoint"
                ) from error
            self._open = stack.pop_all()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._not_read_back: tuple[int, dict[str, Any]] | None = None

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, None where there is none."""
        return max(whole_steps(self._folder), default=None)

    @property
    def is_saving(self) -> bool:
        """Whether one is being written."""
        return self._is_copying or self._manager.is_saving_in_progress()

    @property
    def _is_copying(self) -> bool:
        """Whether the thread is at work, and the manager in its hands."""
        return self._saving is not None and not self._saving.done()

    # --- writing -----------------------------------------------------------------------------

    def warm_up(self, state: TrainState) -> None:
        """Compiles what `save` needs, so that the first one takes no longer than the others."""
        jax.block_until_ready(copied(_one_device_of(state)))

    def save(self, state: TrainState, step: int, elapsed_s: float) -> None:
        """Begins to write the state after `step` steps; the arrays may be donated once this returns.

        Where an earlier one is still being copied to the host, this waits for it.

        Raises:
          ArtifactError: this one, or the one before, cannot be written.
        """
        self._wait_until_copied()
        self._saving = self._thread.submit(self._write, copied(_one_device_of(state)), step, elapsed_s)

    def _write(self, state: TrainState, step: int, elapsed_s: float) -> None:
        parts = _parts(jax.device_get(state))
        arrays = {name: value for part, tree in parts.items() for name, value in checksums(tree, part).items()}
        record = Record(step, elapsed_s, arrays, self._settings, self._data)
        saves = {part: ocp.args.StandardSave(tree) for part, tree in parts.items()}
        saves[RECORD] = ocp.args.JsonSave(record.to_json())
        if not self._manager.save(step, args=ocp.args.Composite(**saves)):
            raise ValueError(f"there is one of step {self._manager.latest_step()} already, which is no earlier one")
        self._not_read_back = step, jax.tree.map(_like, parts)

    def check(self) -> None:
        """Raises ArtifactError if one could not be written in the background."""
        if self._is_copying:
            return
        self._wait_until_copied()
        with self._naming_the_good_one():
            self._manager.check_for_errors()

    def finish(self) -> None:
        """Waits until everything is on disk, and reads the last one back; raises ArtifactError if it is not there."""
        self._wait_until_copied()
        with self._naming_the_good_one():
            self._manager.wait_until_finished()
        saved, self._not_read_back = self._not_read_back, None
        if saved is not None:
            self._read(*saved)

    def _wait_until_copied(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._naming_the_good_one():
                saving.result()

    @contextlib.contextmanager
    def _naming_the_good_one(self) -> Iterator[None]:
        try:
            with silence():
                yield
        except Exception as error:  # of any kind, Orbax's own
            whole = whole_steps(self._folder)
            good = f"the last good one is step {max(whole)}" if whole else "there is no earlier one"
            free_mb = shutil.disk_usage(self._folder).free / 1e6
            raise ArtifactError(
                f"{self._folder}: a checkpoint cannot be written: {self._reason(error)}; {good}; {free_mb:,.1f} MB "
                "are left there: make room, then go on with --resume"
            ) from error

    # --- reading -----------------------------------------------------------------------------

    def restore(self, config: Config) -> tuple[TrainState, float]:
        """The newest checkpoint, on one device, and its training time in seconds.

        Raises:
          ArtifactError: there is none, it is damaged, or it is of another model.
        """
        found, elapsed_s = self._restore(config, PARTS)
        return TrainState(**found["weights"], opt_state=found["optimizer"]), elapsed_s

    def restore_weights(self, config: Config) -> TrainState:
        """The newest checkpoint, on one device, without its optimizer state."""
        found, _ = self._restore(config, ("weights",))
        return TrainState(**found["weights"], opt_state=())

    def _restore(self, config: Config, parts: Sequence[str]) -> tuple[dict[str, Any], float]:
        step, like = self._newest(), _abstract_parts(config)
        found, elapsed_s = self._read(step, {part: like[part] for part in parts}, config)
        if not (self._folder / str(step) / RECORD).exists():
            print(
                f"note: {self._folder / str(step)} holds no checksums, as those of earlier versions do: damage to its "
                "values would not be seen",
                file=sys.stderr,
            )
        return jax.device_put(found, _one_device()), elapsed_s

    def made_with(self) -> tuple[Config | None, str]:
        """Settings of the newest checkpoint, and its data's fingerprint; None and "" where it does not say."""
        step = self._newest()
        record = self._read_record(step)
        return (self._config_of(record), record.data) if record else (None, "")

    def set_damaged_aside(self, config: Config) -> list[Path]:
        """Renames the checkpoints after the newest good one, so that a run goes on from that; their new paths.

        Raises:
          ArtifactError: all are damaged, and nothing was renamed; or the newest that is not is of another model.
        """
        like = _abstract_parts(config)
        damaged: list[int] = []
        for step in reversed(whole_steps(self._folder)):
            try:
                self._read(step, like, config)
            except DamagedError as error:
                damaged.append(step)
                last = error
            else:
                break
        else:
            if damaged:
                raise ArtifactError(f"{self._folder}: every checkpoint is damaged; nothing was changed; {last}")
        aside = []
        for step in damaged:
            aside.append(unused(self._folder / f"{step}.damaged"))
            (self._folder / str(step)).rename(aside[-1])
        self._manager.reload()
        return aside

    def _newest(self) -> int:
        step = self.latest_step
        if step is None:
            raise ArtifactError(
                f"{self._folder}: there is no whole checkpoint: expected one from a run that trained at least one step"
            )
        return step

    def _read(self, step: int, like: dict[str, Any], config: Config | None = None) -> tuple[dict[str, Any], float]:
        """Parts of a checkpoint, in the host's memory and as they were written, and its training time in seconds.

        Args:
          step: which.
          like: part → a tree of arrays or shapes.
          config: settings that the checkpoint is to be of, where that matters.

        Raises:
          DamagedError: it is not what was written.
          ArtifactError: it is of other settings.
        """
        record = self._read_record(step)
        if record is not None and config is not None:
            self._check_settings(step, record, config)
        restores = {part: ocp.args.StandardRestore(jax.tree.map(_like, tree)) for part, tree in like.items()}
        what = "cannot be restored: damaged"
        with self._naming_the_damage(step, what if record else f"{what}, or {OTHER_SETTINGS}"):
            restored = self._manager.restore(step, args=ocp.args.Composite(**restores))
            found = {part: restored[part] for part in like}
            differing = [name for part in like for name in record.differing(found[part], part)] if record else []
            if differing:
                more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
                raise NotARecord(f"{differing[0]}{more}: not the values that were written")
            elapsed_s = record.elapsed_s if record else self._read_clock(step)
        wanted = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), like)
        if jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) != wanted:
            path = self._folder / str(step)
            raise ArtifactError(f"{path}: cannot be restored: {OTHER_SETTINGS}: its arrays have other shapes")
        return found, elapsed_s

    def _read_record(self, step: int) -> Record | None:
        if not (self._folder / str(step) / RECORD).exists() and (self._folder / str(step) / CLOCK).exists():
            return None
        with self._naming_the_damage(step, f"damaged: {RECORD}"):
            record = Record.from_json(self._read_json(step, RECORD))
            if record.step != step:
                raise NotARecord(f"it is of step {record.step}")
            return record

    def _config_of(self, record: Record) -> Config | None:
        try:
            return None if record.settings is None else configs.from_dict(record.settings, Config)
        except ConfigError as error:
            path = self._folder / str(record.step)
            raise ArtifactError(f"{path}: made by another version of jgolf, with other settings: {error}") from None

    def _read_clock(self, step: int) -> float:
        content = self._read_json(step, CLOCK)
        return checked_clock(content.get("elapsed_s") if isinstance(content, dict) else None)

    def _read_json(self, step: int, item: str) -> Any:
        path = self._folder / str(step) / item / "metadata"  # as Orbax names it
        return read_json(path)

    def _check_settings(self, step: int, record: Record, config: Config) -> None:
        was = self._config_of(record)
        others = changes(was, config)[0] if was else []
        if others:
            raise ArtifactError(
                f"{self._folder / str(step)}: cannot be restored: {OTHER_SETTINGS}: {'; '.join(map(str, others))}"
            )

    @contextlib.contextmanager
    def _naming_the_damage(self, step: int, what: str) -> Iterator[None]:
        try:
            with silence():
                yield
        except JgolfError:
            raise
        except Exception as error:  # what Orbax makes of damaged files is of any kind
            before = [other for other in whole_steps(self._folder) if other < step]
            way_out = (
                f"--resume --skip-damaged goes on from step {before[-1]}, the one before"
                if before
                else "there is no earlier one"
            )
            raise DamagedError(f"{self._folder / str(step)}: {what}: {self._reason(error)}; {way_out}") from error

    def _reason(self, error: BaseException) -> str:
        return reason(error).replace(str(self._plain_folder), str(self._folder))

    def close(self) -> None:
        """Lets go of the folder; `finish` first where something was saved."""
        with self._open, contextlib.suppress(Exception):  # `check` and `finish` tell what could not be written
            self._thread.shutdown()
            self._manager.close()


def _one_device_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)


@jax.jit
def copied(state: TrainState) -> TrainState:
    """A copy in the device's memory, which the step that follows does not overwrite."""
    return jax.tree.map(jnp.copy, state)


def _like(leaf: Any) -> np.ndarray:
    """An array of the leaf's shape and type that takes no memory: Orbax restores one into the host's."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


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


def _abstract_parts(config: Config) -> dict[str, Any]:
    return _parts(abstract_state(config, _one_device()))


def _parts(state: TrainState) -> dict[str, Any]:
    """The state by the PARTS of a checkpoint."""
    weights = state._asdict()
    optimizer = weights.pop("opt_state")
    return {"weights": weights, "optimizer": optimizer}
