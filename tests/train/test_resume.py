"""What may change when a run goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf import files
from jgolf.config import Config
from jgolf.config.same_run import MAY_CHANGE, Change, changes
from jgolf.data.fingerprint import data_fingerprint
from jgolf.data.shards import open_shard, write_shard
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import ConfigError
from jgolf.train.checkpoint import Checkpoints
from jgolf.train.resume import changed_settings, keep_settings
from jgolf.train.step import new_state
from tests.conftest import NANO, RECIPE, random_words
from tests.train.runs import Runs, metrics, nano_config


@pytest.fixture(scope="module")
def trained(nano_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint of step 10."""
    run_dir = tmp_path_factory.mktemp("trained")
    config = settings_of(nano_data)
    configs.write_json(config, run_dir / "config.json")
    with contextlib.closing(Checkpoints(run_dir, 2, config, data_fingerprint(config.data))) as checkpoints:
        checkpoints.save(jax.jit(lambda key: new_state(config, key))(jax.random.key(1)), 10, 1.0)
        checkpoints.finish()
    return run_dir


def settings_of(data_dir: Path) -> Config:
    config = configs.replace(nano_config(data_dir), "data.tokenizer", str(data_dir / "nano.model"))
    return configs.replace(config, "data", configs.with_absolute_paths(config.data))


def changed(run_dir: Path, config: Config) -> list[Change]:
    with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
        return changed_settings(config, data_fingerprint(config.data), run_dir, checkpoints)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.logit_softcap", 20.0),
        ("model.rope_base", 500.0),
        ("optim.muon.learning_rate", 0.03),
        ("optim.adamw.beta2", 0.9),
        ("optim.grad_clip", 0.0),
        ("train.batch_tokens", 1024),
        ("train.seq_len", 64),
        ("train.accumulation", 2),
        ("train.num_ranks", 4),
        ("train.seed", 7),
        ("average.ema_decay", 0.9),
        ("average.ema_share", 0.05),
        ("average.swa_every", 3),
    ],
)
def test_another_run_is_refused(trained: Path, nano_data: Path, name: str, value: float) -> None:
    config = settings_of(nano_data)
    was = configs.leaves(config)[name]
    with pytest.raises(ConfigError, match=rf"trained to step 10:\n  {name}: was {was}, now {value}\ngo on without"):
        changed(trained, configs.replace(config, name, value))


def test_all_that_would_make_another_run_is_listed(trained: Path, nano_data: Path) -> None:
    now = configs.replace_all(settings_of(nano_data), {"train.seed": 7, "train.steps": 30, "optim.grad_clip": 1.0})
    with pytest.raises(ConfigError) as refused:
        changed(trained, now)
    lines = str(refused.value).splitlines()
    assert lines[1:-1] == ["  optim.grad_clip: was 0.3, now 1.0", "  train.seed: was 1337, now 7"]


def test_what_lies_ahead_may_change(trained: Path, nano_data: Path) -> None:
    values = {"train.steps": 30, "train.validate_every": 5, "quantize.late_qat_start": 0.0, "average.export": "raw"}
    now = configs.replace_all(settings_of(nano_data), values)
    assert {change.name: change.now for change in changed(trained, now)} == values
    assert changed(trained, settings_of(nano_data)) == []


def test_every_setting_is_decided_on() -> None:
    names = configs.leaves(RECIPE)
    for allowed in MAY_CHANGE:
        assert any(name == allowed or (allowed[-1] == "." and name.startswith(allowed)) for name in names), allowed
    was = RECIPE
    now = configs.replace_all(was, {"train.steps": 1, "optim.muon.momentum": 0.5})
    assert changes(was, now) == ([Change("optim.muon.momentum", 0.99, 0.5)], [Change("train.steps", 20000, 1)])


