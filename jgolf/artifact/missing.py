"""What a submission lacks of what the challenge's rules ask, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from jgolf.artifact.seeds import ScorerName, SeedRun
from jgolf.artifact.size import LIMIT_BYTES
from jgolf.config import leaves
from jgolf.evaluate.challenge import CHALLENGE_BYTES, CHALLENGE_DEVICES, CHALLENGE_SECONDS
from jgolf.progress import counted
from jgolf.reading import excerpt, parse_json
from jgolf.run_dir import AUDIT_FILE

TEXT_TOLERANCE = 1e-3
"""How far off, relatively, the bytes of the text may be, which are known to four digits."""
USUAL_SEEDS = 3
"""With fewer, p < 0.01 is out of reach."""
DEVICES = re.compile(rf"{CHALLENGE_DEVICES} × .*\bH100\b.*")
MOST_NAMED = 5


def missing(author: str, name: str, runs: Sequence[SeedRun], scorer: ScorerName) -> list[str]:
    """A sentence for each thing that is missing, or is not as the rules ask; none if it is ready to submit.

    Args:
      author, name: of the submission.
      runs: the run that is submitted, then those of further seeds.
      scorer: whose score is submitted.
    """
    found = [f"--{option} is empty" for option, text in (("author", author), ("name", name)) if not text.strip()]
    found += _of_the_text(runs)
    found += _of_the_seeds(runs)
    whose: dict[str, list[str]] = {}
    for run in runs:
        for what in _of_a_run(run, scorer):
            whose.setdefault(what, []).append(f"{run.name} (seed {run.seed})")
    return [*found, *(f"{', '.join(names)}: {what}" for what, names in whose.items()), *_of_the_audit(runs[0])]


def _of_the_text(runs: Sequence[SeedRun]) -> Iterator[str]:
    """What is wrong with the text that was scored."""
    results = [run.result for run in runs if run.result is not None]
    found = sorted({result["bytes"] for result in results})
    other = [num_bytes for num_bytes in found if abs(num_bytes - CHALLENGE_BYTES) > TEXT_TOLERANCE * CHALLENGE_BYTES]
    if other:
        what = f"{other[0]:,} bytes were scored, expected about {CHALLENGE_BYTES:,}"
        yield f"the text is not FineWeb's validation split: {what}"
    if len(found) > 1 or any(result["validation_sha256"] != results[0]["validation_sha256"] for result in results):
        yield "the runs were not scored on the same text: their validation shards or the numbers of bytes differ"


def _of_the_seeds(runs: Sequence[SeedRun]) -> Iterator[str]:
    """What is wrong with the runs as a sample."""
    seeds = [run.seed for run in runs if run.result is not None]
    if len(set(seeds)) < USUAL_SEEDS:
        yield (
            f"results of {counted(len(set(seeds)), 'seed')}, expected {USUAL_SEEDS}, without which no record is shown "
            "at p < 0.01: --runs"
        )
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        yield f"several runs of seed {', '.join(map(str, repeated))}, which are no sample of the noise"
    first, *others = runs
    for run in others:
        if changed := _differing_settings(first, run):
            yield f"{run.name} differs from {first.name} in more than the seed: {'; '.join(changed)}"
        if run.result is not None and run.result["options"] != first.result["options"]:
            was, now = (" ".join(result["options"]) or "no options" for result in (first.result, run.result))
            yield f"{run.name} was exported otherwise than {first.name}: {excerpt(now, 300)}, not {excerpt(was, 300)}"
        if run.requirements != first.requirements:
            yield f"{run.name} was trained with other packages than {first.name}"


def _differing_settings(first: SeedRun, run: SeedRun) -> list[str]:
    """Settings, but the seed, what the run is called and where its data lie; the data are compared by their content."""
    was, now = leaves(first.config), leaves(run.config)
    names = [name for name in now if name not in ("train.seed", "name") and not name.startswith("data.")]
    changed = [f"{name} {excerpt(now[name])} (not {excerpt(was[name])})" for name in names if now[name] != was[name]]
    return [*changed[:MOST_NAMED], *([f"and {len(changed) - MOST_NAMED} more"] if len(changed) > MOST_NAMED else [])]


def _of_the_audit(run: SeedRun) -> Iterator[str]:
    """What is wrong with the audit of the artifact that is submitted."""
    how = "jgolf audit tries what the score is worth"
    if not run.audit:
        yield f"no {AUDIT_FILE.name}: {how}"
        return
    try:
        passed = parse_json(run.audit)["passed"] is True
    except (ValueError, KeyError, TypeError):
        passed = False
    if not passed:
        yield f"{AUDIT_FILE.name} does not say that every check holds: {how}"


def _of_a_run(run: SeedRun, scorer: ScorerName) -> Iterator[str]:
    """What is wrong with one run: its machine, its seconds, its size."""
    if not run.requirements:
        yield "the run did not keep the versions of its packages; requirements.txt has those of the export"
    if not all(DEVICES.fullmatch(devices) for devices in run.devices or [""]):
        found = ", then ".join(run.devices) or "devices that the log does not name"
        yield f"trained on {found}, expected {CHALLENGE_DEVICES} × H100"
    result = run.result
    calibration_s = result["calibration_s"] if result is not None else 0.0
    if math.isnan(run.train_s):
        yield "the log does not say how long the training took"
    elif run.train_s + calibration_s > CHALLENGE_SECONDS:
        more = f" and {calibration_s:,.1f} s of learning from training text to quantize" if calibration_s else ""
        yield f"{run.train_s:,.1f} s of training{more}, expected at most {CHALLENGE_SECONDS} s"
    if result is None:
        yield "not scored after quantization: export the run"
        return
    if result["tokens"] < result["split_tokens"]:
        yield f"scored on {result['tokens']:,} of {result['split_tokens']:,} validation tokens only"
    devices = f"{result['num_devices']} × {result['device']}"
    if not DEVICES.fullmatch(devices):
        yield f"scored on {devices}, so that the seconds of evaluation on {CHALLENGE_DEVICES} × H100 are not measured"
    seconds = run.scores[scorer].challenge_s
    if seconds > CHALLENGE_SECONDS:
        what = f"{seconds:,.0f} s for FineWeb's text on {CHALLENGE_DEVICES} such devices"
        yield f"the {scorer} evaluation takes {what}, expected at most {CHALLENGE_SECONDS} s"
    limit = min(result["limit_bytes"], LIMIT_BYTES)
    if result["total_bytes"] > limit:
        yield f"artifact and code take {result['total_bytes']:,} bytes, expected at most {limit:,}"
