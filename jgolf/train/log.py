"""What a run writes as it goes: the challenge's log lines and one JSON object a step."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
from pathlib import Path
from typing import IO, Any

from jgolf import files
from jgolf.errors import JgolfError
from jgolf.progress import counted
from jgolf.reading import Unreadable, excerpt, is_number, parse_json
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
        lines = _lines_up_to(run_dir / LOG_FILE, resume_step) if resume_step else []
        metrics = _metrics_up_to(run_dir / METRICS_FILE, resume_step) if resume_step else []
        self._said = {line.split()[0].decode(errors="replace") for line in lines if line.strip()}
        validations = [row for _, row in metrics if "val_loss" in row]
        self._validated = {row["step"] for row in validations}
        self.last_bpb = next((row["val_bpb"] for row in reversed(validations) if is_number(row.get("val_bpb"))), None)
        for name, kept in ((LOG_FILE, lines), (METRICS_FILE, [line for line, _ in metrics])):
            files.write_bytes(run_dir / name, b"".join(line + b"\n" for line in kept))
            # Unbuffered: a process that is killed has written its last line.
            self._files[name] = open(run_dir / name, "ab", buffering=0)  # noqa: SIM115 – closed by close()

    def line(self, text: str) -> None:
        """A line on the console and in train.log."""
        if self._is_main:
            self.say(text)
            self._write(LOG_FILE, text)

    def say(self, text: str) -> None:
        """A line on the console alone: what is true on this machine only, such as a path. A log may be published."""
        if self._is_main:
            with contextlib.suppress(OSError):  # a console that takes no more is no reason to stop
                print(text, flush=True)

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

    def validation(
        self,
        step: int,
        steps: int,
        val_loss: float,
        val_bpb: float,
        elapsed_s: float,
        original_bpb: float | None = None,
    ) -> None:
        """The challenge's line for a validation; the metrics have the bits per byte of the original text, too."""
        self.line(f"step:{step}/{steps} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} {_times(step, elapsed_s)}")
        original = {} if original_bpb is None else {"original_bpb": original_bpb}
        self.metrics(step=step, val_loss=val_loss, val_bpb=val_bpb, **original, train_time_s=elapsed_s)
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


def _lines_up_to(path: Path, step: int) -> list[bytes]:
    """The lines of a log that are about no later step."""
    found = []
    for line in _whole_lines(path):
        match = re.search(rb"\bstep:([0-9]{1,18})\b", line)
        if not match or int(match[1]) <= step:
            found.append(line)
    return found


def _metrics_up_to(path: Path, step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a metrics.jsonl that are about no later step, and what each says.

    Lines that are no step's metrics are left out. That is said, and the file as it was is kept beside the new one.
    """
    found, strange = [], []
    for number, line in enumerate(_whole_lines(path), start=1):
        row = _row(line)
        if row is not None and row["step"] <= step:
            found.append((line, row))
        elif row is None and line.strip():
            strange.append((number, line))
    if strange:
        copies = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in itertools.count(1))
        copy = next(name for name in copies if not name.exists())
        files.write_bytes(copy, path.read_bytes())
        (number, line), total = strange[0], counted(len(strange), "line")
        print(
            f"note: {path}:{number}: not the metrics of a step: {excerpt(line)}; left out ({total} in all); {copy} is "
            "the file as it was",
            file=sys.stderr,
        )
    return found


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, without one that was being written when the run was killed; none where there is no file."""
    try:
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise JgolfError(f"{path}: cannot be read: {error.strerror or error}; move it away to go on without") from None


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line of metrics says; None where it is no object with a step."""
    try:
        row = parse_json(line, allow_nan=True)
    except Unreadable:
        return None
    return row if isinstance(row, dict) and is_number(row.get("step")) and row["step"] >= 0 else None
