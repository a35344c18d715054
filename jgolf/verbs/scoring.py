"""What verbs that score a model have in common: which model, which text, which scorer, with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import tyro

from jgolf import config as configs
from jgolf.config import AdaptedConfig, Config, DataConfig, EvaluateConfig, HintsConfig, SGDConfig
from jgolf.data.shards import find_shards
from jgolf.data.text import Text, read_text
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import ArtifactError, JgolfError
from jgolf.evaluate.score import Scorer, documents, packed, rows, scorers_of, sliding
from jgolf.evaluate.tilt import hinted
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.evaluate.ttt.tuned import tuned
from jgolf.load import LoadedModel
from jgolf.options import PathText
from jgolf.run_dir import ARTIFACT_FILE, CONFIG_FILE

ScorerName = Literal["rows", "packed", "sliding", "documents", "tuned", "adapted"]
SCORERS = {scorer.__name__: scorer for scorer in (rows, packed, sliding, documents, tuned, adapted)}
SLIDE = ("sliding", "documents", "tuned")
"""Scorers whose windows slide."""
LEARN = ("tuned", "adapted")
"""Those that train on what they have scored."""


@dataclass(frozen=True)
class ScoringOptions:
    """What is scored, and how."""

    model: tyro.conf.Positional[PathText]
    """A run directory, a .jgolf artifact, .safetensors, or a PyTorch checkpoint (.pt) or artifact (.ptz)."""
    tokens: tuple[Path, ...] = ()
    """Token shards to score; by default the validation split of the run, also of a run's artifact."""
    tokenizer: Path | None = None
    """Tokenizer of these tokens, a SentencePiece model or the JSON of one of bytes; the run's own by default."""
    scorer: ScorerName | None = None
    """rows of seq_len one after the other; packed: the same with documents apart; sliding windows; documents: the same
    within documents; tuned: sliding windows, after each part of which all weights are trained on it; adapted: documents
    in chunks, after each of which low-rank additions are trained on it. By default rows or, with --stride, sliding, or
    their forms within documents, as --within-documents says."""
    seq_len: int | None = None
    """Longest context; the one the model was trained with by default."""
    stride: int = 0
    """Slide the window by this many tokens; 0 scores rows of seq_len one after the other, or takes the run's own
    stride for a scorer that slides."""
    within_documents: bool | None = None
    """Let no context reach into the document before; as the model was trained by default."""
    config: PathText | None = None
    """For PyTorch files, what their tensors do not tell: a config's name, a config.json, or a JSON object."""
    max_tokens: int = 0
    """Score the first tokens only; 0 for all."""
    batch_tokens: int = 65_536
    """Tokens run at once on each device; adapted has a number of its own."""
    adapted: Annotated[AdaptedConfig, tyro.conf.FlagConversionOff] = field(default_factory=AdaptedConfig)
    tuned: SGDConfig = field(default_factory=lambda: EvaluateConfig().tuned)
    with_hints: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(name="hints")] = False
    """Tilt each prediction to the token that followed the last times that the text read the same."""
    hints: HintsConfig = field(default_factory=HintsConfig)


Options = TypeVar("Options", bound=ScoringOptions)


def read_options(kind: type[Options], argv: list[str], prog: str, description: str) -> tuple[Options, EvaluateConfig]:
    """The options, and the settings of the run that they name, which are their defaults."""
    words = [word for word in argv if word not in ("-h", "--help")]
    own = EvaluateConfig()
    try:
        named = tyro.cli(kind, args=words, console_outputs=False).model
    except SystemExit:
        named = None  # the parser will tell what is wrong
    if named is not None and (run_dir := run_of(named)) is not None:
        own = configs.read_json(run_dir / CONFIG_FILE).evaluate
    default = kind(model=tyro.MISSING, adapted=own.adapted, tuned=own.tuned, hints=own.hints)
    return tyro.cli(kind, default=default, prog=prog, args=argv, description=description), own


def check_options(options: ScoringOptions, own: EvaluateConfig) -> None:
    """Raises JgolfError, before any work, where an option makes no sense or would change nothing."""
    scorer = options.scorer
    if options.within_documents is not None and scorer not in (None, "tuned"):
        raise JgolfError(f"--within-documents: --scorer {scorer} says it already")
    if options.stride and not (scorer is None or scorer in SLIDE):
        raise JgolfError(f"--stride: expected with a scorer that slides, {', '.join(SLIDE)}, not with {scorer}")
    for name in LEARN:
        if getattr(options, name) != getattr(own, name) and scorer != name:
            raise JgolfError(f"--{name}.…: expected with --scorer {name}")
    if options.with_hints and scorer == "tuned":
        raise JgolfError("--hints: expected with any scorer but tuned, which takes none")
    if options.hints != own.hints and not options.with_hints:
        raise JgolfError("--hints.…: expected with --hints")
    at_least(
        ("--seq-len", 1 if options.seq_len is None else options.seq_len, 1),
        ("--stride", options.stride, 0),
        ("--max-tokens", options.max_tokens, 0),
        ("--batch-tokens", options.batch_tokens, 1),
    )
    configs.validate(Config(evaluate=EvaluateConfig(adapted=options.adapted, tuned=options.tuned, hints=options.hints)))


