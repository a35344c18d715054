"""`jgolf evaluate`: bits per byte of any model file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from jgolf import compiling, files
from jgolf import config as configs
from jgolf.config import AdaptedConfig, Average, Config, DataConfig, EvaluateConfig, SGDConfig
from jgolf.data.shards import find_shards
from jgolf.data.text import Text, read_text
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import ArtifactError, JgolfError
from jgolf.evaluate.challenge import CHALLENGE_DEVICES, CHALLENGE_SECONDS
from jgolf.evaluate.score import (
    Score,
    documents,
    packed,
    reference_packed_score,
    reference_sliding_score,
    rows,
    score,
    scorers_of,
    sliding,
)
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.evaluate.ttt.tuned import tuned
from jgolf.load import LoadedModel, load_model
from jgolf.options import PathText
from jgolf.progress import counting, progress_bar
from jgolf.run_dir import ARTIFACT_FILE, CONFIG_FILE

ScorerName = Literal["rows", "packed", "sliding", "documents", "tuned", "adapted"]
SCORERS = {scorer.__name__: scorer for scorer in (rows, packed, sliding, documents, tuned, adapted)}
SLIDE = ("sliding", "documents", "tuned")
"""Scorers whose windows slide."""
LEARN = ("tuned", "adapted")
"""Those that train on what they have scored."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation."""

    model: tyro.conf.Positional[PathText]
    """A run directory, a .jgolf artifact, or a PyTorch checkpoint (.pt) or artifact (.ptz)."""
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
    reference_windows: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Score what the PyTorch reference does: with a stride, also windows that hang over the end; with packed rows of
    batch_tokens, none that is not full."""
    reference_ranks: int = 1
    """Processes of the PyTorch reference that shared the packed rows, each of which drops its last one."""
    config: PathText | None = None
    """For PyTorch files, what their tensors do not tell: a config's name, a config.json, or a JSON object."""
    average: Average | None = None
    """For a run, the weights to score; those that it exports by default."""
    max_tokens: int = 0
    """Score the first tokens only; 0 for all."""
    batch_tokens: int = 65_536
    """Tokens run at once on each device; adapted has a number of its own."""
    resume_file: Path | None = None
    """File from which an interrupted evaluation by tuned or adapted goes on; removed when it is done."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object and nothing else."""
    adapted: Annotated[AdaptedConfig, tyro.conf.FlagConversionOff] = field(default_factory=AdaptedConfig)
    tuned: SGDConfig = field(default_factory=lambda: EvaluateConfig().tuned)


def evaluate(argv: list[str], prog: str = "jgolf evaluate") -> None:
    """Parses the command line, scores and prints.

    Raises:
      JgolfError: an option makes no sense, or the model or the text cannot be used.
    """
    options, own = _parse(argv, prog)
    scorer = options.scorer
    _check(options, own)
    compiling.keep_programs()
    loaded = load_model(options.model, options.config, options.average)
    if options.reference_windows and scorer is None:
        scorer = "sliding"
    if scorer is None:
        in_a_row, slid_over = scorers_of(_apart(options, loaded))
        scorer = (slid_over if options.stride else in_a_row).__name__
    missing = [name for name, given in (("--tokenizer", options.tokenizer), ("--tokens", options.tokens)) if not given]
    own_tokenizer = tokenizer_of(loaded, options.tokenizer, missing)
    paths = list(options.tokens) or find_shards(_data_of(loaded, missing).dir, "val")
    text = read_text(paths, own_tokenizer, options.max_tokens + 1 if options.max_tokens else 0)
    trained = loaded.config.train.seq_len
    seq_len = options.seq_len or trained
    longest = max(len(text.tokens) - 1, trained)
    if seq_len > longest:
        raise JgolfError(
            f"--seq-len {seq_len}: expected at most {longest}, the tokens that there are to score or the length that "
            "the model was trained with"
        )
    if scorer in SLIDE and not options.stride:
        options = dataclasses.replace(options, stride=min(own.sliding_stride, seq_len))
    found = _score(scorer, options, loaded, text, seq_len)
    num_devices = jax.local_device_count()
    if options.json:
        rate = {"bytes_per_s": found.bytes / found.seconds, "challenge_s": found.challenge_s(num_devices)}
        print(files.json_text({**dataclasses.asdict(found), "scorer": scorer, "devices": num_devices, **rate}))
        return
    challenge_s = found.challenge_s(num_devices)
    print(
        f"{options.model}{_weights(loaded, options.average)}: val_loss {found.val_loss:.6f} nats, val_bpb "
        f"{found.val_bpb:.6f} over {found.tokens:,} tokens ({found.bytes:,} bytes), "
        f"{_windows(scorer, options, seq_len)}, {found.context:,.0f} tokens of context on average, "
        f"{found.seconds:.1f} s\n"
        f"{found.bytes / found.seconds:,.0f} bytes a second; the challenge's text on {CHALLENGE_DEVICES} such devices: "
        f"{challenge_s:,.0f} s, {challenge_s / CHALLENGE_SECONDS:.0%} of its {CHALLENGE_SECONDS} s"
    )


evaluate.parse_and_call = lambda prog, argv: evaluate(argv, prog)


