"""`jgolf bench cluster`: the measurements one after the other, within a budget of time, and their table."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from rich import box
from rich.table import Table

from jgolf import config as configs
from jgolf.bench.cluster.findings import Findings
from jgolf.bench.cluster.lost import measure_lost, random_folder
from jgolf.bench.cluster.outcome import CAPTION, JSON_FILE, MARKDOWN_FILE, Outcome
from jgolf.bench.cluster.processes import Machine, Processes
from jgolf.bench.cluster.tokens import write_random_shard
from jgolf.bench.cluster.worker import Measured, Work
from jgolf.bench.report import command_line
from jgolf.config import Config, TrainConfig
from jgolf.data.shards import find_shards
from jgolf.data.vocabulary import resolved_for
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, ConfigError, JgolfError
from jgolf.progress import activity, table_console
from jgolf.train.mesh import device_batch_order
from jgolf.train.signals import as_interrupts

Part = Literal["speed", "losses", "collectives", "processes", "lost"]
PARTS: tuple[Part, ...] = get_args(Part)
CALLS = 4
WHOLE_RUNS, WHOLE_CALLS = 3, 1
"""For the whole batch on one device, of which a step takes long."""
LONG_RUN = 10_000
"""Steps of a run in which the first ones, that are measured, are before the loop."""
LEAST_S = 15.0
"""With less time left than this, nothing is begun."""
MOST_OF_BUDGET = 0.4
"""One measurement may take so much of the budget: where one hangs, the others have their turn."""


@dataclass(frozen=True)
class Subject:
    """A config to measure, and the folder of its tokens; None for random ones."""

    config: Config
    data: Path | None

    @property
    def name(self) -> str:
        return self.config.name


def cluster(
    config: tuple[str, ...] = ("pr592", "pr1855"),
    devices: int = 0,
    batch_tokens: int = 0,
    data: tuple[Path, ...] = (),
    parts: tuple[Part, ...] = PARTS,
    losses: int = 20,
    runs: int = 8,
    budget_s: float = 600.0,
    out: Path = Path("runs/cluster"),
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Measure training on several devices of this host: speed, scaling, losses, what they exchange, a lost process.

    The exit status is 1 where a part failed or losses differ by more than they should.

    Args:
      config: Configs, each one of the names, a .py file, or a run's config.json.
      devices: How many devices; 0 for all.
      batch_tokens: Tokens of a step over all devices; 0 for the config's own.
      data: Folder of the shards for each config; its own by default, or random tokens where there is none.
      parts: What to measure: speed in one process, and on one device; losses against one device; collectives;
        processes of one device each, scaling and losses of which are told beside those parts; lost: one of them
        killed, for the first config.
      losses: Training steps whose losses are compared.
      runs: How often to time a step.
      budget_s: Seconds that all of it may take; what is not done by then is named.
      out: Folder for the table as Markdown and JSON.
      json: Print JSON instead of a table.
    """
    budget = Budget(budget_s)
    subjects = _subjects(config, batch_tokens, data)
    _check_options(devices, losses, runs, parts, budget_s)
    options = {"config": config, "devices": devices, "batch_tokens": batch_tokens, "data": data}
    if tuple(parts) != PARTS:
        options["parts"] = parts
    command = command_line("cluster", **options, losses=losses, runs=runs, budget_s=budget_s)
    with tempfile.TemporaryDirectory() as temporary, as_interrupts():
        folder = Path(temporary)
        cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder / "programs")
        machine = _machine(devices, cache, budget)
        subjects, notes = _shared_out(subjects, machine.devices)
        outcome = Outcome(
            machine=machine,
            command=command,
            findings=[Findings(subject.config, machine.devices) for subject in subjects],
            tokens=["random tokens" if subject.data is None else f"tokens of {subject.data}" for subject in subjects],
            notes=notes,
        )
        outcome.write(out)  # before anything is measured that could not be kept
        for job in Measurements(subjects, outcome, parts, losses, runs, folder).jobs():
            _do(job, outcome, budget)
            outcome.write(out)
    outcome.notes += [text for one in outcome.findings for text in one.exceeded()]
    outcome.failed |= any(one.exceeded() for one in outcome.findings)
    outcome.write(out)
    if json:
        print(outcome.json())
    else:
        _show(outcome, out)
    return EXIT_CHECK_FAILED if outcome.failed else EXIT_OK


# --- what is measured ------------------------------------------------------------------------


class Budget:
    """Seconds for all measurements together, from now on."""

    def __init__(self, seconds: float):
        self._seconds, self._until = seconds, time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """What is left of it."""
        return self._until - time.monotonic()

    @property
    def limit_s(self) -> float:
        """What a measurement that begins now may take."""
        return min(self.left_s, MOST_OF_BUDGET * self._seconds)


