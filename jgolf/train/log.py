"""What a run writes as it goes: the challenge's log lines and one JSON object a step."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jgolf import files
from jgolf.errors import JgolfError
from jgolf.reading import parse_json
from jgolf.run_dir import LOG_FILE, METRICS_FILE
from jgolf.train.writers import Writer

ALWAYS_LOGGED_STEPS = 10


class RunLog:
    """train.log and metrics.jsonl of a run, and the console.

    Only the first of several processes writes; the others' logs are silent.
    """

    def __init__(self, run_dir: str | Path, is_main: bool = True, resume_step: int = 0):
        """Opens the files; those of a resumed run lose what came after `resume_step`, to be written again."""
        self._is_main = is_main
        self._files: dict[str, IO[bytes]] = {}
        self._writers: list[Writer] = []
        self._said: set[str] = set()
        self._validated: set[float] = set()
        self.last_bpb: float | None = None
        """Of the last validation, where there was one; the first process's."""
        if not is_main:
            return
        run_dir = Path(run_dir)
        lines = _lines_up_to(run_dir / LOG_FILE, resume_step, _step_of_line) if resume_step else []
        metrics = _lines_up_to(run_dir / METRICS_FILE, resume_step, _step_of_metrics) if resume_step else []
        self._said = {line.split()[0] for line in lines if line.strip()}
        self._validated = {_step_of_metrics(line) for line in metrics if "val_loss" in line}
        self.last_bpb = next((bpb for line in reversed(metrics) if (bpb := _bpb_of_metrics(line)) is not None), None)
        for name, kept in ((LOG_FILE, lines), (METRICS_FILE, metrics)):
            files.write_bytes(run_dir / name, "".join(f"{line}\n" for line in kept).encode(errors="surrogateescape"))
            # Unbuffered: a process that is killed has written its last line.
            self._files[name] = open(run_dir / name, "ab", buffering=0)  # noqa: SIM115 – closed by close()

    def line(self, text: str) -> None:
        """A line on the console and in train.log."""
        if self._is_main:
            print(text, flush=True)
            self._write(LOG_FILE, text)

    def line_once(self, event: str, text: str) -> None:
        """The line `event text`, unless the run, resumed or not, has said so before."""
        if event not in self._said:
            self._said.add(event)
            self.line(f"{event} {text}")

    def metrics(self, **values: float) -> None:
        """An object in metrics.jsonl, and for the writers that are attached."""
        if self._is_main:
            self._write(METRICS_FILE, json.dumps(values))
            for writer in self._writers:
                writer.write(values)

    def attach(self, *writers: Writer) -> None:
        """Passes all further metrics on to these writers too, and closes them in the end."""
        self._writers += writers

    def train_step(self, step: int, steps: int, loss: float, elapsed_s: float, every: int) -> None:
        """The challenge's line for a training step, where one is due."""
        if step <= ALWAYS_LOGGED_STEPS or (every and step % every == 0):
            self.line(f"step:{step}/{steps} train_loss:{loss:.4f} {_times(step, elapsed_s)}")

    def validation(self, step: int, steps: int, val_loss: float, val_bpb: float, elapsed_s: float) -> None:
        """The challenge's line for a validation."""
        self.line(f"step:{step}/{steps} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} {_times(step, elapsed_s)}")
        self.metrics(step=step, val_loss=val_loss, val_bpb=val_bpb, train_time_s=elapsed_s)
        self._validated.add(step)
        self.last_bpb = val_bpb

    def holds_validation(self, step: int) -> bool:
        """Whether the run has been validated after `step` steps; known to the first process only."""
        return step in self._validated

    def _write(self, name: str, text: str) -> None:
        try:
            self._files[name].write(f"{text}\n".encode())
        except OSError as error:
            path = self._files[name].name
            raise JgolfError(
                f"{path}: cannot be written: {error.strerror}; make room, then go on with --resume from the newest "
                "checkpoint"
            ) from error

    def close(self) -> None:
        """Closes the writers and the files."""
        for writer in self._writers:
            try:
                writer.close()
            except Exception as error:  # of any kind, a library's own; the run's own files tell the same
                print(f"note: {type(writer).__name__} cannot be closed: {error}", file=sys.stderr)
        for file in self._files.values():
            file.close()


def _times(step: int, elapsed_s: float) -> str:
    return f"train_time:{1000 * elapsed_s:.0f}ms step_avg:{1000 * elapsed_s / max(step, 1):.2f}ms"


def _lines_up_to(path: Path, step: int, step_of: Callable[[str], float]) -> list[str]:
    """The lines of a file that are about no later step, without one that was being written when the run was killed.

    Bytes that are no UTF-8 are kept as they are.
    """
    try:
        text = path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
    except OSError as error:
        raise JgolfError(f"{path}: cannot be read: {error.strerror or error}; move it away to go on without") from None
    *whole, _ = text.split("\n")
    return [line for line in whole if step_of(line) <= step]


def _step_of_line(line: str) -> float:
    match = re.search(r"\bstep:([0-9]{1,18})\b", line)
    return int(match[1]) if match else 0


def _step_of_metrics(line: str) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf  # not ours
    return step if isinstance(step, int | float) and step == step else math.inf


def _bpb_of_metrics(line: str) -> float | None:
    try:
        bpb = parse_json(line, allow_nan=True)["val_bpb"]
    except (ValueError, KeyError, TypeError):
        return None
    return bpb if isinstance(bpb, float) else None