def _parse(argv: list[str], prog: str) -> tuple[EvaluateOptions, EvaluateConfig]:
    """The options, and the settings of the run that they name, which are their defaults."""
    words = [word for word in argv if word not in ("-h", "--help")]
    own = EvaluateConfig()
    try:
        named = tyro.cli(EvaluateOptions, args=words, console_outputs=False).model
    except SystemExit:
        named = None  # the parser will tell what is wrong
    if named is not None and (run_dir := _run_of(named)) is not None:
        own = configs.read_json(run_dir / CONFIG_FILE).evaluate
    description = (
        f"Score a model in bits per byte, every token once. Examples: {prog} runs/demo; {prog} model.jgolf --tokenizer "
        f"T.model --tokens val_*.bin --stride 64; {prog} runs/demo --scorer adapted"
    )
    default = EvaluateOptions(model=tyro.MISSING, adapted=own.adapted, tuned=own.tuned)
    return tyro.cli(EvaluateOptions, default=default, prog=prog, args=argv, description=description), own


def _check(options: EvaluateOptions, own: EvaluateConfig) -> None:
    """Raises JgolfError, before any work, where an option makes no sense or would change nothing."""
    scorer = options.scorer
    slides = scorer in SLIDE or (scorer is None and options.stride > 0)
    has_reference = scorer == "packed" or (slides and scorer in (None, "sliding") and not options.within_documents)
    if options.reference_windows and not has_reference:
        raise JgolfError(
            "--reference-windows: expected with --stride, which makes the window slide, or with --scorer packed, and "
            "without --within-documents"
        )
    if options.reference_ranks != 1 and not (options.reference_windows and scorer == "packed"):
        raise JgolfError("--reference-ranks: expected with --scorer packed --reference-windows")
    if options.within_documents is not None and scorer not in (None, "tuned"):
        raise JgolfError(f"--within-documents: --scorer {scorer} says it already")
    if options.stride and not slides:
        raise JgolfError(f"--stride: expected with a scorer that slides, {', '.join(SLIDE)}, not with {scorer}")
    if options.resume_file and scorer not in LEARN:
        raise JgolfError(f"--resume-file: expected with --scorer {' or '.join(LEARN)}: the others keep nothing")
    for name in LEARN:
        if getattr(options, name) != getattr(own, name) and scorer != name:
            raise JgolfError(f"--{name}.…: expected with --scorer {name}")
    for option, value, least in (
        ("--seq-len", 1 if options.seq_len is None else options.seq_len, 1),
        ("--stride", options.stride, 0),
        ("--reference-ranks", options.reference_ranks, 1),
        ("--max-tokens", options.max_tokens, 0),
        ("--batch-tokens", options.batch_tokens, 1),
    ):
        if value < least:
            raise JgolfError(f"{option} {value}: expected at least {least}")
    configs.validate(Config(evaluate=EvaluateConfig(adapted=options.adapted, tuned=options.tuned)))


def _score(scorer: ScorerName, options: EvaluateOptions, loaded: LoadedModel, text: Text, seq_len: int) -> Score:
    """Runs the scorer with what it takes of the options."""
    what = loaded.config.model, loaded.params, text, seq_len
    stride = (options.stride,) if scorer in SLIDE else ()
    batch_tokens = options.batch_tokens
    if scorer in LEARN:
        with counting("scoring", len(text.tokens) - 1, "tokens") as tell:
            how: dict[str, Any] = {"tell": tell, "resume_file": options.resume_file}
            if scorer == "adapted":
                return score(adapted, *what, options.adapted, **how)
            how |= {"within_documents": _apart(options, loaded), "batch_tokens": batch_tokens}
            return score(tuned, *what, *stride, options.tuned, **how)
    how = {"batch_tokens": batch_tokens, "progress": progress_bar("scoring")}
    if not options.reference_windows:
        return score(SCORERS[scorer], *what, *stride, **how)
    if scorer == "packed":
        return reference_packed_score(*what, max(1, batch_tokens // seq_len), options.reference_ranks, **how)
    return reference_sliding_score(*what, *stride, **how)


def _apart(options: EvaluateOptions, loaded: LoadedModel) -> bool:
    """Whether no context reaches into the document before."""
    return loaded.config.train.documents if options.within_documents is None else options.within_documents


def _windows(scorer: ScorerName, options: EvaluateOptions, seq_len: int) -> str:
    """What was scored, in a few words."""
    apart = " within documents" if scorer in ("packed", "documents") else ""
    if scorer == "adapted":
        return f"documents adapted to, windows of up to {options.adapted.context or seq_len} tokens"
    if scorer in SLIDE:
        trained = ", weights trained on what was scored" if scorer == "tuned" else ""
        return f"windows of {seq_len} every {options.stride} tokens{apart}{trained}"
    return f"rows of {seq_len} tokens{apart}"


def _run_of(model: str) -> Path | None:
    """The run that a model's path names, or in whose folder it lies as its artifact; None where there is none."""
    path = Path(model).absolute()
    run_dir = path if path.is_dir() else path.parent.parent
    in_it = path.is_dir() or path == run_dir / ARTIFACT_FILE
    return run_dir if in_it and (run_dir / CONFIG_FILE).is_file() else None


def _weights(loaded: LoadedModel, average: Average | None) -> str:
    """Which of a run's weights were scored."""
    return f" ({average or loaded.config.average.export})" if Path(loaded.source).is_dir() else ""


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
    if (run_dir := _run_of(loaded.source)) is not None:
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
