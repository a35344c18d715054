"""`jgolf compare A… -- B…`: the challenge's test for a record, from the results of runs."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float
from numpy.typing import ArrayLike
from rich import box
from rich.table import Table
from rich.text import Text

from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, JgolfError
from jgolf.options import PathText
from jgolf.progress import counted, plain_console
from jgolf.report.history import History, read_history

MOST_FURTHER_SEEDS = 1000
SIMULATIONS = 20_000
SAME_TEXT = 3e-4
"""Relative difference of bytes a token, above which two texts differ; the digits of a log leave half of that."""
ScoreName = Literal["auto", "sliding", "standard", "validation"]
_WHERE = {
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
    """Which loss; auto takes the sliding one of the artifacts, or the last validation where no run was exported."""
    margin: float = 0.005
    """Nats by which A has to be better; the challenge asks for 0.005 of a record."""
    significance: float = 0.01
    """Largest p with which A counts as better."""
    power: float = 0.8
    """Chance of success for which further seeds are counted."""


@dataclass(frozen=True)
class Sample:
    """Losses of one side, in nats."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, with n − 1."""
        return float(np.std(self.losses, ddof=1))


@dataclass(frozen=True)
class Welch:
    """Welch's one-sided test of: mean of B − mean of A > margin."""

    difference: float
    """Mean of B − mean of A: how much better A is, in nats."""
    statistic: float
    degrees_of_freedom: float
    p_value: float


def welch_test(a: Sample, b: Sample, margin: float) -> Welch:
    """t = (mean B − mean A − margin) / √(s²_A/n_A + s²_B/n_B), one-sided.

    The degrees of freedom are Welch and Satterthwaite's (B. L. Welch, Biometrika 34, 1947).

    Raises:
      JgolfError: the losses of neither side vary at all, so that there is no noise to measure against.
    """
    from scipy import stats  # takes a second to import, which --help need not wait for

    difference = b.mean - a.mean
    error, freedom = _standard_error(a.deviation, len(a.losses), b.deviation, len(b.losses))
    if error == 0:
        raise JgolfError(
            "the losses do not vary on either side: expected runs of different seeds (train.seed), found the same "
            f"loss {len(a.losses)} times in A and {len(b.losses)} times in B"
        )
    statistic = (difference - margin) / error
    return Welch(difference, float(statistic), float(freedom), float(stats.t.sf(statistic, freedom)))


