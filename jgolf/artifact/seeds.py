"""Runs of one recipe with several seeds, as a submission tells of them: settings, log, scores, machines."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jgolf import config as configs
from jgolf import files
from jgolf.config import Config
from jgolf.errors import JgolfError
from jgolf.evaluate.challenge import CHALLENGE_SECONDS
from jgolf.reading import excerpt, is_number, read_json
from jgolf.run_dir import AUDIT_FILE, CONFIG_FILE, LOG_FILE, REQUIREMENTS_FILE, RESULT_FILE

ScorerName = Literal["standard", "sliding", "adapted"]
_FIGURES = ("val_loss", "val_bpb", "tokens", "bytes", "eval_s", "challenge_s")
_NUMBERS = (
    *("step", "calibration_s", "split_tokens", "pre_quantization_val_loss", "pre_quantization_val_bpb"),
    *("artifact_bytes", "code_bytes", "total_bytes", "limit_bytes", "sliding_stride", "num_devices"),
)
_DEVICES = re.compile(r" tokens a step in sequences of [0-9]+, ([0-9]+ × .+?) in [0-9]+ process")
_TRAIN_TIME = re.compile(r"\btrain_time:([0-9]{1,18})ms")


class SeedScore(NamedTuple):
    """What a scorer found for the artifact of a run."""

    val_loss: float
    """Mean negative log likelihood in nats a token."""
    val_bpb: float
    tokens: int
    bytes: int
    eval_s: float
    """What it took."""
    challenge_s: float
    """What FineWeb's validation text would take on eight such devices."""


@dataclass(frozen=True)
class SeedRun:
    """A run of the recipe.

    Attributes:
      name: its folder's.
      config: its settings.
      log: its train.log; bytes that are no UTF-8 are kept as surrogates.
      requirements: the packages that it was trained with, as pip takes them; "" where the run did not keep them.
      result: its export's result.json; None where it was not exported, so that it has no score after quantization.
      audit: its artifact's audit.json; "" where it was not audited.
    """

    name: str
    config: Config
    log: str
    requirements: str
    result: Mapping[str, Any] | None
    audit: str = ""

    @classmethod
    def read(cls, run_dir: Path) -> SeedRun:
        """Reads a run's folder.

        Raises:
          JgolfError: it is none, or what is in it cannot be read, is damaged, or is of an earlier version.
        """
        if not (run_dir / CONFIG_FILE).is_file():
            raise JgolfError(f"{run_dir}: not a run directory: there is no {CONFIG_FILE} in it")
        config = configs.read_json(run_dir / CONFIG_FILE)
        log = _text(run_dir / LOG_FILE)
        if log is None:
            raise JgolfError(f"{run_dir}: has no {LOG_FILE}, which a submission needs: expected the folder of a run")
        packages, audit = (_text(run_dir / path) or "" for path in (REQUIREMENTS_FILE, AUDIT_FILE))
        return cls(run_dir.resolve().name, config, log, packages, _result(run_dir), audit)

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def devices(self) -> list[str]:
        """What it was trained on, as the log says: "8 × NVIDIA H100 80GB HBM3"; several where it went on elsewhere."""
        return sorted(set(_DEVICES.findall(self.log)))

    @property
    def train_s(self) -> float:
        """Seconds of training, as the log says; NaN where it does not."""
        times = _TRAIN_TIME.findall(self.log)
        return int(times[-1]) / 1000 if times else math.nan

    @property
    def scores(self) -> dict[ScorerName, SeedScore]:
        """Of its artifact, by every scorer that was asked; none where it was not exported."""
        if self.result is None:
            return {}
        return {
            name: SeedScore(*(self.result[_key(name, figure)] for figure in _FIGURES))
            for name in get_args(ScorerName)
            if _key(name, "val_bpb") in self.result
        }

    @property
    def has_hints(self) -> bool:
        """Whether its adapted score is one with hints."""
        return self.result is not None and exported_with_hints(self.result["options"])


def exported_with_hints(options: Sequence[str]) -> bool:
    """Whether the options of an export, as its result repeats them, ask for hints."""
    return "--hints" in options


def best_scorer(runs: Sequence[SeedRun]) -> ScorerName:
    """The scorer with the lowest mean of bits per byte of those that a record may name.

    It scores every token, and within the challenge's seconds; where none is quick enough, whatever it takes.

    Args:
      runs: of which one at least was exported.
    """
    exported = [run.scores for run in runs if run.result is not None]
    whole = [name for name in exported[0] if all(_is_whole(name, scores) for scores in exported)]
    quick = [name for name in whole if all(scores[name].challenge_s <= CHALLENGE_SECONDS for scores in exported)]
    return min(quick or whole, key=lambda name: statistics.fmean(scores[name].val_bpb for scores in exported))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation with n − 1; None for that of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _is_whole(name: ScorerName, scores: Mapping[ScorerName, SeedScore]) -> bool:
    """Whether the scorer was asked, and left out no token: rows leave a remainder out, which other scorers score."""
    return name in scores and scores[name].tokens == scores["sliding"].tokens


def _key(scorer: ScorerName, figure: str) -> str:
    """The name of a scorer's figure in result.json."""
    if scorer == "standard":
        return f"standard_{figure}" if figure in ("tokens", "bytes") else figure
    return figure if figure in ("tokens", "bytes") else f"{scorer}_{figure}"


def _result(run_dir: Path) -> dict[str, Any] | None:
    """An export's result.json with all that a submission tells of it; None where there is none."""
    path = run_dir / RESULT_FILE
    files.settle(path.parent)
    try:
        result = read_json(path, allow_nan=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JgolfError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise JgolfError(f"{path}: damaged: {error}; {_export_again(run_dir)}") from None
    if not isinstance(result, dict):
        raise JgolfError(f"{path}: expected an object, found {excerpt(result)}; {_export_again(run_dir)}")
    adapted = ["adapted"] if "adapted_val_bpb" in result else []
    needed = [*_NUMBERS, *(_key(scorer, figure) for scorer in ("standard", "sliding", *adapted) for figure in _FIGURES)]
    for name in needed:
        if not is_number(result.get(name)):
            raise JgolfError(
                f"{path}: {name} is {excerpt(result.get(name))}, expected a number, as exports of this version write "
                f"it; {_export_again(run_dir)}"
            )
    for name in ("original_bytes", "sliding_original_bpb"):
        if (result.get("original_bytes") is not None) != is_number(result.get(name)):
            found = excerpt(result.get(name))
            raise JgolfError(f"{path}: {name} is {found}, expected a number, or none of both; {_export_again(run_dir)}")
    sums, words = result.get("validation_sha256"), result.get("options")
    are_texts = {
        "options": isinstance(words, list) and all(isinstance(word, str) for word in words),
        "validation_sha256": isinstance(sums, dict) and all(isinstance(digest, str) for digest in sums.values()),
        **{name: isinstance(result.get(name), str) for name in ("device", "average")},
    }
    for name, is_text in are_texts.items():
        if not is_text:
            found = excerpt(result.get(name))
            raise JgolfError(f"{path}: {name} is {found}, expected text as exports write it; {_export_again(run_dir)}")
    return result


def _export_again(run_dir: Path) -> str:
    return f"export the run again: jgolf export {run_dir}"


def _text(path: Path) -> str | None:
    """A file's text, its bytes that are no UTF-8 as surrogates; None where there is no file."""
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JgolfError(f"{path}: cannot be read: {error.strerror or error}") from None
