"""Checkpoints on disk."""

from __future__ import annotations

import dataclasses
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jgolf.config import Config
from jgolf.errors import ArtifactError
from jgolf.train import checkpoint
from jgolf.train.checkpoint import Checkpoints
from jgolf.train.step import TrainState, new_state
from tests.train.runs import nano_config


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


def test_round_trip_and_bounded_count(config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.save(state._replace(step=np.int32(step) + state.step * 0), step, step / 2)
        checkpoints.finish()
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["20", "30"]
    reader = Checkpoints(tmp_path)
    restored, elapsed_s = reader.restore(config)
    assert elapsed_s == 15.0 and int(restored.step) == 30
    jax.tree.map(np.testing.assert_array_equal, restored._replace(step=state.step), state)


def test_half_written_is_never_picked_up(config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, 10, 1.0)
    checkpoints.finish()
    checkpoints.close()
    half = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "10", half)
    reader = Checkpoints(tmp_path)
    assert reader.latest_step == 10
    assert half.exists()  # a process may be writing it
    writer = Checkpoints(tmp_path, keep=2)
    assert writer.latest_step == 10
    writer.save(state, 20, 2.0)
    writer.finish()
    writer.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]


def test_full_disk_leaves_the_last_good_one(config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, 10, 1.0)
    checkpoints.finish()
    expected = "cannot be written.*last good one is step 10.*--resume"
    with largest_file(4096), pytest.raises(ArtifactError, match=expected):
        checkpoints.save(state, 20, 2.0)
        checkpoints.finish()
    reader = Checkpoints(tmp_path)
    assert reader.latest_step == 10
    restored, _ = reader.restore(config)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_only_what_follows_a_failed_write_is_not_shown() -> None:
    shown = []
    hook = checkpoint.but_for_closed_loops(shown.append)
    closed, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "another"))
    hook(closed)
    hook(other)
    assert shown == [other]


def test_another_model_is_refused(config: Config, state: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, 10, 1.0)
    checkpoints.finish()
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, model_dim=64))
    with pytest.raises(ArtifactError, match="10: cannot be restored"):
        checkpoints.restore(wider)


def test_none(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no whole checkpoint"):
        Checkpoints(tmp_path, keep=1).restore(config)
