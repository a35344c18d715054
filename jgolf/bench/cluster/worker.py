"""A process that compiles a training step for all devices of its run and measures it; of several, the first reports.

Arguments: pairs of a file that says what to measure (`Work`) and a file to write what was found (`Measured`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax

from jgolf import compiling, files
from jgolf import config as configs
from jgolf.bench.communication import Exchange, compiled_exchanges
from jgolf.bench.running import RunningStep, looped_from
from jgolf.bench.timing import Timing, measure_in_turn
from jgolf.bench.trace import CollectiveTime, collective_time
from jgolf.config import Config
from jgolf.data.run_data import training_stream
from jgolf.errors import JgolfError
from jgolf.train.distributed import joined
from jgolf.train.launch import launch_from_environment
from jgolf.train.mesh import BatchSource, make_mesh

PLAIN, LOOPED = "plain", "looped"


@dataclass(frozen=True)
class Work:
    """What to measure of a training step.

    Attributes:
      config: a file with the settings, those of the network as plain numbers.
      data: the folder of the shards.
      losses: training steps whose losses are reported, from the first; where the loop comes later, the second half
        of them runs it. At least one step is trained.
      runs: how often to time the step; 0 leaves it out.
      calls: steps in a run.
      collectives: also trace what the devices exchange.
      started_at: when the process was started, in seconds of the system's clock.
    """

    config: str
    data: str
    losses: int
    runs: int
    calls: int
    collectives: bool
    started_at: float

    def write(self, path: Path) -> None:
        """As JSON."""
        files.write_text(path, json.dumps(dataclasses.asdict(self)))


@dataclass
class Measured:
    """What was found so far; None where it was not asked for, or the process has not come to it.

    Attributes:
      first_step_s: seconds from the start of the process to the end of its first step.
      losses: of the first training steps, in nats.
      peak_gb: most memory that a device used up to then.
      step_ms: "plain" and, where the loop comes later, "looped": how long a step takes.
      exchanges: what the compiled program has the devices exchange in a step.
      collectives: how long that takes.
    """

    first_step_s: float | None = None
    losses: list[float] | None = None
    peak_gb: float | None = None
    step_ms: dict[str, Timing] | None = None
    exchanges: list[Exchange] | None = None
    collectives: CollectiveTime | None = None

    @classmethod
    def read(cls, path: Path) -> Measured:
        """What a process has written, nothing if it has not come so far."""
        if not path.exists():
            return cls()
        content = json.loads(path.read_text())
        if content["step_ms"] is not None:
            content["step_ms"] = {name: Timing(**timing) for name, timing in content["step_ms"].items()}
        if content["exchanges"] is not None:
            content["exchanges"] = [Exchange(**one) for one in content["exchanges"]]
        if content["collectives"] is not None:
            content["collectives"] = CollectiveTime(**content["collectives"])
        return cls(**content)


def measure(work: Work, out: Path | None) -> None:
    """Measures and, where there is a file to write, keeps it up to date."""
    found = Measured()

    def report() -> None:
        if out is not None:
            files.write_text(out, json.dumps(dataclasses.asdict(found)))

    config, mesh = configs.read_json(Path(work.config)), make_mesh()
    source = BatchSource(config, training_stream(config, Path(work.data)), mesh)
    running = RunningStep.compiled(config, mesh, source(0))
    jax.block_until_ready(first := running())
    found.first_step_s = time.time() - work.started_at
    report()
    losses = [first.metrics.loss, *_later_losses(config, running, source, work.losses)]
    found.losses = [float(loss) for loss in losses][: work.losses] or None
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    found.peak_gb = max(peaks) / 1e9 or None
    running.set_step(1)
    report()
    if work.runs:
        steps, looped = {PLAIN: running}, looped_from(config)
        if looped is not None:
            steps[LOOPED] = running.after(looped)
        found.step_ms = measure_in_turn(steps, work.runs, calls=work.calls)
        del steps
        report()
    if work.collectives:
        found.exchanges = compiled_exchanges(running.step.compiled.as_text())
        found.collectives = collective_time(running)
        report()


def _later_losses(config: Config, running: RunningStep, source: BatchSource, count: int) -> list[jax.Array]:
    """Losses of the steps after the first, not waited for."""
    losses, looped = [], looped_from(config)
    for step in range(1, count):
        if looped is not None and step == count // 2:
            running.set_step(looped)
        losses.append(running(source(step)).metrics.loss)
    return losses


def main(arguments: list[str]) -> None:
    """Measures one piece of work after the other, on all devices of the run that this process belongs to."""
    with joined(launch_from_environment()) as peers:
        compiling.keep_programs()
        for work, out in zip(arguments[::2], arguments[1::2], strict=True):
            measure(Work(**json.loads(Path(work).read_text())), Path(out) if peers.is_first else None)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except JgolfError as error:
        sys.exit(f"error: {error}")
