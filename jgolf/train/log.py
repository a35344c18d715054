"""What a run writes as it goes: the challenge's log lines and one JSON object a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

LOG_FILE = "train.log"
METRICS_FILE = "metrics.jsonl"
ALWAYS_LOGGED_STEPS = 10


class RunLog:
    """train.log and metrics.jsonl of a run, and the console.

    Only the first of several processes writes; the others' logs are silent.
    """

    def __init__(self, run_dir: str | Path, is_main: bool = True, resume_step: int = 0):
        """Opens the files; those of a resumed run lose what came after `resume_step`, to be written again."""
        self._is_main = is_main
        self._files: dict[str, IO[str]] = {}
        if not is_main:
            return
        run_dir = Path(run_dir)
        if resume_step:
            _drop_later_metrics(run_dir / METRICS_FILE, resume_step)
        for name in (LOG_FILE, METRICS_FILE):
            self._files[name] = open(run_dir / name, "a" if resume_step else "w", buffering=1)

    def line(self, text: str) -> None:
        """A line on the console and in train.log."""
        if self._is_main:
            print(text, flush=True)
            print(text, file=self._files[LOG_FILE])

    def metrics(self, **values: float) -> None:
        """An object in metrics.jsonl."""
        if self._is_main:
            print(json.dumps(values), file=self._files[METRICS_FILE])

    def train_step(self, step: int, steps: int, loss: float, elapsed_s: float, every: int) -> None:
        """The challenge's line for a training step, where one is due."""
        if step <= ALWAYS_LOGGED_STEPS or (every and step % every == 0):
            self.line(f"step:{step}/{steps} train_loss:{loss:.4f} {_times(step, elapsed_s)}")

    def validation(self, step: int, steps: int, val_loss: float, val_bpb: float, elapsed_s: float) -> None:
        """The challenge's line for a validation."""
        self.line(f"step:{step}/{steps} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} {_times(step, elapsed_s)}")
        self.metrics(step=step, val_loss=val_loss, val_bpb=val_bpb, train_time_s=elapsed_s)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def _times(step: int, elapsed_s: float) -> str:
    return f"train_time:{1000 * elapsed_s:.0f}ms step_avg:{1000 * elapsed_s / max(step, 1):.2f}ms"


def _drop_later_metrics(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the line that was being written when the run was killed
    path.write_text("".join(f"{line}\n" for line in kept))
