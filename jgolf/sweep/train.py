"""Trains the runs of a sweep, group by group, and scores them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from jgolf.data.fingerprint import data_fingerprint
from jgolf.data.run_data import training_tokens
from jgolf.errors import ArtifactError, ConfigError
from jgolf.evaluate.nats import scoring_model
from jgolf.evaluate.validation import Validation
from jgolf.history import FinalScore
from jgolf.model.functional import Params
from jgolf.progress import activity, counted, progress_bar
from jgolf.quantize.calibration import quantize_run
from jgolf.quantize.stored import dequantize
from jgolf.run_dir import CONFIG_FILE, METRICS_FILE
from jgolf.sweep.grid import SweepRun, groups, trainings
from jgolf.sweep.program import SweepProgram
from jgolf.sweep.results import QUANTIZED, RunResult
from jgolf.train.averages import averaged_params
from jgolf.train.memory import check_room
from jgolf.train.mesh import device_batch_order
from jgolf.train.step import StepMetrics, TrainState

STEPS_IN_FLIGHT = 2

Tell = Callable[[str], None]
Keep = Callable[[RunResult], None]
"""Takes a result; called in one thread, not the main one, for one result after another."""
Show = Callable[[Iterator[StepMetrics], int, str], Iterator[StepMetrics]]
"""Passes on the metrics of so many steps of what the text names, and shows how far they have come."""


def train_sweep(runs: Mapping[str, SweepRun], out: Path, at_once: int, tell: Tell, show: Show, keep: Keep) -> None:
    """Trains and scores all runs, and packs the artifacts of some while the next ones train.

    A result is kept as soon as its artifact is packed. When an error or Ctrl-C ends the training, every run
    that was scored by then is packed and kept before that is raised.

    Args:
      runs: the sweep: folder in `out` for a run's settings and metrics → the run.
      out: the sweep's folder.
      at_once: runs that one device trains at a time; 0 for as many as there are.
      tell: takes a line about what was done.
      show: see Show.
      keep: see Keep.

    Raises:
      JgolfError: the data or the folder cannot be used.
    """
    compiling.keep_programs()
    members = list(runs.items())
    found = groups([run for _, run in members])
    for group in found:
        check_room(members[group[0]][1].config)
    packing: list[Future[None]] = []
    with ThreadPoolExecutor(1) as packer:  # nothing else: two threads that compute break XLA's capture of CUDA graphs
        for number, group in enumerate(found, start=1):
            name = f"program {number} of {len(found)}"
            for trained in _train_group([members[index] for index in group], out, at_once, name, tell, show):
                for result, artifact in _scored(trained, out, tell):
                    packing.append(packer.submit(_pack_and_keep, result, artifact, keep))
                _raise_error_of(one for one in packing if one.done())
        with activity("packing the last runs"):
            _raise_error_of(packing)


def _pack_and_keep(result: RunResult, artifact: Artifact | None, keep: Keep) -> None:
    if artifact is not None:
        packed = pack(artifact.stored, artifact.metadata())
        result = dataclasses.replace(result, artifact_bytes=len(packed))
    keep(result)


def _raise_error_of(packing: Iterable[Future[None]]) -> None:
    """Waits for them, and raises the first error among them."""
    for one in packing:
        one.result()


@dataclass(frozen=True)
class _Trained:
    """States that trained side by side, with the folders and runs that end in each, and the data's fingerprint."""

    states: list[TrainState]
    runs: list[list[tuple[str, SweepRun]]]
    data: str
    history: list[tuple[StepMetrics, float]]
    validation: Validation


