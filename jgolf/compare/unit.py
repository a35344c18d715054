"""What the losses of runs are compared in: nats a token, or bits per byte where their tokens are different ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jgolf.errors import JgolfError
from jgolf.report.history import FinalScore, History

SAME_TEXT = 3e-4
"""Relative difference of bytes a token, above which two texts differ; the digits of a log leave half of that."""


@dataclass(frozen=True)
class Unit:
    """What losses are compared in: nats a token, or bits per byte where the sides' tokens are others.

    Attributes:
      bytes_per_token: of B, where the comparison is in bits per byte; one of these is bytes_per_token × ln 2 nats a
        token of B. None for nats a token.
    """

    bytes_per_token: float | None = None

    def nats(self, score: FinalScore) -> float:
        """The loss in nats a token, of B's where A's are others."""
        return score.val_loss if self.bytes_per_token is None else score.val_bpb * self.nats_per_bit_per_byte

    @property
    def nats_per_bit_per_byte(self) -> float:
        """Nats a token of B that one bit per byte is, in a comparison in these."""
        return self.bytes_per_token * math.log(2)


class _Scored(NamedTuple):
    """What a score is over, where that is known."""

    tokens: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens of {self.bytes:,} bytes"


def _scored(run: History, name: str) -> _Scored | None:
    """What one of the run's scores is over; None where the run does not say."""
    prefix = "standard_" if name == "standard" else ""
    if name == "validation" or not {f"{prefix}tokens", f"{prefix}bytes"} <= run.result.keys():
        return None
    return _Scored(run.result[f"{prefix}tokens"], run.result[f"{prefix}bytes"])


def unit_of(sides: Sequence[Sequence[History]], name: str) -> Unit:
    """Nats a token where all runs scored the same tokens; bits per byte where their tokens are others of the same text.

    Raises:
      JgolfError: the text was another, or it is not known how much of it each run scored; or the runs of one side
        have different tokens.
    """
    runs = [*sides[0], *sides[1]]
    scored = {run.path: found for run in runs if (found := _scored(run, name)) is not None}
    ratios = [(run.scores[name].val_loss / math.log(2) / run.scores[name].val_bpb, run.path) for run in runs]
    known = sorted((ratio, str(path)) for ratio, path in ratios if math.isfinite(ratio) and ratio > 0)
    ratios_differ = bool(known) and known[-1][0] > (1 + SAME_TEXT) * known[0][0]
    amounts = {found: path for path, found in reversed(scored.items())}
    if len(amounts) <= 1 and not ratios_differ:
        return Unit()
    if len(scored) == len(runs) and len(amounts) > 1 and len({found.bytes for found in amounts}) == 1:
        return _bits_per_byte(sides, name)
    different = [f"{path}: {found}" for found, path in amounts.items()] if len(amounts) > 1 else []
    if ratios_differ:
        different += [f"{path}: {ratio:.4f} bytes a token" for ratio, path in (known[0], known[-1])]
    unknown = [str(run.path) for run in runs if run.path not in scored]
    if unknown:
        why = (
            "nats a token compare on the same tokens only, bits per byte on the same bytes only, and how many "
            f"{unknown[0]} scored is not known; export the runs, and compare the sliding scores of their artifacts"
        )
    else:
        why = (
            "score them on the same validation split, or where their tokenizers differ on the same bytes of its "
            "original text"
        )
    raise JgolfError(f"the runs were not scored on the same text: {'; '.join(different)}; {why}")


def _bits_per_byte(sides: Sequence[Sequence[History]], name: str) -> Unit:
    """The unit for runs that scored the same bytes in different tokens."""
    for side, runs in zip("AB", sides, strict=True):
        amounts = {_scored(run, name): run.path for run in reversed(runs)}
        if len(amounts) > 1:
            listed = "; ".join(f"{path}: {found}" for found, path in amounts.items())
            raise JgolfError(
                f"{side} has runs of different tokenizers: {listed}; expected one recipe on each side, with the seeds "
                "as the sample"
            )
    baseline = _scored(sides[1][0], name)
    return Unit(baseline.bytes / baseline.tokens)