@dataclass(frozen=True)
class Job:
    """One measurement: what it is called, and what does it within a number of seconds."""

    name: str
    run: Callable[[float], None]


@dataclass(frozen=True)
class Piece:
    """A program to measure; see `Work`.

    Attributes:
      finding: the attribute of `Findings` that it becomes.
      train: the batch that all devices of the run share.
    """

    finding: str
    train: TrainConfig
    losses: int
    runs: int
    calls: int = CALLS
    collectives: bool = False


@dataclass(frozen=True)
class Measurements:
    """All that is asked for, and the folder in which processes leave what they found."""

    subjects: Sequence[Subject]
    outcome: Outcome
    parts: Sequence[Part]
    losses: int
    runs: int
    folder: Path

    def jobs(self) -> Iterator[Job]:
        """The measurements in their order, to be run one after the other: none disturbs another's times."""
        machine, first = self.outcome.machine, self.subjects[0]
        speed, runs = "speed" in self.parts, self.runs if "speed" in self.parts else 0
        losses = self.losses if {"losses", "processes"} & {*self.parts} else 0
        one, several = [machine.environment(machine.devices)], machine.environments
        for index, subject in enumerate(self.subjects):
            if {"speed", "losses", "collectives"} & {*self.parts}:
                together = Piece(
                    "together", subject.config.train, losses, runs, collectives="collectives" in self.parts
                )
                yield self._job(index, f"{machine.devices} devices in one process", [together], lambda: one)
        for index, subject in enumerate(self.subjects):
            train, alone = subject.config.train, []
            if speed:
                alone.append(Piece("share", share_of(train, machine.devices), 0, runs))
            if "losses" in self.parts:
                alone.append(Piece("whole", train, losses, WHOLE_RUNS if speed else 0, WHOLE_CALLS))
            if alone:
                yield self._job(index, "one device", alone, lambda: [machine.environment(1)])
        for index, subject in enumerate(self.subjects):
            if "processes" in self.parts:
                apart = Piece("apart", subject.config.train, losses, self.runs)
                yield self._job(index, f"{machine.devices} processes of one device", [apart], several)
        if "lost" in self.parts:
            yield Job(f"{first.name}, a process killed", self._lose_one)

    def _job(
        self, index: int, name: str, pieces: Sequence[Piece], environments: Callable[[], list[dict[str, str]]]
    ) -> Job:
        def run(limit_s: float) -> None:
            found, files_of = self.outcome.findings[index], {}
            data, variables = self._tokens(index), environments()
            for piece in pieces:
                files_of[piece.finding] = [self.folder / f"{index}-{piece.finding}.{end}" for end in ("work", "found")]
                self._work(index, piece, data).write(files_of[piece.finding][0])
            arguments = [str(path) for paths in files_of.values() for path in paths]
            command = [sys.executable, "-m", "jgolf.bench.cluster.worker", *arguments]
            try:
                with Processes([command] * len(variables), variables) as processes:
                    processes.wait(limit_s)
            finally:  # what was found before it failed counts
                for finding, (_, path) in files_of.items():
                    setattr(found, finding, Measured.read(path))

        return Job(f"{self.subjects[index].name}, {name}", run)

    def _work(self, index: int, piece: Piece, data: Path) -> Work:
        config, train = self.subjects[index].config, piece.train
        train = dataclasses.replace(train, steps=max(train.steps, LONG_RUN))
        path = self.folder / f"{index}-{piece.finding}.json"
        configs.write_json(dataclasses.replace(config, train=train), path)
        return Work(
            config=str(path),
            data=str(data),
            losses=piece.losses,
            runs=piece.runs,
            calls=piece.calls,
            collectives=piece.collectives,
            started_at=time.time(),
        )

    def _tokens(self, index: int) -> Path:
        """The folder of a config's tokens; random ones are made when they are first asked for."""
        subject, folder = self.subjects[index], self.folder / f"{index}-data"
        if subject.data is not None:
            return subject.data
        if not folder.exists():
            folder.mkdir()
            write_random_shard(folder / "random_train_000000.bin", subject.config, self.losses)
        return folder

    def _lose_one(self, limit_s: float) -> None:
        subject, began = self.subjects[0], time.monotonic()
        folder = self.folder / "lost"
        folder.mkdir()
        config = subject.config
        if subject.data is None:
            random_folder(config, folder / "data")
            own = dataclasses.replace(config.data, dir=str(folder / "data"), tokenizer="", build_demo=False)
            config = dataclasses.replace(config, data=own)
        left_s = limit_s - (time.monotonic() - began)
        lost = measure_lost(config, self.outcome.machine, folder, left_s)
        self.outcome.findings[0].lost = lost
        self.outcome.notes.append(f"{subject.name}, a process killed; process 0: {lost.message}")


