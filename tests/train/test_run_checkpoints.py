"""Checkpoints on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jgolf import files
from jgolf.config import Config
from jgolf.errors import ArtifactError, JgolfError
from jgolf.train import storage
from jgolf.train.checkpoint import Checkpoints
from jgolf.train.step import TrainState, new_state
from jgolf.train.storage import whole_steps
from tests.train.runs import nano_config

Opened = Callable[..., Checkpoints]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Opens checkpoints, and closes them in the end."""
    monkeypatch.setattr(storage, "LINGERS_S", 0.0)
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(contextlib.closing(Checkpoints(*arguments, **options)))


@pytest.fixture(scope="module")
def config() -> Config:
    return nano_config(Path("unused"))


@pytest.fixture(scope="module")
def state(config: Config) -> TrainState:
    return jax.jit(lambda key: new_state(config, key))(jax.random.key(1))


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Makes the system refuse to write more into a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_round_trip_and_bounded_count(opened: Opened, config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.save(state._replace(step=np.int32(step) + state.step * 0), step, step / 2)
        checkpoints.finish()
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["20", "30"]
    reader = opened(tmp_path)
    restored, elapsed_s = reader.restore(config)
    assert elapsed_s == 15.0 and int(restored.step) == 30
    jax.tree.map(np.testing.assert_array_equal, restored._replace(step=state.step), state)


def test_half_written_is_never_picked_up(opened: Opened, config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, keep=2)
    checkpoints.save(state, 10, 1.0)
    checkpoints.finish()
    checkpoints.close()
    half = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "10", half)
    reader = opened(tmp_path)
    assert reader.latest_step == 10
    assert half.exists()  # a process may be writing it
    writer = opened(tmp_path, keep=2)
    assert writer.latest_step == 10
    writer.save(state, 20, 2.0)
    writer.finish()
    writer.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]


def test_full_disk_leaves_the_last_good_one(opened: Opened, config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, keep=2)
    checkpoints.save(state, 10, 1.0)
    checkpoints.finish()
    expected = "cannot be written.*last good one is step 10.*--resume"
    with largest_file(4096), pytest.raises(ArtifactError, match=expected):
        checkpoints.save(state, 20, 2.0)
        checkpoints.finish()
    reader = opened(tmp_path)
    assert reader.latest_step == 10
    restored, _ = reader.restore(config)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("name", ["lr=[1e-3]", "a*b", "what?", "back\\slash", b"latin-1: \xe9"])
def test_any_path_can_be_restored(
    opened: Opened, config: Config, state: TrainState, tmp_path: Path, name: str | bytes
) -> None:
    run_dir = tmp_path / os.fsdecode(name)
    (tmp_path / "axb").mkdir()  # which the pattern a*b would match
    for folder in (tmp_path / "axb", run_dir):
        checkpoints = opened(folder, keep=1)
        checkpoints.save(state._replace(step=state.step + (folder == run_dir)), 10, 1.0)
        checkpoints.finish()
        checkpoints.close()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["10"]
    reader = opened(run_dir)
    restored, _ = reader.restore(config)
    reader.close()
    assert int(restored.step) == 1
    jax.tree.map(np.testing.assert_array_equal, restored._replace(step=state.step), state)


def test_a_path_that_cannot_be_linked_is_refused_at_once(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.tempfile, "TemporaryDirectory", lambda **_: contextlib.nullcontext("/dev/null"))
    with pytest.raises(ArtifactError, match=r"\[1\]/checkpoints.*cannot be made: Not a directory; choose another"):
        opened(tmp_path / "[1]", keep=1)


@pytest.mark.parametrize("name", ["²", "٣", "012", "-3", "x_12", "12.damaged", "30"])
def test_what_is_no_checkpoint_is_in_no_ones_way(
    opened: Opened, config: Config, state: TrainState, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "checkpoints"
    if name == "30":
        files.write_text(folder / name, "a file")
    else:
        (folder / name).mkdir(parents=True)
    assert whole_steps(folder) == []
    checkpoints = opened(tmp_path, keep=2)
    assert checkpoints.latest_step is None
    checkpoints.save(state, 10, 1.0)
    checkpoints.finish()
    checkpoints.restore(config)
    checkpoints.close()
    assert {path.name for path in folder.iterdir()} == {"10", name}


def test_a_file_where_the_folder_should_be(opened: Opened, tmp_path: Path) -> None:
    files.write_text(tmp_path / "checkpoints", "a file")
    with pytest.raises(JgolfError, match="checkpoints: cannot be written: File exists"):
        opened(tmp_path, keep=1)


def test_a_step_that_is_not_written_is_named(opened: Opened, config: Config, state: TrainState, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "99").mkdir(parents=True)  # a later one, so that Orbax would pass over the step
    checkpoints = opened(tmp_path, keep=2)
    with pytest.raises(ArtifactError, match="cannot be written: there is one of step 99 already"):
        checkpoints.save(state, 10, 1.0)
        checkpoints.finish()


def test_the_last_one_is_read_back(
    opened: Opened, state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = opened(tmp_path, keep=2)
    wait = checkpoints._manager.wait_until_finished

    def wait_and_lose() -> None:
        wait()
        (tmp_path / "checkpoints" / "10" / "weights" / "manifest.ocdbt").unlink(missing_ok=True)

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", wait_and_lose)
    checkpoints.save(state, 10, 1.0)
    with pytest.raises(ArtifactError, match="10: cannot be restored: damaged"):
        checkpoints.finish()


def test_the_error_of_closing_hides_no_other(
    opened: Opened, state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk is full: Orbax waits for what it was writing, and raises that again in other words."""
    checkpoints = opened(tmp_path, keep=1)

    def fail(*_: object, **__: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Error writing") from OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    monkeypatch.setattr(checkpoints._manager, "close", fail)
    with pytest.raises(ArtifactError, match="cannot be written: the disk is full; there is no earlier one"):
        try:
            checkpoints.save(state, 10, 1.0)
            checkpoints.finish()
        finally:
            checkpoints.close()


def test_only_what_follows_a_failed_write_is_not_shown() -> None:
    shown = []
    hook = storage.but_for_closed_loops(shown.append)
    closed, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "another"))
    hook(closed)
    hook(other)
    assert shown == [other]


def test_the_process_is_left_as_it_was(opened: Opened, config: Config, tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "")]

    def settings() -> list:
        return [sys.unraisablehook, *((logger.level, logger.disabled, list(logger.filters)) for logger in loggers)]

    def wait_until_no_one_is_silenced() -> None:
        while storage.silence._users:
            time.sleep(0.01)

    wait_until_no_one_is_silenced()
    before = settings()
    first = opened(tmp_path, keep=1)
    assert sys.unraisablehook is not before[0]
    second = opened(tmp_path)
    first.close()
    with pytest.raises(ArtifactError):
        second.restore(config)
    second.close()
    wait_until_no_one_is_silenced()
    assert settings() == before


def test_another_model_is_refused(opened: Opened, config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, keep=2)
    checkpoints.save(state, 10, 1.0)
    checkpoints.finish()
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, model_dim=64))
    with pytest.raises(ArtifactError, match="10: cannot be restored"):
        checkpoints.restore(wider)


def test_none(opened: Opened, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no whole checkpoint"):
        opened(tmp_path, keep=1).restore(config)
