"""What the losses of runs are compared in: nats a token, or bits per byte where their tokens are different ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jgolf.errors import JgolfError
from jgolf.history import History

SAME_TEXT = 3e-4
"""Relative difference of bytes a token, above which two texts differ; the digits of a log leave half of that."""


class _Scored(NamedTuple):
    """What a score is over, where that is known."""

    tokens: int
    bytes: int
    """As the challenge counts them."""
    original: int | None
    """Bytes of the original text; None where they were not counted."""

    def __str__(self) -> str:
        original = f", {self.original:,} of the original text" if self.original else ""
        return f"{self.tokens:,} tokens of {self.bytes:,} bytes{original}"


@dataclass(frozen=True)
class Unit:
    """What losses are compared in: nats a token, or bits per byte where the sides' tokens are others.

    Attributes:
      name: of the scores that are compared.
      tokens: that B scored, where the comparison is in bits per byte; None for nats a token.
      bytes: that both sides scored, there.
      are_original: whether these are bytes of the original text, or else as the challenge counts them.
    """

    name: str
    tokens: int | None = None
    bytes: int = 0
    are_original: bool = False

    @property
    def bytes_per_token(self) -> float:
        """Of B, in a comparison in bits per byte."""
        return self.bytes / self.tokens

    @property
    def nats_per_bit_per_byte(self) -> float:
        """Nats a token of B that one bit per byte is, in a comparison in these."""
        return self.bytes_per_token * math.log(2)

    def nats(self, run: History) -> float:
        """The run's loss in nats a token, of B's where A's are others: its nats in all, over the tokens of B."""
        loss = run.scores[self.name].val_loss
        return loss if self.tokens is None else loss * _scored(run, self.name).tokens / self.tokens

    def bits(self, run: History) -> float:
        """The run's bits per byte; of the bytes that are compared where B's tokens are others."""
        return run.scores[self.name].val_bpb if self.tokens is None else self.nats(run) / self.nats_per_bit_per_byte


def _scored(run: History, name: str) -> _Scored | None:
    """What one of the run's scores is over; None where the run does not say."""
    prefix = "standard_" if name in ("standard", "pre_quantization") else ""
    if name == "validation" or not {f"{prefix}tokens", f"{prefix}bytes"} <= run.result.keys():
        return None
    tokens, num_bytes = run.result[f"{prefix}tokens"], run.result[f"{prefix}bytes"]
    return _Scored(tokens, num_bytes, run.result.get(f"{prefix}original_bytes")) if min(tokens, num_bytes) > 0 else None


def unit_of(sides: Sequence[Sequence[History]], name: str) -> Unit:
    """Nats a token where all runs scored the same tokens; bits per byte where their tokens are others of the same text.

    It is the same text where all scored as many bytes: of the original where every run counted these, otherwise as the
    challenge counts them.

    Raises:
      JgolfError: the text was another, or it is not known how much of it each run scored; or the runs of one side
        have different tokens.
    """
    runs = [*sides[0], *sides[1]]
    scored = {run.path: found for run in runs if (found := _scored(run, name)) is not None}
    ratios = [(run.scores[name].val_loss / math.log(2) / run.scores[name].val_bpb, run.path) for run in runs]
    known = sorted((ratio, str(path)) for ratio, path in ratios if math.isfinite(ratio) and ratio > 0)
    ratios_differ = bool(known) and known[-1][0] > (1 + SAME_TEXT) * known[0][0]
    amounts = {(found.tokens, found.bytes): (path, found) for path, found in reversed(scored.items())}
    if len(amounts) <= 1 and not ratios_differ:
        return Unit(name)
    unknown = [str(run.path) for run in runs if run.path not in scored]
    if not unknown and len(amounts) > 1:
        are_original = all(found.original for found in scored.values())
        counts = {found.original if are_original else found.bytes for found in scored.values()}
        if len(counts) == 1:
            _check_sides(sides, name)
            return Unit(name, _scored(sides[1][0], name).tokens, *counts, are_original)
    different = [f"{path}: {found}" for path, found in amounts.values()] if len(amounts) > 1 else []
    if ratios_differ:
        different += [f"{path}: {ratio:.4f} bytes a token" for ratio, path in (known[0], known[-1])]
    if unknown:
        why = (
            "nats a token compare on the same tokens only, bits per byte on the same bytes only, and how many "
            f"{unknown[0]} scored is not known; export the runs, and compare the sliding scores of their artifacts"
        )
    else:
        why = (
            "score them on the same validation split, or where their tokenizers differ on the same bytes of its "
            "original text, counted for every run"
        )
    raise JgolfError(f"the runs were not scored on the same text: {'; '.join(different)}; {why}")


def _check_sides(sides: Sequence[Sequence[History]], name: str) -> None:
    """Raises JgolfError where a side has runs of different tokens."""
    for side, runs in zip("AB", sides, strict=True):
        amounts = {(found := _scored(run, name))[:2]: f"{run.path}: {found}" for run in reversed(runs)}
        if len(amounts) > 1:
            raise JgolfError(
                f"{side} has runs of different tokenizers: {'; '.join(amounts.values())}; expected one recipe on each "
                "side, with the seeds as the sample"
            )
