"""A whole audit: every check of a scorer, of the bytes of its text, and of the artifact's files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jgolf.audit import counts, distributions, tries
from jgolf.audit.checks import Check, mean_rounding
from jgolf.audit.scorer import Audited, heard
from jgolf.audit.sizes import Claim
from jgolf.config import ModelConfig
from jgolf.data.text import Text
from jgolf.data.tokenizer import Tokenizer
from jgolf.errors import DataError
from jgolf.evaluate.score import Score, summarize
from jgolf.watch import Progress, unwatched

TOLD_EACH = 4
"""Targets to be told about for each changed text."""
LESSONS = 2
"""How often learning is switched off."""


@dataclass(frozen=True)
class Plan:
    """How much is tried.

    Attributes:
      try_tokens: tokens, the first of the text, that are scored again and again.
      samples: changed texts.
      every_token: short texts of which every token of the vocabulary is tried as the last one.
      seed: of all that is sampled.
    """

    try_tokens: int
    samples: int
    every_token: int
    seed: int


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
      audited: the scorer.
      score: of the text.
      spread: standard deviation of the logits at a position, the largest of those looked at.
      surprise: nats that the targets looked at are above what the scorer expects; see `tries.Tried`.
      checks: all of them.
    """

    audited: Audited
    score: Score
    spread: float
    surprise: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check that was made holds."""
        return all(check.passed is not False for check in self.checks)

    def plus(self, *checks: Check) -> Audit:
        """The same with further checks."""
        return dataclasses.replace(self, checks=self.checks + checks)

    def as_json(self, **more: Any) -> dict[str, Any]:
        """What audit.json says."""
        score = {name: getattr(self.score, name) for name in ("val_loss", "val_bpb", "tokens", "bytes")}
        rows = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {"passed": self.passed, "scorer": self.audited.name, **score, **more, "checks": rows}


def audit(
    audited: Audited,
    text: Text,
    tokenizer: Tokenizer,
    plan: Plan,
    documents: Sequence[Path] = (),
    say: Callable[[str], object] = lambda what: None,
    progress: Progress = unwatched,
) -> Audit:
    """Tries a scorer on a text; what concerns files is in `jgolf.audit.sizes`.

    Args:
      audited: the scorer.
      text: to count and to score.
      tokenizer: the text's.
      plan: how much is tried.
      documents: see `jgolf.audit.counts.text_bytes`.
      say: is told what comes next.
      progress: shows how far the trying of every token has come.

    Raises:
      DataError: the text is too short, or the documents are not the text's.
    """
    if len(text.tokens) <= audited.shortest:
        raise DataError(
            f"the tokens are too few to try the scorer {audited.name} on: found {len(text.tokens):,}, expected at "
            f"least {audited.shortest + 1:,}"
        )
    bos_id, seed = tokenizer.bos_id, plan.seed
    say("the bytes of the text")
    text_bytes = counts.text_bytes(text, tokenizer, documents)
    say("the score where later tokens are others")
    short = text.first(max(plan.try_tokens, audited.shortest + 1))
    tried = tries.tried(audited, short, bos_id, plan.samples, TOLD_EACH * plan.samples, seed)
    checks = tries.causality(tried)
    say("the score of cut texts")
    checks.append(tries.cut(tried, bos_id))
    checks += distributions.normalisation(tried)
    say("the score where learning stops")
    updates = [*tries.score_before_update(tried, LESSONS, seed), *distributions.plain_network(tried)]
    if plan.every_token:
        say("every token of the vocabulary")
    checks.append(distributions.whole_vocabulary(audited, text, bos_id, plan.every_token, seed, progress))
    say(f"the score of all {len(text.tokens) - 1:,} tokens")
    run = heard(audited, text)
    checks += [*updates, *counts.one_pass(audited, run), *text_bytes]
    score = summarize(run.nats, text.target_bytes, text.target_original)
    return Audit(audited, score, tried.spread, tried.surprise, tuple(checks))


def against_claim(audit: Audit, claim: Claim, kind: str, model: ModelConfig) -> Check:
    """The score against what is said of it.

    Args:
      audit: what was found.
      claim: what is said.
      kind: of the scoring: a name of `claim.scores`, or "" where it is of none of these.
      model: the network as it is scored elsewhere than on a CPU.
    """
    found, said, name = audit.score, claim.scores.get(kind), claim.path.name
    told = f"{found.val_bpb:.6f} bits per byte: difference to {name}"
    if said is None:
        return Check("score", told, 0, None, f"{name} says no score of this scorer with these settings")
    if claim.tokens is not None and not 0 <= claim.tokens - found.tokens < audit.audited.row:
        return Check("score", told, 0, None, f"{name} is about {claim.tokens:,} tokens, not {found.tokens:,}")
    config = audit.audited.config if claim.device == "cpu" else model
    nats = mean_rounding(config, audit.spread, found.tokens, audit.surprise)
    tolerance = nats / math.log(2) * found.tokens / found.bytes
    note = f"{name} says {said:.6f}, scored on {claim.device or 'another device'}"
    return Check("score", told, abs(found.val_bpb - said), tolerance, note)