def _train_group(
    members: Sequence[tuple[str, SweepRun]], out: Path, at_once: int, name: str, tell: Tell, show: Show
) -> Iterator[_Trained]:
    config = members[0][1].config
    validation = Validation.open(config)
    stream = training_tokens(config)
    order = device_batch_order(config.train, 1)
    data = data_fingerprint(config.data)
    for folder, run in members:  # before the work: it tells whether `out` can be written to
        configs.write_json(run.config, out / folder / CONFIG_FILE)
    different = [[members[index] for index in same] for same in trainings([run for _, run in members])]
    program = SweepProgram([same[0][1] for same in different], jax.local_devices(), at_once)
    where = f"{program.mesh.size} × {jax.local_devices()[0].device_kind}"
    for first in range(0, len(different), program.size):
        part = range(first, min(first + program.size, len(different)))
        what = f"{name}: {counted(len(part), 'run')}"
        if len(part) < len(different):
            what += f" from {first + 1} of {len(different)}"
        started = time.perf_counter()
        with activity(f"{what}: {'compiling' if first == 0 else 'starting'}"):
            program.begin(part)
            if first == 0:
                program.compile(order.rows(stream, 0, slice(None)))
        ready = time.perf_counter()
        history = []
        with Prefetcher(lambda step: order.rows(stream, step, slice(None)), 0) as batches:
            steps = _steps(program, batches, config.train.steps, len(part))
            for metrics in show(steps, config.train.steps, what):
                history.append((metrics, time.perf_counter() - ready))
        train_s = time.perf_counter() - ready
        tell(
            f"{what} on {where}: {ready - started:.1f} s to start, {train_s:.1f} s to train "
            f"({train_s / len(part):.1f} s a run)"
        )
        states = [program.run_state(index) for index in range(len(part))]
        yield _Trained(states, [different[index] for index in part], data, history, validation)


def _scored(trained: _Trained, out: Path, tell: Tell) -> Iterator[tuple[RunResult, Artifact | None]]:
    """Scores the runs; yields each one's result, but for its artifact's size, and its artifact if there is one."""
    for index, (state, same) in enumerate(zip(trained.states, trained.runs, strict=True)):
        loss = float(trained.history[-1][0].loss[index]) if trained.history else float("nan")
        unquantized: dict[str, FinalScore] = {}
        for folder, run in same:
            scores, artifact = _scores(trained.validation, run.config, state, unquantized, tell)
            _write_metrics(out / folder, trained.history, index, scores["raw"])
            yield RunResult(run, loss, scores, None, folder, trained.data), artifact


def _steps(program: SweepProgram, batches: Iterator[Any], steps: int, runs: int) -> Iterator[StepMetrics]:
    """Trains, and yields the metrics of each step, arrays [runs], a little later, so that no device waits."""

    def oldest() -> StepMetrics:
        return jax.tree.map(lambda values: values[:runs], jax.device_get(in_flight.popleft()))

    in_flight: deque[StepMetrics] = deque()
    for _ in range(steps):
        in_flight.append(program.step(next(batches)))
        if len(in_flight) > STEPS_IN_FLIGHT:
            yield oldest()
    while in_flight:
        yield oldest()


def _scores(
    validation: Validation, config: Config, state: TrainState, unquantized: dict[str, FinalScore], tell: Tell
) -> tuple[dict[str, FinalScore], Artifact | None]:
    """Of the raw weights and of the exported average before and after quantization; the latter's artifact.

    `unquantized` keeps the scores of the state's weights for the other runs that end in it.
    """

    def standard(weights: str, params: Params) -> FinalScore:
        show = progress_bar(f"scoring seed {config.train.seed}, {weights}")
        score = validation.standard(params, config.evaluate.max_tokens, progress=show)
        return FinalScore(score.val_loss, score.val_bpb)

    def before_quantization(weights: str, params: Params) -> FinalScore:
        if weights not in unquantized:
            unquantized[weights] = standard(weights, params)
        return unquantized[weights]

    average = config.average.export
    scores = {"raw": before_quantization("raw", state.params)}
    try:
        params = averaged_params(state, average)
        scores[average] = before_quantization(average, params)
        stored = quantize_run(config, scoring_model(config.model), params)
        scores[QUANTIZED] = standard(QUANTIZED, dequantize(stored))
    except (ConfigError, ArtifactError) as error:
        # SWA never began, or the run diverged; that is no reason to lose the other results
        tell(f"seed {config.train.seed}: not scored: {error}")
        return scores, None
    fingerprint = validation.tokenizer.fingerprint
    return scores, Artifact.of_run(config, stored, fingerprint)


def _write_metrics(folder: Path, history: Sequence[tuple[StepMetrics, float]], index: int, raw: FinalScore) -> None:
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
