"""What stands above all else: the best scores, what they cost, and what the challenge allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jgolf.artifact.size import LIMIT_BYTES
from jgolf.evaluate.challenge import CHALLENGE_SECONDS
from jgolf.history import SCORE_KINDS
from jgolf.report.groups import Against, Group, best_group, score_of, signed
from jgolf.report.page import Bar, Card
from jgolf.report.tables import (
    duration,
    evaluation_seconds,
    mean,
    original_bpb,
    quantization_gap,
    total_bytes,
    train_seconds,
)

MOST_CARDS = 6


def verdict(groups: Sequence[Group], kind: str) -> str:
    """The best score and whose it is; `kind` is the one that is compared."""
    best = best_group(groups)
    if best is None:
        return "No score that is a number has been logged."
    of = "" if len(groups) == 1 else f", {groups[best].name}"
    seeds = f", mean of {len(groups[best].bpb)} seeds" if len(groups[best].bpb) > 1 else ""
    return f"Best score: {groups[best].mean:.4f} bits per byte ({SCORE_KINDS[kind]}{of}{seeds})."


def cards(groups: Sequence[Group], baseline: int, differences: Sequence[Against]) -> list[Card]:
    """The best groups, the best first, and the baseline; `differences` are what they are against it."""
    scored = [place for place, group in enumerate(groups) if math.isfinite(group.mean)]
    chosen = sorted(scored, key=lambda place: groups[place].mean)[:MOST_CARDS]
    if baseline in scored and baseline not in chosen:
        chosen[-1] = baseline
    return [_card(place, groups[place], differences[place].told if len(groups) > 1 else "") for place in chosen]


def _card(place: int, group: Group, told: str) -> Card:
    seeds = f", mean of {len(group.bpb)} seeds" if len(group.bpb) > 1 else ""
    interval = f" ± {group.half:.4f}" if math.isfinite(group.half) else ""
    lines = []
    original = mean([original_bpb(run, group.kind) for run in group.runs])
    if math.isfinite(original):
        lines.append(f"{original:.4f} over the bytes of the original text")
    gap = mean([quantization_gap(run) for run in group.runs])
    if math.isfinite(gap):
        before = mean([score_of(run, "pre_quantization") for run in group.runs])
        lines.append(f"quantization costs {signed(gap)} from {before:.4f}")
    kind = f"bits per byte, {SCORE_KINDS[group.kind]}{seeds}"
    return Card(place, place, group.name, f"{group.mean:.4f}{interval}", kind, lines, told, _bars(group))


def _bars(group: Group) -> list[Bar]:
    """Bytes and seconds of what the challenge allows; of several seeds the most."""
    bars = []
    limit = max(int(run.result.get("limit_bytes", LIMIT_BYTES)) for run in group.runs)
    size = _most([total_bytes(run) for run in group.runs])
    if math.isfinite(size):
        what = "" if "total_bytes" in group.runs[0].result else " without code"
        bars.append(_bar(f"{size:,.0f} of {limit:,} bytes{what}", size, limit))
    trained = _most([train_seconds(run) for run in group.runs])
    if math.isfinite(trained):
        bars.append(_bar(f"{trained:,.0f} of {CHALLENGE_SECONDS} s of training, {duration(trained)}", trained))
    scored = [evaluation_seconds(run) for run in group.runs]
    seconds = _most([seconds for seconds, _ in scored])
    if math.isfinite(seconds):
        where = next(where for found, where in scored if found == seconds)
        bars.append(_bar(f"{seconds:,.1f} of {CHALLENGE_SECONDS} s of evaluation, {where}", seconds))
    return bars


def _bar(text: str, amount: float, limit: float = CHALLENGE_SECONDS) -> Bar:
    return Bar(text, round(min(100.0, 100 * amount / limit), 2), amount > limit)


def _most(values: Sequence[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=math.nan)
