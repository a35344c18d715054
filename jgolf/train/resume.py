"""Going on with a run: what may be changed on the way, and what is kept of how it was."""

from __future__ import annotations

from pathlib import Path

from jgolf import config as configs
from jgolf import files
from jgolf.config import Config
from jgolf.config.same_run import Change, changes
from jgolf.data.fingerprint import data_fingerprint
from jgolf.errors import ConfigError, DataError
from jgolf.run_dir import CONFIG_FILE
from jgolf.train.checkpoint import Checkpoints


def changed_settings(config: Config, data: str, run_dir: Path, checkpoints: Checkpoints) -> list[Change]:
    """The settings that a run goes on with and that are others than its newest checkpoint was made with.

    Args:
      config: the settings to go on with.
      data: fingerprint of the data that they name.
      run_dir: the run's folder.
      checkpoints: what was trained; without any, every setting may change.

    Raises:
      ConfigError: with these settings or data it would be another run.
      ArtifactError: the newest checkpoint is damaged.
    """
    stored = configs.read_json(run_dir / CONFIG_FILE)
    step = checkpoints.latest_step
    if step is None:
        refused, allowed = changes(stored, config)
        return refused + allowed
    was, trained_on = checkpoints.made_with()
    was = was or stored
    refused, allowed = changes(was, config)
    if data != (trained_on or _fingerprint_where_known(was, config, data)):
        refused.append(
            Change("data", f"{was.data.dir}, as it was then", f"{config.data.dir} with {config.data.tokenizer}")
        )
    if refused:
        raise ConfigError(
            f"{run_dir}: --resume with these settings would make another run of the one that is trained to step {step}:"
            + "".join(f"\n  {change}" for change in refused)
            + f"\ngo on without these changes, or begin another run: --run-dir NEW, with --init-from {run_dir} from "
            "its weights"
        )
    return allowed


def _fingerprint_where_known(was: Config, now: Config, data: str) -> str:
    """Fingerprint of the data of a run whose checkpoints hold none: of what is where they were."""
    if was.data == now.data:
        return data
    try:
        return data_fingerprint(was.data)
    except DataError:
        return ""


def keep_settings(config: Config, run_dir: Path, first_step: int) -> None:
    """Writes config.json; other settings that were in it stay in `config.until-step-N.json`.

    Args:
      config: the settings from now on.
      run_dir: the run's folder.
      first_step: steps that are behind the run.

    Raises:
      JgolfError: the folder cannot be written to.
    """
    path = run_dir / CONFIG_FILE
    if path.exists():
        if configs.read_json(path) == config:
            return
        kept = path.with_name(f"{path.stem}.until-step-{first_step}.json")
        if not kept.exists():  # else no step that is still there was trained with what is in config.json now
            files.write_bytes(kept, path.read_bytes())
    configs.write_json(config, path)
