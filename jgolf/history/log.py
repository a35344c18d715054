"""Logs with the challenge's lines, in every form that its scripts have printed them.

A line is about a step ("step:500/20000 train_loss:2.3955 train_time:42105ms", "500/20000 train_loss: 3.3 train_time:
0.9m tok/s: 7700000"), or it is a score of the finished model, which the words before its figures name
("final_int6_sliding_window_exact val_loss:1.897 val_bpb:1.1235"), or it tells one of `FACTS`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgolf.errors import JgolfError
from jgolf.history.record import TRAIN_COLUMNS, VALIDATION_COLUMNS, Columns, FinalScore, Rows, Told, check_bpb
from jgolf.reading import WIDE_MARKS, Unreadable, parse_integer, parse_number, read_lines

LARGEST_STEP = 1 << 53
"""Up to which float64 holds every integer."""
LONGEST_LINE = 1 << 16
"""Characters of a line that are looked at."""
MINUTES_ROUNDED_S = 3.0
"""By how much a time in minutes with one decimal may be off."""

_COLORS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")
"""What makes a terminal show colours, and erase a line before a progress bar is drawn anew."""
_NUMBER = r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9.,])|[0-9.]*[0-9](?:e[+-]?[0-9]+)?|nan\b|inf\b)"
_STEP = re.compile(
    r"\b(?:step|iter|iteration)(?:\s*[:=#]\s*|\s+)(?P<step>[0-9]+)(?:\s*/\s*[0-9]+)?"
    r"|(?:^|[\])>|]\s*)(?P<bare>[0-9]+)\s*/\s*[0-9]+",
    re.IGNORECASE,
)
_PROGRESS = re.compile(r"[0-9]\s*/\s*[0-9]")
_FIELD = re.compile(
    rf"(?<![\w/])(?P<name>[a-z_]+(?:/[a-z]+)?)(?:\s*[:=]\s*|\s+)(?P<value>{_NUMBER})\s?(?P<unit>ms|min|[smh])?(?![\w/])",
    re.IGNORECASE,
)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_FIELDS = {
    "train_loss": ("train_loss", "train/loss", "training_loss"),
    "loss": ("loss",),
    "val_loss": ("val_loss", "val/loss", "valid_loss", "validation_loss"),
    "val_bpb": ("val_bpb", "val/bpb", "bpb", "validation_bpb"),
    "train_time_s": ("train_time", "training_time", "elapsed", "elapsed_time", "time", "t"),
    "step_avg_s": ("step_avg",),
    "tokens_a_second": ("tok/s", "tok_s", "tokens/s", "tok/sec", "tokens/sec"),
    "grad_norm": ("grad_norm", "gnorm"),
    "learning_rate_multiplier": ("lr_scale", "lr_mul", "lr_mult", "lr_multiplier"),
    "eval_s": ("eval_time", "evaluation_time", "elapsed", "elapsed_time", "time"),
    "stride": ("stride",),
}
"""What a figure means → the names that it goes by, in lower case."""
_WEIGHTS = (
    (r"pre.?quant|un.?quantized", "pre_quantization"),
    (r"quantized|post.?quant|int ?\d|round ?trip|gptq|artifact|zlib|zstd|brotli|lzma", "quantized"),
    (r"\bema\b|\bswa\b|averaged?\b|\bbf16\b|\bfp32\b", "pre_quantization"),
    (r"\braw\b", "raw"),
    (r"\bfinal\b|\blegal\b|\bsubmission\b", "quantized"),
)
"""Words of a score → which weights it is of; the first that is found, quantized ones where only `_SCORERS` is."""
_SCORERS = (
    (r"\bttt|test.?time|\badapt|\blora\b|\bslot\b", "adapted"),
    (r"\bsliding|\bstride|\bs\d+\b", "sliding"),
)
"""Words of a score → how it was scored; rows of the sequence length where there is none of them."""
_NAME = re.compile(r"[\w+:-]+(?: [\w+:-]+){0,3}")
"""What a score is called that has no loss beside it; more words are a sentence, in a script's comments, say."""
_MODE = re.compile(r"eval_mode\s*[:=]\s*(\w+)", re.IGNORECASE)
"""How the scores that follow are made, whatever they are called."""
_UNDER_WAY = re.compile(r"[0-9]\s*/\s*[0-9]|\b(?:chunk|batch|epoch|running|partial|progress)\b")
"""In the words of a figure that is not final yet."""
_EVENTS = (
    (r"\bswa\b", "SWA"),
    (r"\bqat\b", "late QAT"),
    (r"\bloop|recurrence", "loop"),
)
_BEGINS = re.compile(r"\bstart(?:s|ed)?\b|\benabled?\b|\bactivated?\b|\bbegins?\b|\bon\b")
_BYTES = r"\s*[:=]\s*(?P<value>[0-9][0-9,]*(?:\.[0-9]+)?)\s*(?P<unit>bytes|kB|MB|MiB|B)\b"
FACTS = (
    ("total_bytes", rf"total[ _](?:(?:submission|artifact)[ _])?size{_BYTES}", False),
    ("total_bytes", rf"total[ _](?:(?:submission|artifact)[ _])?size\s*[^\s:=][^:=]{{0,80}}{_BYTES}", True),
    ("artifact_bytes", rf"serialized model\s*[^\s:=][^:=]{{0,80}}{_BYTES}", True),
    ("code_bytes", rf"code size(?: \(uncompressed\))?{_BYTES}", False),
    ("code_bytes", rf"code size(?: \(compressed\)|_compressed){_BYTES}", True),
    ("peak_memory_bytes", rf"peak memory(?: allocated)?{_BYTES}", True),
    ("num_params", r"\b(?:model_params|num_params)\s*[:=]\s*(?P<value>[0-9][0-9,]*)", True),
    ("num_devices", r"\bworld_size\s*[:=]\s*(?P<value>[0-9]+)", True),
    ("batch_tokens", r"\btrain_batch_tokens\s*[:=]\s*(?P<value>[0-9]+)", True),
    ("seed", r"^\s*seed\s*[:=]\s*(?P<value>[0-9]+)\b", True),
    ("device", r"\|\s*[0-9]+\s+(?P<value>NVIDIA \w[\w ]{0,80}?)\s{2,}(?:On|Off)\b", True),
    ("device", r" tokens a step in sequences of [0-9]+, [0-9]+ × (?P<value>.{1,80}?) in [0-9]+ process", True),
)
"""Name in a result, where it stands in a line, and whether it goes before what an earlier line said of it."""
_FACTS = [(name, re.compile(pattern, re.IGNORECASE), wins) for name, pattern, wins in FACTS]
_UNITS = {"bytes": 1, "b": 1, "kb": 1e3, "mb": 1e6, "mib": 1 << 20}
_MEANINGS = {name: [one for one, names in _FIELDS.items() if name in names] for name in sum(_FIELDS.values(), ())}


