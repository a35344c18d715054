"""The training loop: what happens when, on the host."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jgolf.config import Config
from jgolf.data.batches import Prefetcher
from jgolf.errors import EXIT_INTERRUPTED, EXIT_OK, DivergedError
from jgolf.optim.schedule import fraction, loop_is_on
from jgolf.progress import progress_bar
from jgolf.train.checkpoint import FOLDER
from jgolf.train.display import live_display
from jgolf.train.distributed import joined
from jgolf.train.launch import Launch
from jgolf.train.mesh import StepReport
from jgolf.train.run import FirstParams, Run, own_run_dir, prepared_run
from jgolf.train.signals import StopSignals, how_to_resume
from jgolf.train.step import StepMetrics
from jgolf.train.storage import whole_steps
from jgolf.train.writers import WriterName, open_writers
from jgolf.watch import Progress, unwatched

STEPS_IN_FLIGHT = 2
"""Steps that are started before the report of an earlier one is read, so that the device never waits."""
BATCHES_BETWEEN_AGREEMENTS = 16
"""Validation batches after which several processes ask one another whether to stop."""


def train(
    config: Config,
    run_dir: str | Path,
    first_params: FirstParams | None = None,
    resume: bool = False,
    launch: Launch | None = None,
    writers: Sequence[WriterName] = (),
    skip_damaged: bool = False,
) -> int:
    """Trains to the end, or until asked to stop; returns the exit code.

    Raises:
      JgolfError: the settings or files cannot be used.
      DivergedError: the loss became infinite or NaN.
    """
    run_dir = Path(run_dir)
    with (
        StopSignals(run_dir) as signals,
        joined(launch) as peers,
        own_run_dir(run_dir, resume, peers),
        prepared_run(config, run_dir, first_params, resume, peers, skip_damaged) as run,
    ):
        if not peers.is_first:
            return Loop(run, signals).run()
        train, first = run.config.train, run.first_step
        run.log.attach(*open_writers(writers, run_dir, run.config, first))
        displays = live_display(train.steps, train.time_cap_s, run.source.tokens_per_step, first, run.log.last_bpb)
        run.log.attach(*displays)
        return Loop(run, signals, displays[0].validation if displays else progress_bar("validation")).run()


class AskedToStop(Exception):
    """Ends a validation."""


class Loop:
    """Steps, validations and checkpoints of one run.

    Decisions that concern all processes are taken from reports that every process holds alike,
    `STEPS_IN_FLIGHT` steps after the fact, so all take the same ones at the same step and none waits for
    another's clock. Checkpoints and logs are the first process's own affair: for these it reads a report as
    early as it likes, but decides nothing from it before its time.
    """

    def __init__(self, run: Run, signals: StopSignals, show_validation: Progress = unwatched):
        self._run = run
        self._show_validation = show_validation
        self._config = run.config
        self._signals = signals
        self._is_alone = jax.process_count() == 1
        self._state = run.state
        self._started = run.first_step
        self._validated_step = run.first_step if run.first_is_validated else None
        self._scored = ""  # which bytes the last validation was over
        self._in_flight: deque[StepReport] = deque()
        self._undecided: deque[StepReport] = deque()
        self._looped = self._loop_is_on(max(run.first_step - 1, 0), run.clock.elapsed_s)
        self._asked_to_stop = False
        self._cap_reached = self._reaches_cap(run.first_step, run.clock.elapsed_s)
        self._saved_step = run.first_step
        self._saved_s = run.clock.elapsed_s

    def run(self) -> int:
        """Runs to the end; returns the exit code."""
        with Prefetcher(self._run.source, self._started) as batches:
            if self._is_alone:
                self._signals.on_stop(batches.close)  # do not wait for data that may never come
            self._run.clock.start()
            self._train(batches)
        return self._finish()

    def _train(self, batches: Iterator) -> None:
        train, clock = self._config.train, self._run.clock
        while self._started < train.steps and not self._must_stop():
            if self._validation_due():
                self._validate()
                continue
            batch = next(batches, None)
            if batch is None:
                continue  # closed, as we are to stop
            self._signals.training_began = True
            self._state, report = self._run.step(
                self._state, batch, clock.elapsed_s, self._signals.received is not None
            )
            self._started += 1
            self._in_flight.append(report)
            self._decide(but=STEPS_IN_FLIGHT)
            if self._checkpoint_due():
                self._save_checkpoint()

    def _finish(self) -> int:
        self._decide()
        self._run.clock.stop()
        train, elapsed_s = self._config.train, self._run.clock.elapsed_s
        if self._started > self._saved_step:
            self._save_checkpoint()
        if not self._asked_to_stop and self._validated_step != self._started:
            self._validate()
        if self._run.checkpoints:
            self._run.checkpoints.finish()  # before it is said that all is done
        asked = self._asked_to_stop
        reason = "asked to stop" if asked else "time cap reached" if self._cap_reached else "all steps done"
        self._run.log.line(f"stopping: {reason} train_time:{1000 * elapsed_s:.0f}ms step:{self._started}/{train.steps}")
        if self._scored and self._validated_step == self._started:
            self._run.log.line(f"validated over {self._scored}")
        peak_bytes = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak_bytes:
            self._run.log.line(f"peak memory allocated: {peak_bytes / 1e9:.2f} GB")
        if not asked:
            return EXIT_OK
        self._run.log.say(f"the run can be resumed: {how_to_resume(self._run.run_dir)}")
        return EXIT_INTERRUPTED if self._signals.received == signal.SIGINT else EXIT_OK

    def _must_stop(self) -> bool:
        if self._is_alone and self._signals.received is not None:
            self._asked_to_stop = True
        return self._asked_to_stop or self._cap_reached

    def _validation_due(self) -> bool:
        every = self._config.train.validate_every
        due = self._started == 0 or every > 0 and self._started % every == 0
        return due and self._validated_step != self._started

    def _validate(self) -> None:
        self._decide()
        with self._run.clock.paused():
            try:
                score = self._run.validation.standard(
                    self._state.params,
                    self._config.evaluate.max_tokens,
                    mesh=self._run.mesh,
                    progress=self._until_asked_to_stop,
                    looped=self._looped,
                )
            except AskedToStop:
                self._asked_to_stop = True
                return
        steps, elapsed_s = self._config.train.steps, self._run.clock.elapsed_s
        self._run.log.validation(self._started, steps, score.val_loss, score.val_bpb, elapsed_s, score.original_bpb)
        self._validated_step, self._scored = self._started, score.bytes_text

    def _until_asked_to_stop(self, batches: Iterable, total: int) -> Iterator:
        """Passes validation batches on, until any process is asked to stop; then all leave at the same one."""
        for index, batch in enumerate(self._show_validation(batches, total)):
            asked = self._signals.received is not None
            if not self._is_alone:
                agree = index % BATCHES_BETWEEN_AGREEMENTS == 0
                asked = agree and bool(np.any(multihost_utils.process_allgather(np.array(asked))))
            if asked:
                raise AskedToStop
            yield batch

    def _checkpoint_due(self) -> bool:
        checkpoints, train = self._run.checkpoints, self._config.train
        if checkpoints is None:
            return False
        checkpoints.check()
        every, every_s = train.checkpoint_every_steps, train.checkpoint_every_s
        by_steps = every > 0 and self._started % every == 0
        # By time, a slow disk puts the next one off, rather than eat into the training time.
        by_time = 0 < every_s <= self._run.clock.elapsed_s - self._saved_s and not checkpoints.is_saving
        return by_steps or by_time

    def _save_checkpoint(self) -> None:
        if self._run.checkpoints is None:
            return
        self._read_reports()  # what diverged must not be saved
        began = time.perf_counter()
        self._run.checkpoints.save(self._state, self._started, self._run.clock.elapsed_s)
        blocked_ms = 1000 * (time.perf_counter() - began)
        self._run.log.line(f"checkpoint:saving step:{self._started} blocked:{blocked_ms:.0f}ms")
        self._saved_step, self._saved_s = self._started, self._run.clock.elapsed_s

    def _decide(self, but: int = 0) -> None:
        """Decides what follows from all steps but so many; every process does so at the same steps."""
        self._read_reports(but)
        while len(self._undecided) + len(self._in_flight) > but:
            report = self._undecided.popleft()
            self._asked_to_stop |= bool(report.stop_requested)
            self._cap_reached |= self._reaches_cap(int(report.metrics.step) - 1, float(report.elapsed_s))

    def _read_reports(self, but: int = 0) -> None:
        """Waits for all steps in flight but so many, and logs them."""
        while len(self._in_flight) > but:
            report = jax.device_get(self._in_flight.popleft())
            self._log(report.metrics)
            self._undecided.append(report)

    def _log(self, metrics: StepMetrics) -> None:
        """Raises DivergedError where the step is not finite."""
        elapsed_s = self._run.clock.elapsed_s
        step, loss, grad_norm = int(metrics.step), float(metrics.loss), float(metrics.grad_norm)
        self._check_finite(step, loss, grad_norm)
        where = f"step:{step} scale:{float(metrics.learning_rate_multiplier):.4f}"
        self._looped = bool(metrics.looped) or not self._config.model.loop_layers
        if metrics.looped:
            self._run.log.line_once("loop:enabled", where)
        if metrics.late_qat:
            self._run.log.line_once("late_qat:enabled", where)
        if metrics.swa_count:
            self._run.log.line_once("swa:start", where)
        self._run.log.metrics(
            step=step,
            train_loss=loss,
            grad_norm=grad_norm,
            learning_rate_multiplier=float(metrics.learning_rate_multiplier),
            muon_momentum=float(metrics.muon_momentum),
            late_qat=bool(metrics.late_qat),
            looped=bool(metrics.looped),
            swa_count=int(metrics.swa_count),
            train_time_s=elapsed_s,
        )
        train = self._config.train
        self._run.log.train_step(step, train.steps, loss, elapsed_s, train.log_every)

    def _loop_is_on(self, step: int, elapsed_s: float) -> bool:
        """Whether the step after `step` finished ones runs the loop's layers more than once."""
        train = self._config.train
        return bool(loop_is_on(fraction(train, step, elapsed_s), train.loop_start_fraction))

    def _reaches_cap(self, steps: int, elapsed_s: float) -> bool:
        """Whether the time cap will have been reached when the steps in flight, paid for already, are done."""
        cap_s = self._config.train.time_cap_s
        return cap_s > 0 and elapsed_s + (STEPS_IN_FLIGHT + 1) * elapsed_s / max(steps, 1) >= cap_s

    def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        whole = whole_steps(self._run.run_dir / FOLDER)
        good = f"the last good checkpoint is step {whole[-1]}" if whole else "there is no checkpoint"
        text = (
            f"step {step}: the training loss is {loss} and the gradients' norm {grad_norm}; {good}; lower the learning "
            "rates or clip more"
        )
        self._run.log.line(f"stopping: {text}")
        raise DivergedError(f"{self._run.run_dir}: {text}")
