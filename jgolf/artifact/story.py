"""What a submission tells of itself: submission.json in the challenge's fields, and README.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from jgolf.artifact.seeds import ScorerName, SeedRun, mean_and_deviation
from jgolf.artifact.size import LIMIT_BYTES
from jgolf.evaluate.challenge import CHALLENGE_BYTES, CHALLENGE_DEVICES, CHALLENGE_SECONDS

_SCORERS = {
    "standard": "standard: what a training step sees",
    "sliding": "sliding window",
    "adapted": "adapted: test-time training on documents after they are scored",
}
_README = """{heading}

**{val_bpb:.6f} bits per byte** ({val_loss:.6f} nats a token) by the scorer `{scorer}`, {sample}.

| seed | nats a token | bits per byte | steps | training, s | evaluation, s | artifact and code, bytes | log |
|---|---|---|---|---|---|---|---|
{seeds}

`model.jgolf` is that of seed {seed}: {average} of step {step} of the config `{config}`. Over {tokens:,} validation
tokens, {bytes:,} bytes of text as the challenge counts{original}, on
{devices}; the last column is what {challenge_bytes:,} bytes would take on {challenge_devices} such devices:

| scorer | nats a token | bits per byte | evaluation, s | FineWeb, s |
|---|---|---|---|---|
{scorers}
| standard, before quantization | {pre_quantization_val_loss:.6f} | {pre_quantization_val_bpb:.6f} | | |

Trained on {trained_on} for {train_s}; quantizing learnt from training text for {calibration_s:,.1f} s more.

## What counts

{total_bytes:,} bytes of {limit_bytes:,}: {artifact_bytes:,} of the artifact `model.jgolf` and {code_bytes:,} of code.
Code is what scoring needs, and `train_gpt.py`: {score_bytes:,} of `score.pyz`, a zip that Python runs, with the sources
that it needs, without their comments, in its `sources.tar.xz`, and {train_bytes:,} of `train_gpt.py`. Training's own
code, the {package_bytes:,} bytes of `jgolf.zip`, is not needed to score the artifact, and not counted; with it the sum
would be {with_package:,}.

## To run it

In this folder, with Python {python}:

    pip install -r requirements.txt
    python score.pyz --tokens fineweb_val_*.bin --tokenizer TOKENIZER --stride {sliding_stride}
    python train_gpt.py --data DIR --seed {seed}

The first scores `model.jgolf` as it is, {scored_as}. The second trains with the settings of `config.json` or
those that are given, exports with the options below, and scores what it stored:

    {export}

The validation shards have these SHA-256 sums:

{shards}
"""


@dataclass(frozen=True)
class Submitter:
    """Who submits what, as submission.json names it."""

    author: str
    github_id: str
    name: str
    blurb: str


@dataclass(frozen=True)
class Sizes:
    """Bytes of the code in a submission's folder: what scores, what begins the training, and what trains."""

    score: int
    train: int
    package: int


def summary(
    submitter: Submitter, runs: Sequence[SeedRun], logs: Sequence[str], scorer: ScorerName, lacking: Sequence[str]
) -> dict[str, Any]:
    """What submission.json says; val_loss and val_bpb are the means over the seeds, by the best scorer.

    Args:
      submitter: who and what.
      runs: the run that is submitted, then those of further seeds.
      logs: the names of their logs.
      scorer: whose score counts.
      lacking: what the submission lacks.
    """
    own = runs[0].result
    mean_loss, deviation_loss, mean_bpb, deviation_bpb = _figures(runs, scorer)
    return {
        **asdict(submitter),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "val_loss": mean_loss,
        "val_bpb": mean_bpb,
        "val_loss_std": deviation_loss,
        "val_bpb_std": deviation_bpb,
        "scorer": scorer,
        "seeds": [run.seed for run in runs],
        "seed_results": {_row_name(runs, run): _seed_result(run, log) for run, log in zip(runs, logs, strict=True)},
        "standard_val_loss": own["val_loss"],
        "standard_val_bpb": own["val_bpb"],
        "original_bpb": own.get("sliding_original_bpb"),
        "pre_quant_val_loss": own["pre_quantization_val_loss"],
        "pre_quant_val_bpb": own["pre_quantization_val_bpb"],
        "step_stop": own["step"],
        "train_s": runs[0].train_s,
        "train_devices": runs[0].devices,
        "eval_s": runs[0].scores[scorer].eval_s,
        "eval_challenge_s": runs[0].scores[scorer].challenge_s,
        "eval_devices": _devices(runs[0]),
        "bytes_total": own["total_bytes"],
        "bytes_model": own["artifact_bytes"],
        "bytes_code": own["code_bytes"],
        "validation_sha256": own["validation_sha256"],
        "export": own["options"],
        "missing": list(lacking),
    }


