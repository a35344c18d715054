from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from jgolf.config import replace
from jgolf.history import FinalScore
from jgolf.progress import table_console
from jgolf.sweep.grid import SweepRun
from jgolf.sweep.results import QUANTIZED, RunResult, results_table, summarize
from tests.conftest import RECIPE

RATE = "optim.muon.learning_rate"


def result(rate: float, seed: int, raw: float, ema: float) -> RunResult:
    run = SweepRun(replace(RECIPE, "train.seed", seed), {RATE: rate})
    scores = {name: FinalScore(loss, loss / 2) for name, loss in (("raw", raw), ("ema", ema))}
    return RunResult(run, raw + 0.1, scores, None, f"runs/{seed:03d}", "data")


RESULTS = [
    result(0.02, 0, 1.50, 1.40),
    result(0.02, 1, 1.52, 1.43),
    result(0.02, 2, 1.57, 1.41),
    result(0.03, 0, math.nan, math.nan),
    result(0.03, 1, 1.60, 1.50),
]


def test_interval_is_scipys():
    summaries = summarize(RESULTS)
    assert [(s.setting[RATE], s.weights) for s in summaries] == [(r, w) for r in (0.02, 0.03) for w in ("raw", "ema")]
    losses = [1.40, 1.43, 1.41]
    ema = summaries[1]
    assert (ema.runs, ema.finite_runs) == (3, 3)
    assert ema.val_loss == pytest.approx(np.mean(losses)) and ema.val_bpb == pytest.approx(np.mean(losses) / 2)
    assert ema.deviation == pytest.approx(np.std(losses, ddof=1))
    expected = stats.ttest_1samp(losses, 0).confidence_interval(0.95)
    np.testing.assert_allclose(ema.interval, expected)


def test_a_diverged_run_is_counted_and_shown_but_not_averaged():
    raw = summarize(RESULTS)[2]
    assert (raw.runs, raw.finite_runs, raw.val_loss) == (2, 1, 1.60)
    assert math.isnan(raw.deviation)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table(summarize(RESULTS), 120))
    text = console.export_text()
    assert "1 of 2" in text and "1.6000" in text and "learning" in text


@pytest.mark.parametrize("width", [120, 80, 60])
def test_a_narrow_table_says_of_what_its_numbers_are(width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(summarize(RESULTS), width))
    text = console.export_text()
    assert "learning" in text and "0.02" in text and "0.7067" in text and "…" not in text
    assert ("1.4133" in text) == (width > 60) and ("deviation" in text) == (width == 120)


def test_a_run_that_could_not_be_quantized_counts_as_one_that_diverged():
    scored = dataclasses.replace(RESULTS[0], scores={**RESULTS[0].scores, QUANTIZED: FinalScore(1.45, 0.72)})
    quantized = summarize([scored, RESULTS[1]])[2]
    assert quantized.weights == QUANTIZED
    assert (quantized.runs, quantized.finite_runs, quantized.val_loss) == (2, 1, 1.45)


def test_values_are_shown_as_they_are(capsys):
    """A value such as [/x], after all the training, is no markup that is closed without having been opened."""
    run = SweepRun(RECIPE, {"data.dir": "[/x]", "data.tokenizer": ":smile:[red]"})
    table_console().print(results_table(summarize([dataclasses.replace(RESULTS[0], run=run)]), 120))
    shown = capsys.readouterr().out
    assert "[/x]" in shown and ":smile:[red]" in shown
