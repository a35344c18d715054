"""What `export.py RUN_DIR [options]` asks for; without JAX, so that its help comes at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from jgolf import config as configs
from jgolf.artifact import container, size, submission
from jgolf.config import Average, Config, DataConfig, EvaluateConfig, QuantizeConfig
from jgolf.config.check import LARGEST_INTEGER
from jgolf.errors import JgolfError
from jgolf.run_dir import CONFIG_FILE

IN_TRAINING_ONLY = {
    "evaluate.max_tokens": "; --max-tokens scores fewer tokens here",
    "quantize.late_qat_start": "",
    "data.build_demo": "",
}
"""Settings that an export takes over from the run, though they change nothing any more, and what to give instead."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export; the run's own settings are the defaults."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of the run."""
    average: Average = "ema"
    """Weights to export."""
    compare_averages: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Quantize, pack and score every average of the run, side by side."""
    max_tokens: int = 0
    """Score about this many validation tokens only; 0 for all (on a CPU, a full-size model takes hours)."""
    adapted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also score the artifact with test-time training, as the settings evaluate.adapted say."""
    hints: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --adapted: tilt its predictions to hints, as the settings evaluate.hints say."""
    codec: container.CodecName = "zstd"
    """Coding of the quantized levels; range is smaller and needs the extra entropy."""
    budget: int | None = None
    """Ignore the storage forms of matrices and choose all steps so that artifact and code fill this many bytes."""
    calibration_tokens: int = 0
    """Training tokens from which a budgeted export learns how much the loss minds an error in each weight, and GPTQ
    what each matrix reads; more are better; 0 for 262,144, or with GPTQ 16 times those of a rank's micro-step, and on a
    CPU for 32,768 (minutes for a full-size model)."""
    limit_bytes: int = size.LIMIT_BYTES
    """Largest total of artifact and code; past it the exit status is 1."""
    submission: Path | None = None
    """Folder to make with all that a submission to the challenge holds; what it still lacks is listed."""
    runs: tuple[Path, ...] = ()
    """With --submission: further runs of the same recipe with other seeds, exported with the same options."""
    author: str = ""
    """Who submits."""
    github_id: str = ""
    """The submitter's name on GitHub."""
    name: str = ""
    """What the submission is called."""
    blurb: str = ""
    """What the submission does, in a sentence or two."""
    quantize: Annotated[QuantizeConfig, tyro.conf.FlagConversionOff] = field(default_factory=QuantizeConfig)
    evaluate: Annotated[EvaluateConfig, tyro.conf.FlagConversionOff] = field(default_factory=EvaluateConfig)
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff] = field(default_factory=DataConfig)


def read_command(argv: list[str], prog: str) -> tuple[ExportOptions, Config]:
    """The options, and the run's settings with what they change; all is checked that can be before any work.

    Raises:
      JgolfError: there is no such run, or an option makes no sense, with others or in an export.
    """
    options = _parse(argv, prog)
    trained = configs.read_json(options.run_dir / CONFIG_FILE)
    config = dataclasses.replace(trained, quantize=options.quantize, evaluate=options.evaluate, data=options.data)
    configs.validate(config)
    _check_numbers(options)
    _check_effects(options, trained, config)
    _check_submission(options)
    return options, config


def _parse(argv: list[str], prog: str) -> ExportOptions:
    """Parses with the run's own settings as the defaults, where the command line names a run."""
    run_dir = _named_run(argv)
    if run_dir is None:
        default = ExportOptions(run_dir=tyro.MISSING)
    else:
        config = configs.read_json(run_dir / CONFIG_FILE)
        default = ExportOptions(
            run_dir, config.average.export, quantize=config.quantize, evaluate=config.evaluate, data=config.data
        )
    description = (
        "Quantize a run's weights, pack them into an artifact, read that back from the disk and score it. The settings "
        f"of the run are the defaults: {prog} RUN_DIR --help shows them. Example: {prog} runs/demo --budget 16000000"
    )
    options = tyro.cli(ExportOptions, default=default, prog=prog, args=argv, description=description)
    if not (options.run_dir / CONFIG_FILE).is_file():
        raise JgolfError(
            f"{options.run_dir}: not a run directory: there is no {CONFIG_FILE} in it; jgolf train makes one"
        )
    return options


def _named_run(argv: list[str]) -> Path | None:
    """The run that the positional argument names; None where it names none, which the parser will tell."""
    words = [word for word in argv if word not in ("-h", "--help")]
    try:
        options = tyro.cli(ExportOptions, default=ExportOptions(tyro.MISSING), args=words, console_outputs=False)
    except SystemExit:
        return None
    return options.run_dir if (options.run_dir / CONFIG_FILE).is_file() else None


def _check_numbers(options: ExportOptions) -> None:
    """Raises JgolfError, before any work, where a count makes no sense."""
    for name in ("max_tokens", "calibration_tokens", "limit_bytes", "budget"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise JgolfError(f"--{name.replace('_', '-')} {value}: expected 0 or more")
    if options.calibration_tokens >= LARGEST_INTEGER:
        raise JgolfError(f"--calibration-tokens {options.calibration_tokens}: expected below {LARGEST_INTEGER:,}")


def _check_effects(options: ExportOptions, trained: Config, config: Config) -> None:
    """Raises JgolfError where an option would change nothing."""
    if options.calibration_tokens and options.budget is None and not config.quantize.gptq:
        raise JgolfError("--calibration-tokens: expected with --budget or --quantize.gptq, which learn from them")
    if options.submission is None:
        for name in ("runs", "author", "github_id", "name", "blurb"):
            if getattr(options, name):
                raise JgolfError(f"--{name.replace('_', '-')}: expected with --submission, which tells it")
    if options.hints and not options.adapted:
        raise JgolfError("--hints: expected with --adapted, whose predictions they tilt")
    was, now = configs.leaves(trained), configs.leaves(config)
    for name, instead in IN_TRAINING_ONLY.items():
        if now[name] != was[name]:
            raise JgolfError(f"--{name.replace('_', '-')}: counts in training only, which is over{instead}")


def _check_submission(options: ExportOptions) -> None:
    """Raises JgolfError, before any work, where a submission is asked for that cannot be written."""
    if options.submission is None:
        return
    if options.max_tokens:
        raise JgolfError("--submission: scored on the whole validation split; leave --max-tokens out")
    submission.check(options.submission, options.run_dir, options.runs)


def repeated(options: ExportOptions, trained: Config) -> list[str]:
    """The words with which an export of another run of the same recipe does what this one does.

    Args:
      options: of this export.
      trained: the run's own settings.
    """
    default = ExportOptions(options.run_dir, trained.average.export)
    words = []
    for name in ("average", "codec", "budget", "calibration_tokens", "max_tokens", "limit_bytes", "adapted", "hints"):
        value = getattr(options, name)
        if value != getattr(default, name):
            words += _words(name, () if value is True else value)  # a flag has no value
    for group in ("quantize", "evaluate"):
        was, now = (configs.leaves(getattr(of, group), f"{group}.") for of in (trained, options))
        words += [word for name in now if now[name] != was[name] for word in _words(name, now[name])]
    return words


def _words(name: str, value: Any) -> list[str]:
    """An option and its value, as a command line has them."""
    return [f"--{name.replace('_', '-')}", *(str(part) for part in _flat(value))]


def _flat(value: Any) -> list[Any]:
    return [part for item in value for part in _flat(item)] if isinstance(value, tuple) else [value]
