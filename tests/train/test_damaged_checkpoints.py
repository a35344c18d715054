"""Checkpoints in which something is not what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.config import Config
from jgolf.errors import ArtifactError
from jgolf.train import storage
from jgolf.train.checkpoint import Checkpoints, DamagedError, load_weights
from jgolf.train.step import TrainState, new_state
from tests.train.runs import nano_config

FLIPS = 48


@pytest.fixture(scope="module")
def config() -> Config:
    return nano_config(Path("unused"))


@pytest.fixture(scope="module")
def states(config: Config) -> dict[int, TrainState]:
    """Step → the state that is saved after it, in the host's memory."""
    make = jax.jit(lambda key: new_state(config, key))
    return {step: jax.device_get(make(jax.random.key(step))) for step in (10, 20)}


@pytest.fixture(scope="module")
def saved(config: Config, states: dict[int, TrainState], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("saved")
    configs.write_json(config, run_dir / "config.json")
    with contextlib.closing(Checkpoints(run_dir, 2, config, "fingerprint")) as checkpoints:
        for step, state in states.items():
            checkpoints.save(jax.device_put(state), step, step / 4)
            checkpoints.finish()
    return run_dir


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, to damage."""
    monkeypatch.setattr(storage, "LINGERS_S", 1.0)
    return Path(shutil.copytree(saved, tmp_path / "run"))


def restored(run_dir: Path, config: Config) -> tuple[TrainState, float]:
    with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
        return checkpoints.restore(config)


def is_as_written(found: tuple[TrainState, float], states: dict[int, TrainState], step: int) -> bool:
    pairs = zip(jax.tree.leaves(found[0]), jax.tree.leaves(states[step]), strict=True)
    return found[1] == step / 4 and all(np.asarray(one).tobytes() == other.tobytes() for one, other in pairs)


def files_of(run_dir: Path, step: int) -> list[Path]:
    return sorted(path for path in (run_dir / "checkpoints" / str(step)).rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_no_flipped_bit_is_believed(
    config: Config, states: dict[int, TrainState], run_dir: Path, capfd: pytest.CaptureFixture
) -> None:
    """One bit at a time, in every file: what is restored is what was written, or it is refused in a line."""
    paths = files_of(run_dir, 20)
    data = max(paths, key=lambda path: path.stat().st_size * ("weights" in path.parts))
    chosen = random.Random(20)
    refused = []
    for path in [*paths, *chosen.choices(paths, k=FLIPS - len(paths)), *[data] * (FLIPS // 4)]:
        bit = chosen.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            assert is_as_written(restored(run_dir, config), states, 20), (path, bit)
        except ArtifactError as error:
            assert "20: " in str(error) and "--resume --skip-damaged goes on from step 10" in str(error)
            assert "\n" not in str(error)
            refused.append(path)
        flip(path, bit)
    assert refused.count(data) >= FLIPS // 8
    assert is_as_written(restored(run_dir, config), states, 20)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [0, 0.5])
def test_cut_off_files(config: Config, states: dict[int, TrainState], run_dir: Path, kept: float) -> None:
    for path in files_of(run_dir, 20):
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
        with contextlib.suppress(DamagedError):
            assert is_as_written(restored(run_dir, config), states, 20), path
        path.write_bytes(data)


@pytest.mark.parametrize("clock", [float("nan"), float("inf"), -1.0, "1", None, True])
def test_a_clock_that_is_none(config: Config, run_dir: Path, clock: object) -> None:
    path = run_dir / "checkpoints" / "20" / "record" / "metadata"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "elapsed_s": clock}))
    with pytest.raises(DamagedError, match="20: damaged: record: (its checksum|not JSON)"):
        restored(run_dir, config)
    without_record(run_dir)  # nor where there are no checksums
    (run_dir / "checkpoints" / "20" / "clock" / "metadata").write_text(json.dumps({"elapsed_s": clock}))
    with pytest.raises(DamagedError, match="20: cannot be restored: damaged.*(the training time is|not JSON)"):
        restored(run_dir, config)


def without_record(run_dir: Path) -> None:
    """Makes the newest checkpoint one of the first version: with a clock and nothing that says what is in it."""
    step = run_dir / "checkpoints" / "20"
    (step / "record").rename(step / "clock")
    (step / "clock" / "metadata").write_text('{"elapsed_s": 5.0}')
    names = (step / "_CHECKPOINT_METADATA").read_text()
    (step / "_CHECKPOINT_METADATA").write_text(names.replace('"record"', '"clock"'))


def test_those_of_the_first_version_are_read(
    config: Config, states: dict[int, TrainState], run_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    without_record(run_dir)
    assert is_as_written(restored(run_dir, config), states, 20)
    assert capsys.readouterr().err.count("20 holds no checksums") == 1
    wider = configs.replace(config, "model.model_dim", 64)
    with pytest.raises(ArtifactError, match="20: cannot be restored: of a model with other settings"):
        restored(run_dir, wider)


def test_damaged_ones_are_set_aside_where_that_is_asked_for(
    config: Config, states: dict[int, TrainState], run_dir: Path
) -> None:
    folder = run_dir / "checkpoints"
    with contextlib.closing(Checkpoints(run_dir, 2, config)) as checkpoints:
        assert checkpoints.set_damaged_aside(config) == []
        (folder / "20" / "record" / "metadata").write_text("{")
        assert checkpoints.set_damaged_aside(config) == [folder / "20.damaged"]
        assert is_as_written(checkpoints.restore(config), states, 10)
        checkpoints.save(jax.device_put(states[20]), 20, 5.0)
        checkpoints.finish()
        assert is_as_written(checkpoints.restore(config), states, 20)
        (folder / "20" / "record" / "metadata").write_text("{")
        assert checkpoints.set_damaged_aside(config) == [folder / "20.damaged-2"]
        shutil.rmtree(folder / "10" / "weights")
        with pytest.raises(ArtifactError, match="every checkpoint is damaged; nothing was changed;.*no earlier one"):
            checkpoints.set_damaged_aside(config)
        assert {path.name for path in folder.iterdir()} == {"10", "20.damaged", "20.damaged-2"}


def test_settings_that_are_not_those_of_the_checkpoint(config: Config, run_dir: Path) -> None:
    """A config.json in which a number was changed would give another model of the same shapes."""
    assert load_weights(run_dir)[0] == config
    configs.write_json(configs.replace(config, "model.logit_softcap", 20.0), run_dir / "config.json")
    with pytest.raises(
        ArtifactError, match=r"other settings than config.json says: model.logit_softcap: was 30.0, now 20"
    ):
        load_weights(run_dir)
    configs.write_json(configs.replace(config, "quantize.mlp", "int8"), run_dir / "config.json")
    load_weights(run_dir)


@pytest.mark.parametrize(("name", "value"), [("arrays", []), ("settings", "{}"), ("data", [1] * 2000)])
def test_a_record_of_other_kinds_of_values(config: Config, run_dir: Path, name: str, value: object) -> None:
    """Its checksum is right, so that no disk has done this."""
    path = run_dir / "checkpoints" / "20" / "record" / "metadata"
    content = {**json.loads(path.read_text()), name: value}
    del content["sha256"]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": checksum}))
    with pytest.raises(DamagedError, match=f"20: damaged: record: its {name} are ") as refusal:
        restored(run_dir, config)
    assert len(str(refusal.value)) < 500


def test_a_record_of_settings_that_are_not_known_here(
    config: Config, states: dict[int, TrainState], tmp_path: Path
) -> None:
    with contextlib.closing(Checkpoints(tmp_path, 2, config)) as checkpoints:
        checkpoints._settings["later"] = 1
        checkpoints.save(jax.device_put(states[10]), 10, 1.0)
        checkpoints.finish()
        with pytest.raises(ArtifactError, match="10: made by another version of jgolf.*no setting is called later"):
            checkpoints.restore(config)
