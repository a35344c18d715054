"""`jgolf compare A… -- B…`: the challenge's test for a record, from the results of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from jgolf.compare.sides import MARGIN, SIGNIFICANCE, Comparison, compare_sides, seed_of
from jgolf.compare.ttest import CONFIDENCE, MOST_FURTHER_SEEDS, Sample, further_pairs, further_seeds
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, JgolfError
from jgolf.history import History, read_history
from jgolf.options import PathText
from jgolf.progress import counted, plain_console

ScoreName = Literal["auto", "adapted", "sliding", "standard", "validation"]
_WHERE = {
    "adapted": "score of the artifact with test-time training",
    "sliding": "sliding-window score of the artifact",
    "standard": "standard score of the artifact",
    "validation": "last validation during training",
}


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison."""

    runs: Annotated[tuple[PathText, ...], tyro.conf.Positional, tyro.conf.arg(metavar="A… -- B…")]
    """Runs A, then --, then runs B: run directories, or logs of the PyTorch reference."""
    score: ScoreName = "auto"
    """Which loss; auto takes the artifacts' with test-time training where every run has one, else the sliding one, or
    the last validation where no run was exported."""
    margin: float = MARGIN
    """Nats a token (one of B's, where A's tokens are others) by which A has to be better; the challenge asks for 0.005
    of a record."""
    significance: float = SIGNIFICANCE
    """Largest p with which A counts as better."""
    power: float = 0.8
    """Chance of success for which further seeds are counted."""


def compare(argv: list[str], prog: str = "jgolf compare") -> int:
    """Parses the command line and prints the comparison; the exit code is 0 for a record, else 1."""
    before, dashes, after = _split_sides(argv)
    options = tyro.cli(
        CompareOptions,
        prog=prog,
        args=[*before, *after],
        description=(
            "Is A better than B by the challenge's rule for a record: a mean loss lower by at least 0.005 nats at "
            "p < 0.01 (a one-sided t-test over the seeds, paired where both sides have the same, else Welch's)? Runs "
            "of different tokenizers are compared in bits per byte, where the same bytes of text were scored. Usage: "
            f"{prog} A1 A2 A3 -- B1 B2 B3. The exit status is 0 if so, 1 if not."
        ),
    )
    for name, value in (("significance", options.significance), ("power", options.power)):
        if not 0 < value < 1:
            raise JgolfError(f"--{name} {value:g}: expected a chance between 0 and 1")
    if not 0 <= options.margin < math.inf:
        raise JgolfError(f"--margin {options.margin:g}: expected 0 nats or more")
    count_a = len(tyro.cli(CompareOptions, args=before, default=CompareOptions(runs=())).runs)
    a_paths, b_paths = options.runs[:count_a], options.runs[count_a:]
    if not dashes or len(a_paths) < 2 or len(b_paths) < 2:
        raise JgolfError(
            f"found {counted(len(a_paths), 'run')} in A and {len(b_paths)} in B: expected at least two "
            f"on each side (one run says nothing about the noise), such as: {prog} runs/new-1 runs/new-2 -- "
            "runs/old-1 runs/old-2"
        )
    _check_distinct([*a_paths, *b_paths])
    sides = [[read_history(path) for path in paths] for paths in (a_paths, b_paths)]
    name = _score_name([*sides[0], *sides[1]], options.score)
    for side, runs in zip("AB", sides, strict=True):
        if seeds := _repeated_seeds(runs):
            print(f"warning: {side} has several runs of seed {', '.join(seeds)}: these are no sample of the noise")
    found = compare_sides(sides, name, options.margin)
    is_record = found.is_record(options.margin, options.significance)
    console = plain_console()
    console.print(_table(found, name))
    console.print(_verdict(found, options, is_record), highlight=False)
    if not is_record:
        console.print(_advice(found.a, found.b, found.is_paired, options), highlight=False)
    return EXIT_OK if is_record else EXIT_CHECK_FAILED


compare.parse_and_call = lambda prog, argv: compare(argv, prog)


def _split_sides(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in argv:
        return list(argv), False, []
    at = list(argv).index("--")
    return list(argv[:at]), True, list(argv[at + 1 :])


def _check_distinct(paths: Sequence[str]) -> None:
    seen: set[Path] = set()
    for path in paths:
        resolved = Path(path).resolve()
        if resolved in seen:
            raise JgolfError(f"{path}: named twice; expected each run once: the seeds are the sample")
        seen.add(resolved)


def _repeated_seeds(runs: Sequence[History]) -> list[str]:
    seeds = [str(seed_of(run)) for run in runs if seed_of(run) is not None]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1})