class _Score(NamedTuple):
    """A line with a score of the finished model."""

    kind: str
    """One of SCORE_KINDS."""
    score: FinalScore
    digits: int
    """Of its bits per byte, after the point."""


def read_log(path: Path) -> Told:
    """What a log tells.

    Raises:
      JgolfError: it cannot be read, or a line of a training run holds something that is no number.
    """
    log = _Log()
    for line in lines_of(path):
        if line.number == 1 and line.content.startswith(WIDE_MARKS):
            raise JgolfError(f"{path}: begins as UTF-16 does: convert it, for instance with `iconv -f UTF-16 -t UTF-8`")
        for text in _COLORS.sub(
            "", line.content.decode(errors="replace")
        ).splitlines():  # a progress bar ends its lines otherwise
            try:
                log.add(text[:LONGEST_LINE], f"{path}:{line.number}")
            except Unreadable as error:
                raise JgolfError(f"{path}:{line.number}: {error}: {text.strip():.80}") from None
    return log.told()


def lines_of(path: Path):
    """The lines of a log or a metrics.jsonl; raises JgolfError where it cannot be read."""
    try:
        yield from read_lines(path)
    except OSError as error:
        raise JgolfError(
            f"{path}: cannot be read: {error.strerror or error}; expected a run's folder or a training log"
        ) from None
    except Unreadable as error:
        raise JgolfError(f"{path}: {error}; expected a training log or a metrics.jsonl") from None


