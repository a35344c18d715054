"""`jgolf sweep CONFIG --seeds 8 --set optim.muon.learning_rate=0.02,0.025,0.03`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from jgolf import config as configs
from jgolf.config import Config
from jgolf.config.parts import PARTS, Part, known_parts
from jgolf.data.demo import build_missing_demo
from jgolf.data.vocabulary import resolved_for
from jgolf.errors import EXIT_OK, JgolfError
from jgolf.importing import ended_by_interrupts
from jgolf.lock import locked
from jgolf.progress import counted, progress_of, table_console, text_column
from jgolf.run_dir import RESULTS_FILE
from jgolf.sweep.ablation import make_ablation, worths, worths_table
from jgolf.sweep.folder import CSV_FILE, SweepFolder
from jgolf.sweep.grid import SweepRun, groups, make_runs
from jgolf.sweep.results import RunResult, results_table, summarize
from jgolf.train.options import DEFAULT_CONFIG
from jgolf.train.signals import as_interrupts

if TYPE_CHECKING:
    from jgolf.train.step import StepMetrics

NAMES = ", ".join(part.name for part in PARTS)


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep that are no settings of its runs."""

    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    seeds: int = 1
    """Runs of each setting, with seeds train.seed, train.seed + 1, …"""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting to vary, NAME=VALUE,VALUE,…; several such options make a grid. Between tuples put a semicolon."""
    ablate: bool = False
    """Train the config, then the config without each of its techniques, and tell what each is worth."""
    techniques: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Of --ablate: leave out these only, of: {NAMES}.")] = ()
    out: Path | None = None
    """Folder of the results; runs/sweep-NAME by default, runs/ablation-NAME with --ablate."""
    resume: bool = False
    """Go on in a folder that holds results: train only the runs that have none there, more seeds or values, say."""
    at_once: int = 0
    """Runs that one device trains at a time; 0 for all that can share a program. Lower it where memory runs out."""


def sweep(argv: list[str], prog: str = "jgolf sweep") -> int:
    """Parses the command line, trains the runs and prints the results."""
    name, rest = configs.leading_name(argv)
    options = tyro.cli(
        SweepOptions,
        default=SweepOptions(config=configs.load(name or DEFAULT_CONFIG)),
        prog=f"{prog} [CONFIG]",
        args=rest,
        description=(
            "Train runs that differ in their seeds or settings, and print means, deviations and confidence intervals. "
            "Runs that differ only in numbers (learning rates, decays, schedule, seed) are one compiled program and "
            "train side by side on the same batches; others follow one another. There is no time cap in a sweep: "
            f"runs end by train.steps. Examples: {prog} demo --seeds 8; {prog} demo --seeds 3 "
            f"--set optim.muon.learning_rate=0.02,0.025 --set quantize.mlp=int5,int6; {prog} demo --ablate --seeds 3"
        ),
    )
    _run(options, known_parts(name))
    return EXIT_OK


sweep.parse_and_call = lambda prog, argv: sweep(argv, prog)


def _run(options: SweepOptions, parts: Sequence[Part]) -> None:
    base = options.config
    if options.at_once < 0:
        raise JgolfError(f"--at-once {options.at_once}: expected 0 (all) or more")
    if base.train.time_cap_s:
        print(f"no time cap in a sweep: train.time_cap_s {base.train.time_cap_s:g} is off, runs end by train.steps")
        base = configs.replace(base, "train.time_cap_s", 0.0)
    runs = _make_runs(options, base, parts)
    out = options.out or Path("runs") / f"{'ablation' if options.ablate else 'sweep'}-{base.name}"
    with locked(out, "wait for its end, or choose another --out"):
        _run_in(out, options, base, runs, parts)


def _run_in(out: Path, options: SweepOptions, base: Config, runs: list[SweepRun], parts: Sequence[Part]) -> None:
    console = table_console()
    if (out / RESULTS_FILE).exists() and not options.resume:
        raise JgolfError(f"{out}: already holds a sweep; go on with it by --resume, or choose another --out")
    folder = SweepFolder(out, runs)
    if folder.new:
        build_missing_demo(base)
        folder.make_ready()
    there = f", {len(folder.results)} of them there already" if folder.results else ""
    steps = " or ".join(map(str, sorted({run.config.train.steps for run in runs})))
    number = len(groups(list(folder.new.values())))
    print(
        f"{counted(len(runs), 'run')} of {steps} steps{there}, {counted(number, 'structure')}; results in {out}",
        flush=True,
    )
    if folder.new:
        _train(options, base, folder)
    console.print(results_table(summarize(folder.results), console.width))
    if options.ablate:
        console.print(worths_table(worths(folder.results), parts))
    print(f"{out / RESULTS_FILE}, {out / CSV_FILE}; plots: jgolf report {out}")


def _make_runs(options: SweepOptions, base: Config, parts: Sequence[Part]) -> list[SweepRun]:
    if options.ablate and options.set:
        raise JgolfError("--ablate chooses what to vary: leave --set out, and change the config itself instead")
    if options.techniques and not options.ablate:
        raise JgolfError("--techniques belongs to --ablate: add that, or vary settings with --set")
    if options.ablate:
        runs = make_ablation(base, options.seeds, options.techniques, parts)
    else:
        runs = make_runs(base, options.seeds, options.set)
    if any(run.config.train.time_cap_s for run in runs):
        raise JgolfError("--set train.time_cap_s: there is no time cap in a sweep; vary train.steps instead")
    if not all(run.config.model.vocab_size for run in runs):
        build_missing_demo(base)  # its tokenizer is asked
    return [_resolved(run) for run in runs]


def _resolved(run: SweepRun) -> SweepRun:
    """The run as its folder's config.json has it, whatever the working directory."""
    data = configs.with_absolute_paths(run.config.data)
    model = resolved_for(data, run.config.model)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, data=data, model=model))