def scorer_of(options: ScoringOptions, name: ScorerName) -> Scorer:
    """The scorer of this name, which tilts its predictions to hints where that is asked for."""
    if not options.with_hints:
        return SCORERS[name]
    return partial(adapted, hints=options.hints) if name == "adapted" else hinted(SCORERS[name], options.hints)


def at_least(*numbers: tuple[str, int, int]) -> None:
    """Raises JgolfError for the first option (its name, its value, the least it may be) that is too small."""
    for option, value, least in numbers:
        if value < least:
            raise JgolfError(f"{option} {value}: expected at least {least}")


class Opened(NamedTuple):
    """What is scored, and by what.

    Attributes:
      shards: of the text.
      stride: of a scorer that slides, else 0.
      apart: whether no context reaches into the document before.
    """

    loaded: LoadedModel
    tokenizer: Tokenizer
    shards: list[Path]
    text: Text
    scorer: ScorerName
    seq_len: int
    stride: int
    apart: bool


def opened(options: ScoringOptions, own: EvaluateConfig, loaded: LoadedModel, scorer: ScorerName | None) -> Opened:
    """The text, and what the options leave open: by the model that was loaded, and the run's settings.

    Raises:
      JgolfError: the text or its tokenizer is not there or cannot be used, or the context is longer than any.
    """
    trained = loaded.config.train
    apart = trained.documents if options.within_documents is None else options.within_documents
    if scorer is None:
        in_a_row, slid_over = scorers_of(apart)
        scorer = (slid_over if options.stride else in_a_row).__name__
    missing = [name for name, given in (("--tokenizer", options.tokenizer), ("--tokens", options.tokens)) if not given]
    tokenizer = tokenizer_of(loaded, options.tokenizer, missing)
    shards = list(options.tokens) or find_shards(_data_of(loaded, missing).dir, "val")
    text = read_text(shards, tokenizer, options.max_tokens + 1 if options.max_tokens else 0)
    seq_len = options.seq_len or trained.seq_len
    longest = max(len(text.tokens) - 1, trained.seq_len)
    if seq_len > longest:
        raise JgolfError(
            f"--seq-len {seq_len}: expected at most {longest}, the tokens that there are to score or the length that "
            "the model was trained with"
        )
    stride = options.stride or (min(own.sliding_stride, seq_len) if scorer in SLIDE else 0)
    return Opened(loaded, tokenizer, shards, text, scorer, seq_len, stride, apart)


def run_of(model: str) -> Path | None:
    """The run that a model's path names, or in whose folder it lies as its artifact; None where there is none."""
    path = Path(model).absolute()
    run_dir = path if path.is_dir() else path.parent.parent
    in_it = path.is_dir() or path == run_dir / ARTIFACT_FILE
    return run_dir if in_it and (run_dir / CONFIG_FILE).is_file() else None


def _data_of(loaded: LoadedModel, missing: Sequence[str]) -> DataConfig:
    """The data of a run, or of the run in whose folder an artifact lies.

    Args:
      loaded: the model.
      missing: the options that would make them unnecessary, for the message.

    Raises:
      JgolfError: the model is a file of its own.
    """
    source = Path(loaded.source).absolute()
    if source.is_dir():
        return loaded.config.data
    if (run_dir := run_of(loaded.source)) is not None:
        return configs.read_json(run_dir / CONFIG_FILE).data
    raise JgolfError(f"{source}: in no run's folder, so it knows no data of its own: give {' and '.join(missing)}")


def tokenizer_of(loaded: LoadedModel, explicit: Path | None, missing: Sequence[str] = ("--tokenizer",)) -> Tokenizer:
    """The tokenizer to use with a model: the given one, or its run's own; see `_data_of` for `missing`.

    Raises:
      ArtifactError: it is not the one that the model was trained with.
      DataError: it cannot be read.
      JgolfError: none is given, and the model does not know its own.
    """
    path = explicit
    if path is None:
        data = _data_of(loaded, missing)
        path = find_tokenizer(data.dir, data.tokenizer)
    tokenizer = load_tokenizer(path, loaded.config.model.vocab_size)
    expected = loaded.tokenizer_fingerprint
    if expected not in (None, tokenizer.fingerprint):
        raise ArtifactError(
            f"{path}: not the tokenizer that {loaded.source} was trained with: its SHA-256 is "
            f"{tokenizer.fingerprint[:16]}…, expected {expected[:16]}…"
        )
    return tokenizer