class _Log:
    """What the lines of a log have told so far."""

    def __init__(self):
        self._train, self._validation = Rows(TRAIN_COLUMNS), Rows(VALIDATION_COLUMNS)
        self._events: dict[str, int] = {}
        self._scores: list[_Score] = []
        self._result: dict[str, Any] = {}
        self._coarse: list[tuple[int, float, float]] = []  # step, seconds rounded to minutes, tokens a second
        self._end: tuple[int, float] | None = None
        self._mode = ""

    def add(self, text: str, where: str) -> None:
        """Reads a line; `where` names it in errors."""
        fields = _fields(text)
        if "val_bpb" in fields:
            self._add_scored(text, fields, where)
        if "train_loss" in fields or ("loss" in fields and "val_bpb" not in fields):
            self._add_train(text, fields)
        if fields.keys() & {"val_bpb", "train_loss", "val_loss", "loss"}:
            return
        if mode := _MODE.search(text):
            self._mode = mode[1].lower()
        head = _STEP.search(text)
        if head:
            self._add_mark(text, _step(head), _seconds(fields, "train_time_s"))
        for name, pattern, wins in _FACTS:
            match = pattern.search(text)
            if match and (wins or name not in self._result):
                self._result[name] = _fact(name, match)

    def _add_train(self, text: str, fields: dict[str, re.Match]) -> None:
        head = _STEP.search(text)
        if not head:
            return
        step = _step(head)
        elapsed_s = _seconds(fields, "train_time_s")
        if math.isnan(elapsed_s):
            elapsed_s = step * _seconds(fields, "step_avg_s")
        elif fields["train_time_s"]["unit"].lower() in ("m", "min", "h"):
            self._coarse.append((step, elapsed_s, _value(fields, "tokens_a_second")))
        names = ("grad_norm", "learning_rate_multiplier")
        loss = _value(fields, "train_loss" if "train_loss" in fields else "loss")
        row = {"train_loss": loss, "train_time_s": elapsed_s, **{name: _value(fields, name) for name in names}}
        self._train.add({"step": step, **row})

    def _add_scored(self, text: str, fields: dict[str, re.Match], where: str) -> None:
        """A validation during training, or a score of the finished model."""
        loss = _value(fields, "val_loss" if "val_loss" in fields else "loss")
        bpb = _value(fields, "val_bpb")
        names = [name for name in ("val_loss", "loss", "train_loss", "val_bpb") if name in fields]
        label = text[: min(fields[name].start() for name in names)]
        head = _STEP.search(label)
        words = (label[: head.start()] + " " + label[head.end() :] if head else label).lower()
        is_named = len(names) > 1 or _NAME.fullmatch(words.strip())
        kind = _kind(words, "sliding" if "stride" in fields else self._mode) if is_named else None
        if kind is None and head:
            row = {
                "step": _step(head),
                "val_loss": loss,
                "val_bpb": bpb,
                "train_time_s": _seconds(fields, "train_time_s"),
            }
            check_bpb(row, where)
            self._validation.add(row)
        elif kind is not None and not (head and head["bare"]) and not _UNDER_WAY.search(words):
            check_bpb({"val_bpb": bpb}, where)
            self._scores.append(_Score(kind, FinalScore(loss, bpb), len(fields["val_bpb"]["value"].partition(".")[2])))
            seconds = _seconds(fields, "eval_s")
            if math.isfinite(seconds):
                self._result[f"{kind}_eval_s".removeprefix("standard_")] = seconds

    def _add_mark(self, text: str, step: int, elapsed_s: float) -> None:
        """The step at which something begins, or at which training ends."""
        words = text.lower().replace("_", " ")
        if _BEGINS.search(words):
            for pattern, name in _EVENTS:
                if re.search(pattern, words):
                    self._events.setdefault(name, step)
                    return
        if "stop" in words and math.isfinite(elapsed_s):
            self._end = step, elapsed_s

    def told(self) -> Told:
        train, validation = self._train.columns(), self._validation.columns()
        self._refine_minutes(train)
        _fill_times(train, validation, self._end)
        if self._end:
            self._result["step"], self._result["train_time_s"] = self._end
        return Told(train, validation, self._events, _scores(self._scores), self._result)

    def _refine_minutes(self, train: Columns) -> None:
        """Times that were rounded to a tenth of a minute, from tokens a second, which were not.

        Tokens since the start = tokens a second × seconds, so each such line bounds the tokens a step; where all
        bounds meet, the log's own figure or else their middle gives seconds.
        """
        known = [one for one in self._coarse if one[0] > 0 and one[2] > 0 and math.isfinite(one[2])]
        if not known:
            return
        steps, seconds, speeds = np.array(known, np.float64).T
        low = np.max((seconds - MINUTES_ROUNDED_S) * speeds / steps)
        high = np.min((seconds + MINUTES_ROUNDED_S) * speeds / steps)
        if low > high:
            return
        tokens = self._result.get("batch_tokens", 0)
        tokens = tokens if low <= tokens <= high else (max(low, 0.0) + high) / 2
        at = np.searchsorted(train["step"], steps)
        train["train_time_s"][at] = steps * tokens / speeds