def test_other_data_is_refused_and_moved_data_is_not(trained: Path, nano_data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(nano_data, tmp_path / "moved"))
    names = {change.name for change in changed(trained, settings_of(moved))}
    assert names == {"data.dir", "data.tokenizer"}
    files.write_bytes(moved / "nano.model", train_tokenizer(random_words(1), NANO.vocab_size))  # as many pieces
    with pytest.raises(ConfigError, match=rf"\n  data: was {nano_data}, .*now {moved}"):
        changed(trained, settings_of(moved))
    shutil.copy(nano_data / "nano.model", moved)
    tokens = np.array(open_shard(moved / "nano_train_000000.bin"))
    tokens[-1] ^= 1
    write_shard(moved / "nano_train_000000.bin", tokens)
    with pytest.raises(ConfigError, match=r"\n  data: was"):
        changed(trained, settings_of(moved))


def test_a_config_file_that_was_edited_does_not_count(trained: Path, nano_data: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    edited = configs.replace(settings_of(nano_data), "optim.muon.learning_rate", 0.5)
    configs.write_json(edited, run_dir / "config.json")
    with pytest.raises(ConfigError, match="optim.muon.learning_rate: was 0.025, now 0.5"):
        changed(run_dir, edited)


def test_with_nothing_trained_all_may_change(nano_data: Path, tmp_path: Path) -> None:
    config = settings_of(nano_data)
    configs.write_json(config, tmp_path / "config.json")
    assert changed(tmp_path, configs.replace(config, "train.seed", 7)) == [Change("train.seed", 1337, 7)]


def test_old_settings_are_kept(tmp_path: Path) -> None:
    configs_of = [configs.replace(RECIPE, "train.steps", steps) for steps in (100, 200, 300, 400)]
    keep_settings(configs_of[0], tmp_path, 0)
    first = (tmp_path / "config.json").read_bytes()
    keep_settings(configs_of[0], tmp_path, 50)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    keep_settings(configs_of[1], tmp_path, 50)
    keep_settings(configs_of[2], tmp_path, 50)  # no step that is still there was trained with the second ones
    keep_settings(configs_of[3], tmp_path, 80)
    assert (tmp_path / "config.until-step-50.json").read_bytes() == first
    assert configs.load(str(tmp_path / "config.until-step-80.json")) == configs_of[2]
    assert configs.read_json(tmp_path / "config.json") == configs_of[3]


def test_a_damaged_checkpoint_and_changed_settings_as_a_user_meets_them(runs: Runs, tmp_path: Path) -> None:
    run_dir = tmp_path / "lr=[1e-3]"
    runs.train_here(run_dir, checkpoint_every_steps=10)
    whole = metrics(run_dir, "train_loss")
    before = (run_dir / "config.json").read_bytes()
    with (run_dir / "train.log").open("ab") as log:
        log.write(b"caf\xe9\n")
    output = runs.train_here(run_dir, "--resume", "--optim.grad-clip=1", exit_code=2)
    assert output.count("\n") == 3 and "optim.grad_clip: was 0.3, now 1.0" in output
    assert (run_dir / "config.json").read_bytes() == before

    record = run_dir / "checkpoints" / "20" / "record" / "metadata"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "elapsed_s": 0.0}))
    output = runs.train_here(run_dir, "--resume", exit_code=2)
    assert (
        output.count("\n") == 1 and "20: damaged" in output and "--resume --skip-damaged goes on from step 10" in output
    )

    edited = configs.replace(nano_config(runs.data_dir, checkpoint_every_steps=10), "optim.grad_clip", 1.0)
    configs.write_json(edited, tmp_path / "lr=[1e-3].json")  # which the run was begun with
    output = runs.train_here(run_dir, "--resume", "--skip-damaged", "--train.validate-every=5")
    assert f"damaged, and set aside: {run_dir / 'checkpoints' / '20.damaged'}\n" in output
    assert "changed by --resume: train.validate_every: was 10, now 5\n" in output
    assert "resumed after step 10\n" in output
    assert "the run's own settings, not those of" in output and ": optim.grad_clip 0.3 (not 1.0)\n" in output
    assert metrics(run_dir, "train_loss") == whole
    assert list(metrics(run_dir, "val_bpb")) == [0, 10, 15, 20]
    assert (run_dir / "config.until-step-10.json").read_bytes() == before
    assert b"caf\xe9\n" in (run_dir / "train.log").read_bytes()
