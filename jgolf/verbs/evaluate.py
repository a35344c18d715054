"""`jgolf evaluate`: bits per byte of any model file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jgolf import compiling, files
from jgolf.config import Average, EvaluateConfig
from jgolf.errors import JgolfError
from jgolf.evaluate.challenge import CHALLENGE_DEVICES, CHALLENGE_SECONDS
from jgolf.evaluate.score import (
    Score,
    reference_packed_score,
    reference_sliding_score,
    score,
)
from jgolf.load import LoadedModel, load_model
from jgolf.progress import counting, progress_bar
from jgolf.verbs.scoring import (
    LEARN,
    SLIDE,
    Opened,
    ScoringOptions,
    at_least,
    check_options,
    opened,
    read_options,
    scorer_of,
)


@dataclass(frozen=True)
class EvaluateOptions(ScoringOptions):
    """Options of an evaluation."""

    reference_windows: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Score what the PyTorch reference does: with a stride, also windows that hang over the end; with packed rows of
    batch_tokens, none that is not full."""
    reference_ranks: int = 1
    """Processes of the PyTorch reference that shared the packed rows, each of which drops its last one."""
    average: Average | None = None
    """For a run, the weights to score; those that it exports by default."""
    resume_file: Path | None = None
    """File from which an interrupted evaluation by tuned or adapted goes on; removed when it is done."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object and nothing else."""


def evaluate(argv: list[str], prog: str = "jgolf evaluate") -> None:
    """Parses the command line, scores and prints.

    Raises:
      JgolfError: an option makes no sense, or the model or the text cannot be used.
    """
    description = (
        f"Score a model in bits per byte, every token once. Examples: {prog} runs/demo; {prog} model.jgolf --tokenizer "
        f"T.model --tokens val_*.bin --stride 64; {prog} runs/demo --scorer adapted"
    )
    options, own = read_options(EvaluateOptions, argv, prog, description)
    scorer = options.scorer
    _check(options, own)
    compiling.keep_programs()
    loaded = load_model(options.model, options.config, options.average)
    if options.reference_windows and scorer is None:
        scorer = "sliding"
    what = opened(options, own, loaded, scorer)
    found = _score(what, options)
    num_devices = jax.local_device_count()
    if options.json:
        rate = {"bytes_per_s": found.bytes / found.seconds, "challenge_s": found.challenge_s(num_devices)}
        print(files.json_text({**dataclasses.asdict(found), "scorer": what.scorer, "devices": num_devices, **rate}))
        return
    challenge_s = found.challenge_s(num_devices)
    print(
        f"{options.model}{_weights(loaded, options.average)}: val_loss {found.val_loss:.6f} nats, val_bpb "
        f"{found.val_bpb:.6f} over {found.tokens:,} tokens ({found.bytes_text}), "
        f"{_windows(what, options)}, {found.context:,.0f} tokens of context on average, "
        f"{found.seconds:.1f} s\n"
        f"{_hints(found)}"
        f"{found.bytes / found.seconds:,.0f} bytes a second; the challenge's text on {CHALLENGE_DEVICES} such devices: "
        f"{challenge_s:,.0f} s, {challenge_s / CHALLENGE_SECONDS:.0%} of its {CHALLENGE_SECONDS} s"
    )


evaluate.parse_and_call = lambda prog, argv: evaluate(argv, prog)


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
    if options.reference_windows and options.with_hints:
        raise JgolfError("--hints: expected without --reference-windows, which score some targets twice or not at all")
    if options.reference_ranks != 1 and not (options.reference_windows and scorer == "packed"):
        raise JgolfError("--reference-ranks: expected with --scorer packed --reference-windows")
    if options.resume_file and scorer not in LEARN:
        raise JgolfError(f"--resume-file: expected with --scorer {' or '.join(LEARN)}: the others keep nothing")
    at_least(("--reference-ranks", options.reference_ranks, 1))
    check_options(options, own)


def _score(opened: Opened, options: EvaluateOptions) -> Score:
    """Runs the scorer with what it takes of the options."""
    scorer, loaded, text, seq_len = opened.scorer, opened.loaded, opened.text, opened.seq_len
    what = loaded.config.model, loaded.params, text, seq_len
    stride = (opened.stride,) if scorer in SLIDE else ()
    run, batch_tokens = scorer_of(options, scorer), options.batch_tokens
    if scorer in LEARN:
        with counting("scoring", len(text.tokens) - 1, "tokens") as tell:
            how: dict[str, Any] = {"tell": tell, "resume_file": options.resume_file}
            if scorer == "adapted":
                return score(run, *what, options.adapted, **how)
            how |= {"within_documents": opened.apart, "batch_tokens": batch_tokens}
            return score(run, *what, *stride, options.tuned, **how)
    how = {"batch_tokens": batch_tokens, "progress": progress_bar("scoring")}
    if not options.reference_windows:
        return score(run, *what, *stride, **how)
    if scorer == "packed":
        return reference_packed_score(*what, max(1, batch_tokens // seq_len), options.reference_ranks, **how)
    return reference_sliding_score(*what, *stride, **how)


def _windows(opened: Opened, options: EvaluateOptions) -> str:
    """What was scored, in a few words."""
    scorer, seq_len = opened.scorer, opened.seq_len
    apart = " within documents" if scorer in ("packed", "documents") else ""
    if scorer == "adapted":
        return f"documents adapted to, windows of up to {options.adapted.context or seq_len} tokens"
    if scorer in SLIDE:
        trained = ", weights trained on what was scored" if scorer == "tuned" else ""
        return f"windows of {seq_len} every {opened.stride} tokens{apart}{trained}"
    return f"rows of {seq_len} tokens{apart}"


def _hints(found: Score) -> str:
    """What hints were worth, in a line of its own."""
    if found.hints is None:
        return ""
    fired, hits, gained_bpb, seconds = dataclasses.astuple(found.hints)
    return (
        f"hints: {fired:,} targets, {fired / found.tokens:.1%}, right for {hits / max(fired, 1):.1%} of them, "
        f"{gained_bpb:.6f} bits per byte better than without, {seconds:.1f} s\n"
    )


def _weights(loaded: LoadedModel, average: Average | None) -> str:
    """Which of a run's weights were scored."""
    return f" ({average or loaded.config.average.export})" if Path(loaded.source).is_dir() else ""
