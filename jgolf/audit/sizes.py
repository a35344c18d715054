"""Bytes of an artifact and its code, counted from the files, against what is said of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jgolf.artifact import submission
from jgolf.artifact.seeds import exported_with_hints
from jgolf.artifact.size import LIMIT_BYTES
from jgolf.audit.checks import Check
from jgolf.config import AdaptedConfig, HintsConfig
from jgolf.errors import ArtifactError
from jgolf.reading import read_json
from jgolf.run_dir import RESULT_FILE

SUMMARY_FILE = "submission.json"
"""What a submission says of itself."""


@dataclass(frozen=True)
class Claim:
    """What is said of an artifact.

    Attributes:
      path: the file that says it.
      sizes: "artifact", "code", "total" → bytes.
      scores: name of a kind of scoring, as in result.json → bits per byte.
      tokens: that were scored; None where it does not say.
      stride: of the sliding score; None where it does not say.
      device: that scored it; "" where it does not say.
      has_hints: whether the adapted score is one with hints.
    """

    path: Path
    sizes: Mapping[str, int]
    scores: Mapping[str, float]
    tokens: int | None = None
    stride: int | None = None
    device: str = ""
    has_hints: bool = False


def read_claims(artifact: Path) -> list[Claim]:
    """What the files beside an artifact say: a run's result.json, and a submission's submission.json.

    Raises:
      ArtifactError: a file is damaged or says no such thing.
    """
    claims = []
    for name, read in ((RESULT_FILE.name, _of_result), (SUMMARY_FILE, _of_summary)):
        path = artifact.with_name(name)
        if not path.is_file():
            continue
        try:
            claim = read(path, read_json(path))
            numbers = [*claim.sizes.values(), *claim.scores.values(), claim.tokens or 0, claim.stride or 0]
            if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
                raise ValueError("a size or a score is not a number")
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise ArtifactError(f"{path}: says no sizes and scores, or is damaged: {error!s:.200}") from None
        claims.append(claim)
    return claims


def _of_result(path: Path, found: Mapping[str, Any]) -> Claim:
    sizes = {name: found[f"{name}_bytes"] for name in ("artifact", "code", "total")}
    scores = {"standard": found["val_bpb"], "sliding": found["sliding_val_bpb"]}
    if "adapted_val_bpb" in found:
        scores["adapted"] = found["adapted_val_bpb"]
    device, has_hints = str(found.get("device", "")), exported_with_hints(found.get("options", []))
    return Claim(path, sizes, scores, found["tokens"], found["sliding_stride"], device, has_hints)


def _of_summary(path: Path, found: Mapping[str, Any]) -> Claim:
    """Of several seeds it says means, which are no score of this artifact."""
    sizes = {name: found[f"bytes_{own}"] for name, own in (("artifact", "model"), ("code", "code"), ("total", "total"))}
    own = {} if len(found["seeds"]) > 1 else {found["scorer"]: found["val_bpb"]}
    has_hints = exported_with_hints(found.get("export", []))
    return Claim(path, sizes, {"standard": found["standard_val_bpb"], **own}, has_hints=has_hints)


def sizes(
    artifact: Path,
    claims: Sequence[Claim],
    adapted: AdaptedConfig | None = None,
    hints: HintsConfig | None = None,
) -> list[Check]:
    """The files' bytes, against what is said and against the limit.

    Args:
      artifact: the packed model; beside it, in a submission, its code.
      claims: what is said of it.
      adapted, hints: settings of test-time training and of its hints, whose code counts where there is said to be a
        score by it, and by both.
    """
    is_adapted = any("adapted" in claim.scores for claim in claims)
    has_hints = any(claim.has_hints for claim in claims)
    code, where, extra = _code(artifact, adapted if is_adapted else None, hints if has_hints else None)
    counted = {"artifact": artifact.stat().st_size, "code": code}
    counted["total"] = sum(counted.values())
    checks = []
    for claim in claims:
        for name, num_bytes in counted.items():
            said, note = claim.sizes[name], ""
            if name == "code" and said != num_bytes:
                note = f"{claim.path.name} says {said:,}, {where} has {num_bytes:,}: export again"
            told = f"{num_bytes:,} bytes of {name if name != 'total' else 'both'}: difference to {claim.path.name}"
            checks.append(Check("size", told, abs(num_bytes - said), 0, note))
    if not claims:
        note = f"neither {RESULT_FILE.name} nor {SUMMARY_FILE} is beside {artifact.name}"
        checks.append(Check("size", "what is said of the size", 0, None, note))
    told = f"{artifact.name} and {where}, bytes"
    return [*checks, *extra, Check("size", told, counted["total"], LIMIT_BYTES)]


def _code(artifact: Path, adapted: AdaptedConfig | None, hints: HintsConfig | None) -> tuple[int, str, list[Check]]:
    """Bytes of the code beside an artifact, or of this package's; what it is; and whether it is what it says.

    Raises:
      ArtifactError: the code beside it is no zip.
    """
    path, counted = artifact.with_name(submission.SCORE_NAME), artifact.with_name(submission.TRAIN_NAME)
    if not path.is_file():
        return submission.code_bytes(adapted, hints), "the code of this package", []
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {entry.filename for entry in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{path}: not the code of a submission: {error}") from None
    others = names - {"__main__.py", submission.SOURCES_NAME}
    others |= {entry.name for entry in artifact.parent.glob("*.py")} - {counted.name}
    listed = ", ".join(sorted(others)[:5])
    check = Check("size", f"code beside {path.name}, or in it under other names: files", len(others), 0, listed)
    num_bytes = len(data) + (counted.stat().st_size if counted.is_file() else 0)
    return num_bytes, f"{path.name} and {counted.name}" if counted.is_file() else path.name, [check]
