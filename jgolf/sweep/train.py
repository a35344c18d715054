"""Trains the runs of a sweep, group by group, and scores them."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgolf import compiling, files
from jgolf import config as configs
from jgolf.artifact.container import pack
from jgolf.artifact.scoring import Artifact
from jgolf.config import Config
from jgolf.data.batches import Prefetcher
from jgolf.data.shards import TokenStream, find_shards
from jgolf.errors import ArtifactError, ConfigError
from jgolf.evaluate.score import Score
from jgolf.evaluate.validation import Validation
from jgolf.model.functional import Params
from jgolf.progress import activity, progress_bar
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import dequantize
from jgolf.run_dir import CONFIG_FILE, METRICS_FILE
from jgolf.sweep.grid import SweepRun, groups
from jgolf.sweep.program import SweepProgram
from jgolf.sweep.results import QUANTIZED, RunResult
from jgolf.train.averages import averaged_params
from jgolf.train.mesh import device_batch_order
from jgolf.train.step import StepMetrics, TrainState

STEPS_IN_FLIGHT = 2

Tell = Callable[[str], None]
Show = Callable[[Iterator[StepMetrics], int, str], Iterator[StepMetrics]]
"""Passes on the metrics of so many steps of what the text names, and shows how far they have come."""


def train_sweep(runs: Sequence[SweepRun], out: Path, at_once: int, tell: Tell, show: Show) -> Iterator[list[RunResult]]:
    """Trains and scores all runs; yields the results of each program when it is done.

    Args:
      runs: the sweep.
      out: folder for each run's settings and metrics.
      at_once: runs that one device trains at a time; 0 for as many as there are.
      tell: takes a line about what was done.
      show: see Show.

    Raises:
      JgolfError: the data or the folder cannot be used.
    """
    compiling.keep_programs()
    devices = jax.local_devices()
    parts = [part for group in groups(runs) for part in _parts(group, at_once * len(devices))]
    for number, part in enumerate(parts, start=1):
        name = f"program {number} of {len(parts)}: {len(part)} run{'s' * (len(part) != 1)}"
        yield _train_part([runs[index] for index in part], part, devices, out, name, tell, show)


def _parts(group: list[int], largest: int) -> list[list[int]]:
    size = largest or len(group)
    return [group[first : first + size] for first in range(0, len(group), size)]


def _train_part(
    runs: Sequence[SweepRun],
    numbers: Sequence[int],
    devices: Sequence[jax.Device],
    out: Path,
    name: str,
    tell: Tell,
    show: Show,
) -> list[RunResult]:
    config = runs[0].config
    validation = Validation.open(config)
    stream = TokenStream(find_shards(config.data.dir, "train"), config.model.vocab_size)
    order = device_batch_order(config, 1)
    folders = [f"runs/{number:03d}" for number in numbers]
    for run, folder in zip(runs, folders, strict=True):  # before the work: it tells whether `out` can be written to
        configs.write_json(run.config, out / folder / CONFIG_FILE)
    started = time.perf_counter()
    program = SweepProgram(runs, devices)
    with activity(f"{name}: compiling"):
        program.compile(order.rows(stream, 0, slice(None)))
    ready = time.perf_counter()
    history: list[tuple[StepMetrics, float]] = []
    with Prefetcher(lambda step: order.rows(stream, step, slice(None)), 0) as batches:
        for metrics in show(_steps(program, batches, config.train.steps), config.train.steps, name):
            history.append((metrics, time.perf_counter() - ready))
    train_s = time.perf_counter() - ready
    results = []
    for index, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        state = program.run_state(index)
        what = f"scoring run {index + 1} of {len(runs)}"
        scores, artifact_bytes = _scores(validation, run.config, state, tell, what)
        _write_metrics(out / folder, history, index, scores["raw"])
        loss = float(history[-1][0].loss[index]) if history else float("nan")
        results.append(RunResult(run, loss, scores, artifact_bytes, folder))
    score_s = time.perf_counter() - ready - train_s
    where = f"{program.mesh.size} × {devices[0].device_kind}"
    tell(
        f"{name} on {where}: {ready - started:.1f} s to compile, {train_s:.1f} s to train "
        f"({train_s / len(runs):.1f} s a run), {score_s:.1f} s to score"
    )
    return results


def _steps(program: SweepProgram, batches: Iterator[Any], steps: int) -> Iterator[StepMetrics]:
    """Trains, and yields the metrics of each step as arrays of the runs, a little later, so that no device waits."""
    in_flight: deque[StepMetrics] = deque()
    for _ in range(steps):
        in_flight.append(program.step(next(batches)))
        if len(in_flight) > STEPS_IN_FLIGHT:
            yield jax.device_get(in_flight.popleft())
    while in_flight:
        yield jax.device_get(in_flight.popleft())


def _scores(
    validation: Validation, config: Config, state: TrainState, tell: Tell, what: str
) -> tuple[dict[str, Score], int | None]:
    """Of the raw weights and of the exported average before and after quantization; bytes of its artifact."""

    def score(weights: str, params: Params) -> None:
        progress = progress_bar(f"{what}, {weights}")
        scores[weights] = validation.standard(params, config.evaluate.max_tokens, progress=progress)

    scores: dict[str, Score] = {}
    average = config.average.export
    score("raw", state.params)
    try:
        params = averaged_params(state, average)
        if average != "raw":
            score(average, params)
        stored = quantize(params, config.quantize)
        score(QUANTIZED, dequantize(stored))
    except (ConfigError, ArtifactError) as error:
        # SWA never began, or the run diverged; that is no reason to lose the other results
        tell(f"seed {config.train.seed}: not scored: {error}")
        return scores, None
    artifact = Artifact(config.name, config.model, config.train.seq_len, validation.tokenizer.fingerprint, stored)
    return scores, len(pack(stored, artifact.metadata()))


def _write_metrics(folder: Path, history: Sequence[tuple[StepMetrics, float]], index: int, raw: Score) -> None:
    """The metrics of one run, as a run's own folder has them."""
    rows = [_metrics_row(metrics, index, elapsed_s) for metrics, elapsed_s in history]
    last_s = history[-1][1] if history else 0.0
    rows.append({"step": len(history), "val_loss": raw.val_loss, "val_bpb": raw.val_bpb, "train_time_s": last_s})
    files.write_text(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def _metrics_row(metrics: StepMetrics, index: int, elapsed_s: float) -> dict[str, Any]:
    one = jax.tree.map(lambda values: np.asarray(values)[index].item(), metrics)
    return {
        "step": one.step,
        "train_loss": one.loss,
        "grad_norm": one.grad_norm,
        "learning_rate_multiplier": one.learning_rate_multiplier,
        "muon_momentum": one.muon_momentum,
        "late_qat": bool(one.late_qat),
        "swa_count": one.swa_count,
        "train_time_s": elapsed_s,
    }
