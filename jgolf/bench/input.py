"""`jgolf bench input`: is the step as fast on batches from disk as on one that stays on the device?"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jgolf.bench.report import Figure, Report, command_line, publish, timed
from jgolf.bench.running import RunningStep, bench_config, describe, one_device
from jgolf.bench.timing import measure, measure_in_turn
from jgolf.config import Config
from jgolf.data.batches import Prefetcher
from jgolf.data.run_data import training_stream
from jgolf.data.shards import TokenStream, find_shards, write_shard
from jgolf.train.mesh import BatchSource

FROM_DISK = "step on batches from disk"
RESIDENT = "step on one resident batch"
RANDOM_STEPS = 16
"""Steps' worth of tokens in a random shard."""


def bench_input(
    config: str = "pr592",
    sequences: int = 0,
    data: Path | None = None,
    runs: int = 10,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Time the training step on batches read ahead from shards, beside one on a batch that stays on the device.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      sequences: Sequences of a step; 0 for what the config gives one device.
      data: Folder of the shards; the config's own by default, or random tokens where there is none.
      runs: How often to measure.
      json: Print JSON instead of a table.
    """
    command = command_line("input", config=config, sequences=sequences, data=data, runs=runs)
    resolved = bench_config(config, sequences)
    if data is not None:
        find_shards(data, "train")  # before anything is compiled
    publish(measure_input(resolved, RunningStep.compiled(resolved), data, runs, command), json)


def measure_input(config: Config, running: RunningStep, data: Path | None, runs: int, command: str) -> Report:
    """Times a step of `config` that runs, on both kinds of batches in turn, then the reader alone.

    Raises:
      DataError: the folder, where there is one, holds no shards that can be used.
    """
    with opened_stream(config, data) as (stream, name):
        source = BatchSource(config, stream, one_device())
        resident = source(0)
        with Prefetcher(source, 0) as batches:
            steps = {RESIDENT: lambda: running(resident), FROM_DISK: lambda: running(next(batches))}
            timings = measure_in_turn(steps, runs)
        numbers = itertools.count()
        reader = measure(lambda: source(next(numbers)), runs)
    figures = [timed(name, timing) for name, timing in timings.items()]
    excess = timings[FROM_DISK].median_ms / timings[RESIDENT].median_ms - 1
    figures.append(Figure("more, from disk", 100 * excess, "%"))
    figures += [timed("the reader alone, a batch", reader), Figure("batches a second", 1000 / reader.median_ms, "")]
    return Report("input", f"{describe(config)}, from {name}", command, figures)


@contextlib.contextmanager
def opened_stream(config: Config, data: Path | None) -> Iterator[tuple[TokenStream, str]]:
    """Yields the training tokens and their folder's name: `data`, the config's own, or random ones while it lasts."""
    vocab_size = config.model.vocab_size
    folder = data or Path(config.data.dir)
    if data is not None or folder.is_dir():
        yield training_stream(config, folder), str(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        shard = Path(temporary) / "random_train_000000.bin"
        write_shard(shard, np.random.default_rng(0).integers(vocab_size, size=RANDOM_STEPS * config.train.batch_tokens))
        yield TokenStream([shard], vocab_size), "a shard of random tokens"