def further_seeds(
    a: Sample, b: Sample, margin: float, significance: float, power: float, both: bool = False
) -> int | None:
    """Runs to add so that the test succeeds with the given chance; the losses that are there stay as they are.

    Further losses are taken to be normal, with the measured means and deviations. The chance is the share
    of SIMULATIONS draws of them with which the test succeeds.

    Args:
      a, b: the sides.
      margin, significance: of the test.
      power: the chance wanted.
      both: add as many to B as to A; otherwise to A alone.

    Returns:
      The number, at least 1; None where MOST_FURTHER_SEEDS are not enough.
    """
    from scipy import stats

    def is_enough(count: int) -> bool:
        rng = np.random.default_rng(0)
        mean_a, deviation_a = _with_further(a, count, rng)
        mean_b, deviation_b = _with_further(b, both * count, rng)
        error, freedom = _standard_error(deviation_a, len(a.losses) + count, deviation_b, len(b.losses) + both * count)
        p_values = stats.t.sf((mean_b - mean_a - margin) / error, freedom)
        return np.mean(p_values < significance) >= power

    enough = 1
    while not is_enough(enough):  # with B as it is, even a perfectly known A can be too little
        if enough == MOST_FURTHER_SEEDS:
            return None
        enough = min(2 * enough, MOST_FURTHER_SEEDS)
    counts = range(enough // 2 + 1, enough)
    return enough // 2 + 1 + bisect.bisect_left(counts, True, key=is_enough)


def _with_further(
    sample: Sample, count: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Means and deviations of the losses and `count` more, in SIMULATIONS draws of these."""
    known, mean, deviation = len(sample.losses), sample.mean, sample.deviation
    if count == 0:
        return np.full(SIMULATIONS, mean), np.full(SIMULATIONS, deviation)
    # A normal sample's mean and its sum of squares are independent: no need to draw every loss.
    off = rng.normal(0.0, deviation / math.sqrt(count), SIMULATIONS)
    squares = deviation**2 * rng.chisquare(count - 1, SIMULATIONS) if count > 1 else 0.0
    total = known + count
    squares = squares + deviation**2 * (known - 1) + off**2 * known * count / total
    return mean + off * count / total, np.sqrt(squares / (total - 1))


def compare(argv: list[str], prog: str = "jgolf compare") -> int:
    """Parses the command line and prints the comparison; the exit code is 0 for a record, else 1."""
    before, dashes, after = _split_sides(argv)
    options = tyro.cli(
        CompareOptions,
        prog=prog,
        args=[*before, *after],
        description=(
            "Is A better than B by the challenge's rule for a record: a mean loss lower by at least 0.005 nats at "
            f"p < 0.01 (Welch's one-sided t-test over the seeds)? Usage: {prog} A1 A2 A3 -- B1 B2 B3. The exit status "
            "is 0 if so, 1 if not."
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
    _check_same_text([*sides[0], *sides[1]], name)
    for side, runs in zip("AB", sides, strict=True):
        if seeds := _repeated_seeds(runs):
            print(f"warning: {side} has several runs of seed {', '.join(seeds)}: these are no sample of the noise")
    a, b = (Sample(tuple(run.scores[name].val_loss for run in side)) for side in sides)
    test = welch_test(a, b, options.margin)
    is_record = test.difference >= options.margin and test.p_value < options.significance
    console = plain_console()
    console.print(_table(sides, name, a, b))
    console.print(_verdict(test, options, is_record), highlight=False)
    if not is_record:
        console.print(_advice(a, b, options), highlight=False)
    return EXIT_OK if is_record else EXIT_CHECK_FAILED


compare.parse_and_call = lambda prog, argv: compare(argv, prog)


def _split_sides(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in argv:
        return list(argv), False, []
    at = list(argv).index("--")
    return list(argv[:at]), True, list(argv[at + 1 :])


def _standard_error(
    deviation_a: ArrayLike, count_a: int, deviation_b: ArrayLike, count_b: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the difference of the means; and Welch and Satterthwaite's degrees of freedom, NaN where it is 0."""
    square_a, square_b = np.square(deviation_a) / count_a, np.square(deviation_b) / count_b
    total = square_a + square_b
    with np.errstate(invalid="ignore"):
        return np.sqrt(total), total**2 / (square_a**2 / (count_a - 1) + square_b**2 / (count_b - 1))


def _check_distinct(paths: Sequence[str]) -> None:
    seen: set[Path] = set()
    for path in paths:
        resolved = Path(path).resolve()
        if resolved in seen:
            raise JgolfError(f"{path}: named twice; expected each run once: the seeds are the sample")
        seen.add(resolved)


def _repeated_seeds(runs: Sequence[History]) -> list[str]:
    seeds = [str(run.config["train.seed"]) for run in runs if "train.seed" in run.config]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1})


def _score_name(runs: Sequence[History], wanted: ScoreName) -> str:
    """The score to compare, which every run has.

    Raises:
      JgolfError: some runs do not, or theirs is not a number.
    """
    if wanted == "auto":
        exported = any("sliding" in run.scores for run in runs)
        wanted = "sliding" if exported else "validation"
    nan = [run for run in runs if wanted in run.scores and not math.isfinite(run.scores[wanted].val_loss)]
    if nan:
        listed = ", ".join(str(run.path) for run in nan)
        raise JgolfError(f"{listed}: the {_WHERE[wanted]} is not a number: the run diverged; leave it out")
    missing = [run for run in runs if wanted not in run.scores]
    if missing:
        how = "validate them" if wanted == "validation" else f"export them: python export.py {missing[0].path}"
        instead = "" if wanted == "validation" else ", or compare validations during training: --score validation"
        listed = ", ".join(str(run.path) for run in missing)
        raise JgolfError(f"{listed}: no {_WHERE[wanted]} found; {how}{instead}")
    return wanted


