"""A run as a person at a terminal sees it: the log lines pass by, the present state stays below them."""

from __future__ import annotations

import resource
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn

from jgolf.progress import plain_console, progress_of, text_column

SPEED_STEPS = 20
"""Steps that the speed is the mean of."""


class LiveDisplay:
    """Step, loss, bits per byte, tokens a second, time left and memory, kept up to date. A `Writer` of metrics."""

    def __init__(
        self,
        console: Console,
        steps: int,
        time_cap_s: float,
        tokens_per_step: int,
        first_step: int,
        last_bpb: float | None = None,
    ):
        """Shows itself at once.

        Args:
          console: the terminal.
          steps: last step of the run.
          time_cap_s: training time after which it ends, 0 for none.
          tokens_per_step: over all devices.
          first_step: steps that a resumed run has behind it.
          last_bpb: bits per byte of its last validation.
        """
        self._steps, self._time_cap_s, self._tokens_per_step = steps, time_cap_s, tokens_per_step
        self._recent: deque[tuple[int, float]] = deque(maxlen=SPEED_STEPS + 1)
        self._fields = {"loss": "loss –", "bpb": _bpb(last_bpb), "speed": "", "left": "", "memory": ""}
        columns = [BarColumn(bar_width=16), MofNCompleteColumn()]
        columns += [text_column(f"{{task.fields[{name}]}}") for name in self._fields]
        self._progress = progress_of(console, *columns)
        self._task = self._progress.add_task("step", total=steps, completed=first_step, **self._fields)
        self._progress.start()

    def write(self, metrics: Mapping[str, float]) -> None:
        step, elapsed_s = int(metrics["step"]), float(metrics["train_time_s"])
        if "val_bpb" in metrics:
            self._fields["bpb"] = _bpb(metrics["val_bpb"])
        if "train_loss" in metrics:
            self._recent.append((step, elapsed_s))
            self._fields["loss"] = f"loss {metrics['train_loss']:.4f}"
            self._fields |= self._pace(step, elapsed_s)
            self._fields["memory"] = f"{memory_bytes() / 1e9:.1f} GB"
        self._progress.update(self._task, completed=step, **self._fields)

    def validation(self, batches: Iterable, total: int) -> Iterator:
        """Passes validation batches on and shows how far they have come, in the place of the last score."""
        for done, batch in enumerate(batches):
            self._progress.update(self._task, bpb=f"val {100 * done // total} %")
            yield batch
        self._progress.update(self._task, bpb=self._fields["bpb"])

    def _pace(self, step: int, elapsed_s: float) -> dict[str, str]:
        first_step, first_s = self._recent[0]
        if step == first_step or elapsed_s <= first_s:
            return {}
        step_s = (elapsed_s - first_s) / (step - first_step)
        left_s = (self._steps - step) * step_s
        to = "end"
        if self._time_cap_s and self._time_cap_s - elapsed_s < left_s:
            left_s, to = max(0.0, self._time_cap_s - elapsed_s), "cap"
        minutes, seconds = divmod(round(left_s), 60)
        return {"speed": f"{self._tokens_per_step / step_s:,.0f} tok/s", "left": f"{minutes}:{seconds:02} to {to}"}

    def close(self) -> None:
        self._progress.stop()


def _bpb(bpb: float | None) -> str:
    return "" if bpb is None else f"bpb {bpb:.4f}"


def live_display(
    steps: int, time_cap_s: float, tokens_per_step: int, first_step: int, last_bpb: float | None = None
) -> list[LiveDisplay]:
    """The display where there is a terminal to show it on; else none, and the log lines are all there is."""
    console = plain_console()
    shown = console.is_terminal and not console.is_dumb_terminal
    return [LiveDisplay(console, steps, time_cap_s, tokens_per_step, first_step, last_bpb)] if shown else []


def memory_bytes() -> int:
    """Memory in use on the first device, or this process's largest on a CPU."""
    in_use = (jax.local_devices()[0].memory_stats() or {}).get("bytes_in_use")
    if in_use is not None:
        return in_use
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