def readme(
    submitter: Submitter,
    runs: Sequence[SeedRun],
    logs: Sequence[str],
    scorer: ScorerName,
    lacking: Sequence[str],
    sizes: Sizes,
    python: str,
) -> str:
    """README.md; `python` is the version that requirements.txt is of, and for the others see `summary`."""
    run, own = runs[0], runs[0].result
    mean_loss, _, mean_bpb, deviation = _figures(runs, scorer)
    count = sum(other.result is not None for other in runs)
    text = _README.format(
        **{name: value for name, value in own.items() if name not in ("name", "val_loss", "val_bpb", "limit_bytes")},
        heading="\n\n".join(filter(None, [f"# {submitter.name or '(no name)'}", submitter.blurb])),
        val_loss=mean_loss,
        val_bpb=mean_bpb,
        scorer=scorer,
        sample="one seed" if deviation is None else f"the mean of {count} seeds with a deviation of {deviation:.6f}",
        seeds="\n".join(_seed_row(other, log, scorer) for other, log in zip(runs, logs, strict=True)),
        scorers="\n".join(_scorer_rows(run)),
        seed=run.seed,
        config=run.config.name,
        devices=_devices(run),
        trained_on=", then ".join(run.devices) or "devices that its log does not name",
        train_s=f"{run.train_s:,.1f} s" if math.isfinite(run.train_s) else "a time that its log does not tell",
        limit_bytes=LIMIT_BYTES,
        score_bytes=sizes.score,
        train_bytes=sizes.train,
        package_bytes=sizes.package,
        with_package=own["total_bytes"] + sizes.package,
        python=python,
        challenge_bytes=CHALLENGE_BYTES,
        challenge_devices=CHALLENGE_DEVICES,
        original=_original(own),
        scored_as=", ".join(run.scores),
        export=" ".join(own["options"]) or "(none)",
        shards="\n".join(f"    {digest}  {name}" for name, digest in own["validation_sha256"].items()),
    )
    if lacking:
        text += "\n## What is missing\n\n" + "".join(f"- {what}\n" for what in lacking)
    return text


def _original(result: Mapping[str, Any]) -> str:
    """The sliding score over the bytes of the original text, where these were counted and are others."""
    num_bytes, bits = result.get("original_bytes"), result.get("sliding_original_bpb")
    if num_bytes in (None, result["bytes"]):
        return ""
    return f" ({num_bytes:,} of the original text: {bits:.6f} bits per byte of it by the sliding window)"


def _figures(runs: Sequence[SeedRun], scorer: ScorerName) -> tuple[float, float | None, float, float | None]:
    """Mean and deviation over the seeds, of nats a token and of bits per byte."""
    scores = [run.scores[scorer] for run in runs if run.result is not None]
    losses, bits = [score.val_loss for score in scores], [score.val_bpb for score in scores]
    return *mean_and_deviation(losses), *mean_and_deviation(bits)


def _row_name(runs: Sequence[SeedRun], run: SeedRun) -> str:
    """The run's seed; with its name where another run has the same."""
    alone = [other.seed for other in runs].count(run.seed) == 1
    return str(run.seed) if alone else f"{run.seed} ({run.name})"


def _seed_result(run: SeedRun, log: str) -> dict[str, Any]:
    found: dict[str, Any] = {"log": log, "train_s": run.train_s, "train_devices": run.devices}
    for name, score in run.scores.items():
        found |= {f"{name}_{figure}": value for figure, value in score._asdict().items()}
    if run.result is not None:
        found |= {"steps": run.result["step"], "eval_devices": _devices(run)}
        found |= {"bytes_model": run.result["artifact_bytes"], "bytes_total": run.result["total_bytes"]}
    return found


def _seed_row(run: SeedRun, log: str, scorer: ScorerName) -> str:
    train_s = f"{run.train_s:,.1f}" if math.isfinite(run.train_s) else "?"
    if run.result is None:
        return f"| {run.seed} | not scored | | | {train_s} | | | `{log}` |"
    score = run.scores[scorer]
    return (
        f"| {run.seed} | {score.val_loss:.6f} | {score.val_bpb:.6f} | {run.result['step']:,} | {train_s} | "
        f"{score.eval_s:,.1f} | {run.result['total_bytes']:,} | `{log}` |"
    )


def _scorer_rows(run: SeedRun) -> Iterator[str]:
    for name, score in run.scores.items():
        left_out = run.scores["sliding"].tokens - score.tokens
        what = _SCORERS[name] + (f", {left_out:,} tokens left out" if left_out else "")
        what += f", stride {run.result['sliding_stride']}" if name == "sliding" else ""
        what += ", and predictions tilted to hints" if name == "adapted" and run.has_hints else ""
        slow = f", over the limit of {CHALLENGE_SECONDS}" if score.challenge_s > CHALLENGE_SECONDS else ""
        yield (
            f"| {what} | {score.val_loss:.6f} | {score.val_bpb:.6f} | {score.eval_s:,.1f} | "
            f"{score.challenge_s:,.0f}{slow} |"
        )


def _devices(run: SeedRun) -> str:
    """What it was scored on."""
    return f"{run.result['num_devices']} × {run.result['device']}"