def _check_same_text(runs: Sequence[History], name: str) -> None:
    """Nats a token compare only on the same tokens: as many, where that is known, and of as many bytes each."""
    texts: dict[tuple[int, int], str] = {}
    for run in runs:
        if name != "validation" and {"tokens", "bytes"} <= run.result.keys():
            tokens = run.result["tokens"]
            texts.setdefault((tokens, run.result["bytes"]), f"{run.path}: {tokens:,} tokens")
    ratios = [(run.scores[name].val_loss / math.log(2) / run.scores[name].val_bpb, run.path) for run in runs]
    known = sorted((ratio, str(path)) for ratio, path in ratios if math.isfinite(ratio) and ratio > 0)
    different = list(texts.values()) if len(texts) > 1 else []
    if known and known[-1][0] > (1 + SAME_TEXT) * known[0][0]:
        different += [f"{path}: {ratio:.4f} bytes a token" for ratio, path in (known[0], known[-1])]
    if different:
        listed = "; ".join(different)
        raise JgolfError(
            f"the runs were not scored on the same text: {listed}; score them on the same validation split"
        )


def _table(sides: Sequence[Sequence[History]], name: str, a: Sample, b: Sample) -> Table:
    table = Table(title=f"Loss in nats a token: {_WHERE[name]}", box=box.SIMPLE)
    table.add_column("side")
    table.add_column("run", overflow="fold")
    for column in ("loss", "deviation", "bits per byte"):
        table.add_column(column, justify="right", no_wrap=True)
    for side, runs, sample in zip("AB", sides, (a, b), strict=True):
        for run in runs:
            score = run.scores[name]
            table.add_row(side, str(run.path), f"{score.val_loss:.5f}", "", f"{score.val_bpb:.5f}")
        mean_bpb = float(np.mean([run.scores[name].val_bpb for run in runs]))
        row = (f"mean of {len(runs)}", f"{sample.mean:.5f}", f"{sample.deviation:.5f}", f"{mean_bpb:.5f}")
        table.add_row(side, *row, style="bold", end_section=True)
    return table


def _verdict(test: Welch, options: CompareOptions, is_record: bool) -> Text:
    direction = "lower" if test.difference > 0 else "higher"
    found = (
        f"A is {abs(test.difference):.5f} nats {direction} than B; asked for: {options.margin:g} lower at "
        f"p < {options.significance:g}\n"
        f"Welch's t = {test.statistic:.3f} with {test.degrees_of_freedom:.2f} degrees of freedom, one-sided "
        f"p = {test.p_value:.2g}\n"
    )
    verdict = ("a record", "bold green") if is_record else ("not a record", "bold red")
    return Text.assemble(found, verdict)


def _advice(a: Sample, b: Sample, options: CompareOptions) -> str:
    if b.mean - a.mean <= options.margin:
        return f"no number of further seeds helps while A is not better by more than {options.margin:g} nats"
    arguments = (a, b, options.margin, options.significance, options.power)
    alone, both = further_seeds(*arguments), further_seeds(*arguments, both=True)
    return (
        f"further seeds for a chance of {options.power:.0%}, were the means and deviations above the true ones: "
        f"{_count(alone)} of A alone, or {_count(both)} of each"
    )


def _count(seeds: int | None) -> str:
    return f"no number up to {MOST_FURTHER_SEEDS}" if seeds is None else str(seeds)