def share_of(train: TrainConfig, devices: int) -> TrainConfig:
    """The batch of one device among so many, in as many micro-steps as it makes there.

    Raises:
      ConfigError: they cannot share the batch evenly.
    """
    micro_steps, num_ranks = device_batch_order(train, devices).accumulation, max(1, train.num_ranks // devices)
    return dataclasses.replace(
        train,
        batch_tokens=train.batch_tokens // devices,
        num_ranks=num_ranks,
        accumulation=micro_steps // num_ranks,
    )


def _do(job: Job, outcome: Outcome, budget: Budget) -> None:
    """Runs a job in the time that is left; where it fails, the next one has its turn."""
    if budget.left_s < LEAST_S:
        outcome.notes.append(f"{job.name}: not run: the budget's time is over; raise --budget-s or choose --parts")
        return
    began = time.monotonic()
    with activity(job.name) as tell:
        try:
            job.run(budget.limit_s)
            tell(f"{time.monotonic() - began:.0f} s")
        except Exception as error:  # of any kind: what was measured before and what comes after is not lost
            outcome.failed = True
            reason = str(error) if isinstance(error, JgolfError) else f"{type(error).__name__}: {error}"
            outcome.notes.append(f"{job.name}: failed after {time.monotonic() - began:.0f} s: {reason}")
            tell(reason)


# --- options ---------------------------------------------------------------------------------


def _subjects(names: Sequence[str], batch_tokens: int, data: Sequence[Path]) -> list[Subject]:
    if not names:
        raise ConfigError("--config names none: expected one or more configs")
    if data and len(data) != len(names):
        raise ConfigError(f"--data names {len(data)} folders for {len(names)} configs: expected one for each, or none")
    return [
        _subject(name, batch_tokens, folder) for name, folder in zip(names, data or [None] * len(names), strict=True)
    ]


def _subject(name: str, batch_tokens: int, data: Path | None) -> Subject:
    config = configs.load(name)
    if batch_tokens:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_tokens=batch_tokens))
    configs.validate(config)
    own = Path(config.data.dir)
    folder = own if data is None and own.is_dir() else data
    if folder is None:
        return Subject(dataclasses.replace(config, model=configs.resolved(config.model)), None)
    find_shards(folder, "train")  # before anything is started
    if data is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(data), tokenizer=""))
    return Subject(dataclasses.replace(config, model=resolved_for(config.data, config.model)), folder)


def _shared_out(subjects: Sequence[Subject], devices: int) -> tuple[list[Subject], list[str]]:
    """Subjects whose batches so many devices can share, where need be in as many ranks, and what to say of those.

    Raises:
      ConfigError: they cannot share a batch in that way, either.
    """
    shared, notes = [], []
    for subject in subjects:
        train = subject.config.train
        try:
            device_batch_order(train, devices)
        except ConfigError as refused:
            config = dataclasses.replace(subject.config, train=dataclasses.replace(train, num_ranks=devices))
            try:
                subject = dataclasses.replace(subject, config=configs.validate(config))
            except ConfigError:
                raise refused from None
            notes.append(f"{subject.name}: with --train.num-ranks {devices}, as {devices} devices cannot share its own")
        shared.append(subject)
    return shared, notes


def _check_options(devices: int, losses: int, runs: int, parts: Sequence[Part], budget_s: float) -> None:
    if not parts:
        raise ConfigError(f"--parts names none: expected some of {', '.join(PARTS)}")
    for name, value, least in (("devices", devices, 0), ("losses", losses, 1), ("runs", runs, 1)):
        if value < least:
            raise ConfigError(f"--{name} is {value}: expected at least {least}")
    if not 0 < budget_s < math.inf:
        raise ConfigError(f"--budget-s is {budget_s}: expected seconds, more than 0")
    if devices == 1:
        raise ConfigError("--devices is 1: expected 2 or more, or 0 for all")


def _machine(devices: int, cache: Path, budget: Budget) -> Machine:
    machine = Machine.found(cache, budget.limit_s)
    if machine.devices < max(devices, 2):
        raise ConfigError(
            f"{machine.devices} × {machine.kind}: expected {devices or '2 or more'} devices; without GPUs, they are "
            "simulated with XLA_FLAGS=--xla_force_host_platform_device_count=8"
        )
    return dataclasses.replace(machine, devices=devices or machine.devices)


# --- what is shown ---------------------------------------------------------------------------


def _show(outcome: Outcome, folder: Path) -> None:
    console = table_console()
    table = Table(title=outcome.title, box=box.SIMPLE)
    table.add_column("")
    for one in outcome.findings:
        table.add_column(one.config.name, justify="right")
    for row in outcome.rows():
        table.add_row(*row)
    console.print(table)
    for text in (CAPTION, *outcome.notes):
        console.print(text, soft_wrap=True)
    console.print(f"{outcome.command}: written to {folder / MARKDOWN_FILE} and {folder / JSON_FILE}", soft_wrap=True)
