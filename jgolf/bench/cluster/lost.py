"""A process of a run is killed: what the others say and when they end, and how the run goes on with fewer devices."""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jgolf import config as configs
from jgolf import files
from jgolf.bench.cluster.processes import POLL_S, Machine, Processes
from jgolf.bench.cluster.tokens import write_random_shard
from jgolf.config import Config
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import EXIT_PROCESS_LOST, JgolfError
from jgolf.reading import parse_json
from jgolf.run_dir import METRICS_FILE

CHECKPOINT_EVERY = 10
KILLED_AFTER = 25
"""Steps that are finished when a process is killed, so that a checkpoint is behind the run."""
STEPS = 100_000
"""Of the run, whose end never comes."""
STEPS_AFTER = 5
"""Steps that the resumed run goes further than the one that ended."""
VALIDATION_ROWS = 4
ENDS_WITHIN_S = 90.0


@dataclass(frozen=True)
class Lost:
    """What followed when the last of the processes was killed.

    Attributes:
      killed_after: finished steps that the log held then.
      message: what process 0 said.
      ended_s: seconds until the last of the others had ended.
      resumed_after: step of the checkpoint from which the run went on.
      resumed_on: devices on which it went on, of one process.
      resumed_s: seconds from its start to its first step.
      common_steps: steps that both trained.
      difference: largest difference of their losses, in nats; None without such steps.
      last_step: that the resumed run trained before it was asked to stop.
    """

    killed_after: int
    message: str
    ended_s: float
    resumed_after: int
    resumed_on: int
    resumed_s: float
    common_steps: int
    difference: float | None
    last_step: int


def random_folder(config: Config, folder: Path) -> None:
    """Fills a folder with random tokens to train and validate on, and a tokenizer of the config's size."""
    rng, vocab_size = np.random.default_rng(0), config.model.vocab_size
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, size=size)) for size in rng.integers(2, 9, 2 * vocab_size)]
    texts = (" ".join(rng.choice(words, size=30)) for _ in range(vocab_size // 4))
    files.write_bytes(folder / "random.model", train_tokenizer(texts, vocab_size))
    write_random_shard(folder / "random_train_000000.bin", config, steps=4)
    write_random_shard(folder / "random_val_000000.bin", config, steps=1)


def settings_of_run(config: Config) -> Config:
    """The run that is interrupted: the config's network, batches and optimizer, with many checkpoints."""
    train = dataclasses.replace(
        config.train,
        steps=STEPS,
        time_cap_s=0.0,
        warmdown_steps=0,
        warmdown_fraction=0.0,
        validate_every=0,
        log_every=0,
        checkpoint_every_steps=CHECKPOINT_EVERY,
        checkpoint_every_s=0.0,
    )
    evaluate = dataclasses.replace(config.evaluate, max_tokens=VALIDATION_ROWS * train.seq_len)
    return dataclasses.replace(config, train=train, evaluate=evaluate)


def measure_lost(config: Config, machine: Machine, folder: Path, limit_s: float) -> Lost:
    """Trains with a process a device, kills the last one, and goes on in one process with half of the devices.

    Args:
      config: the settings, those of the network as plain numbers.
      machine: the devices.
      folder: an empty one, for the run.
      limit_s: seconds that all this may take.

    Raises:
      JgolfError: something else happened.
    """
    until, run_dir, settings = time.monotonic() + limit_s, folder / "run", folder / "config.json"
    configs.write_json(settings_of_run(config), settings)
    train = [sys.executable, "-m", "jgolf", "train"]
    command = [*train, str(settings), "--run-dir", str(run_dir)]
    with Processes([command] * machine.devices, machine.environments()) as run:
        _wait_for(f"step {KILLED_AFTER}", lambda: _last_step(run_dir) >= KILLED_AFTER, run, until)
        run.all[-1].kill()
        killed_after, killed_at = _last_step(run_dir), time.monotonic()
        others = run.all[:-1]
        while any(process.poll() is None for process in others):
            if time.monotonic() > min(until, killed_at + ENDS_WITHIN_S):
                raise JgolfError(
                    f"process {machine.devices - 1} was killed, and {time.monotonic() - killed_at:.0f} s later others "
                    "were still running"
                )
            time.sleep(POLL_S)
        ended_s = time.monotonic() - killed_at
        message = _message(run, machine.devices)
    before = _losses(run_dir)
    half = max(1, machine.devices // 2)
    resume = [*train, "--resume", "--run-dir", str(run_dir)]
    with Processes([resume], [machine.environment(half)]) as resumed:
        # Its first act is to take what came after the checkpoint out of the metrics.
        _wait_for("a checkpoint that was read", lambda: "resumed after step" in resumed.output(0), resumed, until)
        resumed_after = int(re.search(r"resumed after step (\d+)", resumed.output(0))[1])
        _wait_for("the next step", lambda: _last_step(run_dir) > resumed_after, resumed, until)
        resumed_s = time.time() - resumed.started_at
        last = max(before) + STEPS_AFTER
        _wait_for(f"step {last}", lambda: _last_step(run_dir) >= last, resumed, until)
        resumed.all[0].send_signal(signal.SIGTERM)
        resumed.wait(max(0.0, until - time.monotonic()))
    after = _losses(run_dir)
    common = sorted(step for step in before.keys() & after.keys() if step > resumed_after)
    return Lost(
        killed_after=killed_after,
        message=message,
        ended_s=ended_s,
        resumed_after=resumed_after,
        resumed_on=half,
        resumed_s=resumed_s,
        common_steps=len(common),
        difference=max((abs(before[step] - after[step]) for step in common), default=None),
        last_step=max(after),
    )


def _message(run: Processes, count: int) -> str:
    """What process 0 said of the lost one, as all others must."""
    told = f"error: process {count - 1} of {count} is lost"
    for index, process in enumerate(run.all[:-1]):
        if process.returncode != EXIT_PROCESS_LOST or told not in run.output(index):
            raise JgolfError(
                f"process {count - 1} was killed: expected {told!r} of the others, but {run.said_last(index)}"
            )
    return next(line for line in run.output(0).splitlines() if told in line).removeprefix("error: ")


def _wait_for(what: str, reached: Callable[[], bool], run: Processes, until: float) -> None:
    while not reached():
        ended = [index for index, process in enumerate(run.all) if process.poll() is not None]
        if ended:
            raise JgolfError(f"before {what}, {run.said_last(ended[0])}")
        if time.monotonic() > until:
            raise JgolfError(f"not done in time: it waited for {what}")
        time.sleep(POLL_S)


def _last_step(run_dir: Path) -> int:
    return max(_losses(run_dir), default=0)


def _losses(run_dir: Path) -> dict[int, float]:
    """Finished steps → training loss in nats, of the lines that are whole."""
    path = run_dir / METRICS_FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = [parse_json(line) for line in lines]
    return {row["step"]: row["train_loss"] for row in rows if "train_loss" in row}