def _fill_times(train: Columns, validation: Columns, end: tuple[int, float] | None) -> None:
    """Training time of validations that do not tell it: between the times of steps that are told, at their pace."""
    told = {0.0: 0.0, **({float(end[0]): end[1]} if end else {})}
    for columns in (train, validation):
        told |= {step: time for step, time in zip(columns["step"], columns["train_time_s"], strict=True) if time >= 0}
    if len(told) < 2:
        return
    steps = np.array(sorted(told))
    seconds = np.array([told[step] for step in steps])
    before = np.clip(np.searchsorted(steps, validation["step"]) - 1, 0, len(steps) - 2)
    pace = np.diff(seconds) / np.diff(steps)
    times = seconds[before] + pace[before] * (validation["step"] - steps[before])
    validation["train_time_s"] = np.where(np.isnan(validation["train_time_s"]), times, validation["train_time_s"])


def _scores(found: list[_Score]) -> dict[str, FinalScore]:
    """For each kind the score with the most digits, of these the last.

    Some scripts print the score of a richer kind once more under the name of a plainer one: no score of that kind.
    """
    best: dict[str, _Score] = {}
    for one in found:
        richer = _richer(one.kind)
        if any(other.kind in richer and _is_same(one, other) for other in found):
            continue
        if one.kind not in best or one.digits >= best[one.kind].digits:
            best[one.kind] = one
    return {kind: one.score for kind, one in best.items()}


def _richer(kind: str) -> tuple[str, ...]:
    return {"standard": ("sliding", "adapted"), "sliding": ("adapted",)}.get(kind, ())


def _is_same(one: _Score, other: _Score) -> bool:
    """Whether two scores are alike as far as the one with fewer digits tells."""
    apart = 0.51 * 10.0 ** -min(one.digits, other.digits) if one.digits != other.digits else 0.0
    return abs(one.score.val_bpb - other.score.val_bpb) <= apart


def _kind(label: str, mode: str) -> str | None:
    """One of SCORE_KINDS for the words before a score; None where they name none.

    Args:
      label: the words in lower case.
      mode: how it was scored where they do not say; "" where that is not known.
    """
    words = label.replace("_", " ").replace("-", " ")
    weights = next((name for pattern, name in _WEIGHTS if re.search(pattern, words)), None)
    scorer = next((name for pattern, name in _SCORERS if re.search(pattern, words)), None)
    if weights is None and scorer is None:
        return None
    scorer = scorer or next((name for pattern, name in _SCORERS if re.search(pattern, mode.replace("_", " "))), None)
    if weights == "raw":
        return "validation" if scorer is None else None
    if weights == "pre_quantization":
        return weights if scorer is None else f"{weights}_{scorer}"
    return scorer or "standard"


def _fields(text: str) -> dict[str, re.Match]:
    """What a figure of a line means → where it stands; the first of several."""
    found: dict[str, re.Match] = {}
    for match in _FIELD.finditer(text):
        for meaning in _MEANINGS.get(match["name"].lower(), ()):
            found.setdefault(meaning, match)
    return found


def _value(fields: dict[str, re.Match], name: str) -> float:
    return parse_number(fields[name]["value"].replace(",", "")) if name in fields else math.nan


def _seconds(fields: dict[str, re.Match], name: str) -> float:
    """A time; NaN where it has no unit."""
    unit = fields[name]["unit"] if name in fields else None
    return _value(fields, name) * _SECONDS[unit.lower()] if unit else math.nan


def _fact(name: str, match: re.Match) -> int | str:
    text = match["value"].replace(",", "") if name != "device" else match["value"]
    if name == "device":
        return text
    if "unit" not in match.re.groupindex:
        return parse_integer(text)
    return round(parse_number(text) * _UNITS[match["unit"].lower()])


def _step(head: re.Match) -> int:
    step = parse_integer(head["step"] or head["bare"])
    if step > LARGEST_STEP:
        raise Unreadable(f"step {step} is too large, expected at most {LARGEST_STEP}")
    return step
