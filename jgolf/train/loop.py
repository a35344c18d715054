"""The training loop: what happens when, on the host."""

from __future__ import annotations

import math
import signal
from collections import deque
from pathlib import Path

import jax

from jgolf.config import Config
from jgolf.data.batches import Prefetcher
from jgolf.errors import EXIT_INTERRUPTED, EXIT_OK, DivergedError
from jgolf.train.mesh import StepReport
from jgolf.train.run import Run, prepared_run
from jgolf.train.signals import StopSignals

STEPS_IN_FLIGHT = 2
"""Steps that are started before the report of an earlier one is read, so that the device never waits."""


def train(config: Config, run_dir: str | Path, init_from: str | None = None, resume: bool = False) -> int:
    """Trains to the end, or until asked to stop; returns the exit code.

    Raises:
      JgolfError: the settings or files cannot be used.
      DivergedError: the loss became infinite or NaN.
    """
    with prepared_run(config, Path(run_dir), init_from, resume) as run, StopSignals() as signals:
        return Loop(run, signals).run()


class Loop:
    """Steps, validations and checkpoints of one run.

    Decisions are taken from reports that every process holds alike, `STEPS_IN_FLIGHT` steps after the
    fact, so all processes take the same ones at the same step and none waits for another's clock.
    """

    def __init__(self, run: Run, signals: StopSignals):
        self._run = run
        self._config = run.config
        self._signals = signals
        self._state = run.state
        self._started = run.first_step
        self._in_flight: deque[StepReport] = deque()
        self._stop_reason: str | None = None
        self._late_qat = self._swa = False
        self._checkpoint_due = False
        self._last_checkpoint_s = run.clock.elapsed_s

    def run(self) -> int:
        """Runs to the end; returns the exit code."""
        steps, clock = self._config.train.steps, self._run.clock
        with Prefetcher(self._run.source, self._started) as batches:
            clock.start()
            while self._started < steps and self._stop_reason is None:
                if self._validation_due():
                    self._validate()
                self._state, report = self._run.step(
                    self._state, next(batches), clock.elapsed_s, self._signals.received is not None
                )
                self._started += 1
                self._in_flight.append(report)
                if len(self._in_flight) > STEPS_IN_FLIGHT:
                    self._read_report()
                if self._checkpoint_due:
                    self._save_checkpoint()
        return self._finish()

    def _finish(self) -> int:
        self._drain()
        interrupted = self._stop_reason is not None and self._stop_reason.startswith("asked")
        if not interrupted:
            self._validate()
        if self._started > self._run.first_step:
            self._save_checkpoint()
        elapsed_s = self._run.clock.elapsed_s
        self._run.log.line(
            f"stopping: {self._stop_reason or 'all steps done'} train_time:{1000 * elapsed_s:.0f}ms "
            f"step:{self._started}/{self._config.train.steps}"
        )
        peak_bytes = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak_bytes:
            self._run.log.line(f"peak memory allocated: {peak_bytes / 1e9:.2f} GB")
        if not interrupted:
            return EXIT_OK
        self._run.log.line(f"the run can be resumed: --resume --run-dir {self._run.run_dir}")
        return EXIT_INTERRUPTED if self._signals.received == signal.SIGINT else EXIT_OK

    def _validation_due(self) -> bool:
        every = self._config.train.validate_every
        return self._started != self._run.first_step and every > 0 and self._started % every == 0 or self._started == 0

    def _validate(self) -> None:
        self._drain()
        with self._run.clock.paused():
            score = self._run.validation.standard(
                self._state.params, self._config.evaluate.max_tokens, mesh=self._run.mesh
            )
        steps, elapsed_s = self._config.train.steps, self._run.clock.elapsed_s
        self._run.log.validation(self._started, steps, score.val_loss, score.val_bpb, elapsed_s)

    def _save_checkpoint(self) -> None:
        self._drain()
        self._run.checkpoints.save(self._state, self._started, self._run.clock.elapsed_s)
        self._last_checkpoint_s = self._run.clock.elapsed_s
        self._checkpoint_due = False

    def _drain(self) -> None:
        while self._in_flight:
            self._read_report()

    def _read_report(self) -> None:
        """Waits for the oldest step in flight, logs it, and decides what follows from it."""
        report = jax.device_get(self._in_flight.popleft())
        metrics, elapsed_s = report.metrics, self._run.clock.elapsed_s
        step, loss = int(metrics.step), float(metrics.loss)
        self._check_finite(step, loss)
        self._announce(report)
        self._run.log.metrics(
            step=step,
            train_loss=loss,
            grad_norm=float(metrics.grad_norm),
            learning_rate_multiplier=float(metrics.learning_rate_multiplier),
            muon_momentum=float(metrics.muon_momentum),
            late_qat=bool(metrics.late_qat),
            swa_count=int(metrics.swa_count),
            train_time_s=elapsed_s,
        )
        train = self._config.train
        self._run.log.train_step(step, train.steps, loss, elapsed_s, train.log_every)
        if report.stop_requested:
            self._stop_reason = "asked to stop"
        # The steps in flight are paid for already: the cap is reached when they will be done.
        mean_s = report.elapsed_s / max(step - 1, 1)
        if train.time_cap_s and report.elapsed_s + (STEPS_IN_FLIGHT + 1) * mean_s >= train.time_cap_s:
            self._stop_reason = self._stop_reason or "time cap reached"
        by_steps = train.checkpoint_every_steps and step % train.checkpoint_every_steps == 0
        by_time = train.checkpoint_every_s and report.elapsed_s - self._last_checkpoint_s >= train.checkpoint_every_s
        self._checkpoint_due |= bool(by_steps or by_time)

    def _check_finite(self, step: int, loss: float) -> None:
        if math.isfinite(loss):
            return
        checkpoint = self._run.checkpoints.latest_step
        good = f"the last good checkpoint is step {checkpoint}" if checkpoint is not None else "there is no checkpoint"
        text = f"step {step}: the training loss is {loss}; {good}; lower the learning rates or clip more"
        self._run.log.line(f"stopping: {text}")
        raise DivergedError(f"{self._run.run_dir}: {text}")

    def _announce(self, report: StepReport) -> None:
        metrics = report.metrics
        where = f"step:{int(metrics.step)} scale:{float(metrics.learning_rate_multiplier):.4f}"
        if metrics.late_qat and not self._late_qat:
            self._run.log.line(f"late_qat:enabled {where}")
        if metrics.swa_count and not self._swa:
            self._run.log.line(f"swa:start {where}")
        self._late_qat, self._swa = bool(metrics.late_qat), bool(metrics.swa_count)