def _train(options: SweepOptions, base: Config, folder: SweepFolder) -> None:
    """Trains the new runs; a result is in the folder as soon as it is there."""
    with ended_by_interrupts():
        from jgolf.sweep.train import train_sweep  # JAX starts only when there is something to train

    started = time.perf_counter() - folder.seconds

    def keep(result: RunResult) -> None:
        seconds = round(time.perf_counter() - started, 3)
        asked = {"config": configs.to_dict(base), "set": list(options.set), "seeds": options.seeds}
        folder.keep(result, {**asked, "seconds": seconds})

    def tell(text: str) -> None:
        print(text, flush=True)

    shown = _Shown(table_console(), base.train.log_every)
    with as_interrupts():
        try:
            train_sweep(folder.new, folder.path, options.at_once, tell, shown, keep)
        except (Exception, KeyboardInterrupt):
            done = f"{len(folder.results)} of {counted(len(folder.runs), 'run')}"
            how = "the same command with --resume goes on" if folder.results else "the same command begins again"
            print(f"{done} have results in {folder.path}; {how}")
            raise


class _Shown:
    """Shows the steps of a program: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, every: int):
        self._console = console
        self._every = every

    def __call__(self, metrics: Iterator[StepMetrics], steps: int, name: str) -> Iterator[StepMetrics]:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            text_column("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        terminal = self._console.is_terminal
        with progress_of(self._console, *columns, disable=not terminal) as progress:
            task = progress.add_task(name, total=steps, loss="")
            for step, one in enumerate(metrics, start=1):
                loss = np.asarray(one.loss)
                text = f"train_loss:{loss.mean():.4f} ({loss.min():.4f} to {loss.max():.4f})"
                progress.update(task, completed=step, loss=text)
                if not terminal and self._every and (step % self._every == 0 or step == steps):
                    print(f"step:{step}/{steps} {text}", flush=True)
                yield one