def _score_name(runs: Sequence[History], wanted: ScoreName) -> str:
    """The score to compare, which every run has.

    Raises:
      JgolfError: some runs do not, or theirs is not a number.
    """
    if wanted == "auto":
        exported = any("sliding" in run.scores for run in runs)
        adapted = all("adapted" in run.scores for run in runs)
        wanted = "adapted" if adapted else "sliding" if exported else "validation"
    nan = [run for run in runs if wanted in run.scores and not math.isfinite(run.scores[wanted].val_loss)]
    if nan:
        listed = ", ".join(str(run.path) for run in nan)
        untold = all(math.isfinite(run.scores[wanted].val_bpb) for run in nan)
        why = "tells bits per byte alone, no loss in nats" if untold else "is not a number: the run diverged"
        raise JgolfError(f"{listed}: the {_WHERE[wanted]} {why}; leave it out")
    missing = [run for run in runs if wanted not in run.scores]
    if missing:
        more = " --adapted" if wanted == "adapted" else ""
        how = "validate them" if wanted == "validation" else f"export them: jgolf export {missing[0].path}{more}"
        instead = "" if wanted == "validation" else ", or compare validations during training: --score validation"
        listed = ", ".join(str(run.path) for run in missing)
        raise JgolfError(f"{listed}: no {_WHERE[wanted]} found; {how}{instead}")
    return wanted


def _table(found: Comparison, name: str) -> Table:
    unit = found.unit
    in_nats = unit.tokens is None
    of_what = " of the original text" if unit.are_original else ""
    title = f"Loss in nats a token: {_WHERE[name]}" if in_nats else f"Bits per byte{of_what}: {_WHERE[name]}"
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("side")
    table.add_column("run", overflow="fold")
    for column in ("loss", "deviation", "bits per byte") if in_nats else ("loss", "bits per byte", "deviation"):
        table.add_column(column, justify="right", no_wrap=True)
    for side, runs, sample in zip("AB", found.sides, (found.a, found.b), strict=True):
        figures = [(run.scores[name].val_loss, unit.bits(run)) for run in runs]
        for run, values in zip(runs, figures, strict=True):
            loss, bits = (f"{value:.5f}" for value in values)
            table.add_row(side, str(run.path), *((loss, "", bits) if in_nats else (loss, bits, "")))
        loss, bits = (f"{np.mean(values):.5f}" for values in zip(*figures, strict=True))
        deviation = f"{sample.deviation / (1 if in_nats else unit.nats_per_bit_per_byte):.5f}"
        row = (loss, deviation, bits) if in_nats else (loss, bits, deviation)
        table.add_row(side, f"mean of {len(runs)}", *row, style="bold", end_section=True)
    return table


def _verdict(found: Comparison, options: CompareOptions, is_record: bool) -> Text:
    test, unit = found.test, found.unit
    direction = "lower" if test.difference > 0 else "higher"
    nats, convert = f"{abs(test.difference):.5f} nats", ""
    if unit.tokens is not None:
        of_what = " of the original text" if unit.are_original else ""
        bits = abs(test.difference) / unit.nats_per_bit_per_byte
        nats = f"{bits:.5f} bits per byte, {nats} a token of B's,"
        convert = (
            "the sides' tokens are different, so that their nats a token do not compare; both scored the same "
            f"{unit.bytes:,} bytes{of_what}. A token of B's is {unit.bytes_per_token:.4f} bytes, so a bit per byte is "
            f"{unit.nats_per_bit_per_byte:.4f} nats a token of B's, and {options.margin:g} nats are "
            f"{options.margin / unit.nats_per_bit_per_byte:.5f} bits per byte\n"
        )
    kind = "paired t" if found.is_paired else "Welch's t"
    low, high = test.interval
    told = (
        f"{convert}A is {nats} {direction} than B; asked for: {options.margin:g} nats lower at "
        f"p < {options.significance:g}\n"
        f"{kind} = {test.statistic:.3f} with {test.degrees_of_freedom:.2f} degrees of freedom, one-sided "
        f"p = {test.p_value:.2g}\n"
        f"{CONFIDENCE:.0%} interval of how much lower A is: {low:.5f} to {high:.5f} nats\n"
    )
    verdict = ("a record", "bold green") if is_record else ("not a record", "bold red")
    return Text.assemble(told, verdict)


def _advice(a: Sample, b: Sample, is_paired: bool, options: CompareOptions) -> str:
    if b.mean - a.mean <= options.margin:
        return f"no number of further seeds helps while A is not better by more than {options.margin:g} nats"
    arguments = (a, b, options.margin, options.significance, options.power)
    if is_paired:
        counts = f"{_count(further_pairs(*arguments))} of each, the same on both sides"
    else:
        alone, both = further_seeds(*arguments), further_seeds(*arguments, both=True)
        counts = f"{_count(alone)} of A alone, or {_count(both)} of each"
    return (
        f"further seeds for a chance of {options.power:.0%}, were the means and deviations above the true ones: "
        f"{counts}"
    )


def _count(seeds: int | None) -> str:
    return f"no number up to {MOST_FURTHER_SEEDS}" if seeds is None else str(seeds)
