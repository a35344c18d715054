"""Which runs an ablation is made of, and its differences against SciPy's."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from jgolf import config as configs
from jgolf.config.parts import PARTS
from jgolf.errors import ConfigError
from jgolf.history import FinalScore
from jgolf.sweep.ablation import NOTHING, WITHOUT, make_ablation, worths, worths_table
from jgolf.sweep.grid import SweepRun, groups
from jgolf.sweep.results import QUANTIZED, RunResult
from tests.conftest import RECIPE

BASE = configs.replace(RECIPE, "train.time_cap_s", 0.0)
OFF = {part.name: part.off for part in PARTS if part.is_in(BASE)}


def test_every_technique_of_the_recipe_is_left_out_once():
    runs = make_ablation(BASE, 2)
    assert [run.setting[WITHOUT] for run in runs] == [name for name in (NOTHING, *OFF) for _ in range(2)]
    assert [run.seed for run in runs] == [1337, 1338] * (1 + len(OFF))
    base = configs.leaves(BASE)
    for run in runs[2::2]:
        changed = {name for name, value in configs.leaves(run.config).items() if value != base[name]}
        off = OFF[run.setting[WITHOUT]]
        assert changed == {name for name, value in off.items() if value != base[name]}
    # What training takes as numbers, or never sees, is one program with the recipe itself.
    together = {runs[index].setting[WITHOUT] for index in groups(runs)[0]}
    expected = {"weight decay", "gradient clip", "warmdown", "EMA", "late QAT", "clip search"}
    assert together == {NOTHING, *expected}


def test_what_a_config_lacks_is_not_left_out():
    config = configs.replace(configs.replace(BASE, "model.smear_gate", False), "model.xsa_layers", ())
    found = {run.setting[WITHOUT] for run in make_ablation(config, 1)}
    assert found == {NOTHING, *OFF} - {"SmearGate", "XSA"}
    for settings in OFF.values():
        config = configs.replace_all(config, settings)
    with pytest.raises(ConfigError, match="--ablate: pr592 has none"):
        make_ablation(config, 1)


def test_what_only_looks_like_a_technique_is_not_left_out():
    config = configs.replace_all(BASE, {"quantize.mlp": "int8", "model.mlp_multiple": 1.0, "average.export": "swa"})
    found = {run.setting[WITHOUT] for run in make_ablation(config, 1)}
    assert found == {NOTHING, *OFF} - {"Int5 MLP", "3× MLP", "EMA"}


def test_techniques_are_chosen_by_name():
    found = [run.setting[WITHOUT] for run in make_ablation(BASE, 1, ["late QAT", "xsa", "3x mlp"])]
    assert found == [NOTHING, "XSA", "3× MLP", "late QAT"]
    with pytest.raises(ConfigError, match="--techniques 'XSB': expected some of 'BigramHash'"):
        make_ablation(BASE, 1, ["XSB"])


def result(without: str, seed: int, bpb: float, artifact_bytes: int | None = 1000) -> RunResult:
    config = configs.replace(BASE, "train.seed", seed)
    scores = {name: FinalScore(bpb, bpb + shift) for name, shift in (("ema", 0.0), (QUANTIZED, 0.1))}
    return RunResult(SweepRun(config, {WITHOUT: without}), bpb, scores, artifact_bytes, "runs/000", "data")


def test_the_differences_are_student_s_paired_test():
    whole, without = [1.50, 1.52, 1.49], [1.53, 1.58, 1.55]
    results = [result(NOTHING, seed, bpb) for seed, bpb in enumerate(whole)]
    results += [result("XSA", seed, without[seed], 900) for seed in (2, 0, 1)]
    (found,) = worths(results)
    expected = stats.ttest_rel(without, whole).confidence_interval(0.95)
    for one, shift in ((found.before, 0.0), (found.quantized, 0.1)):
        assert one.seeds == 3 and one.without == pytest.approx(np.mean(without) + shift)
        assert (one.gain - one.interval, one.gain + one.interval) == pytest.approx(tuple(expected))
    assert found.artifact_bytes == 100


def test_only_seeds_that_both_have_are_compared():
    results = [result(NOTHING, 1, 1.5), result(NOTHING, 2, math.nan), result("XSA", 2, 1.7), result("XSA", 1, 1.6)]
    results += [result(NOTHING, 3, math.nan, 2000), result(NOTHING, 4, 1.5, 3000), result("XSA", 4, math.nan, 2900)]
    (found,) = worths(results)
    assert found.artifact_bytes == pytest.approx((0 + 0 + 100) / 3)
    assert found.before.seeds == 1 and found.before.gain == pytest.approx(0.1) and math.isnan(found.before.interval)


def test_variants_without_a_score_are_shown():
    results = [result(NOTHING, 1, 1.5), result("XSA", 1, math.nan, None), result("SmearGate", 1, 1.6)]
    xsa, smear = worths(results)
    assert xsa.quantized.seeds == 0 and math.isnan(xsa.quantized.gain) and math.isnan(xsa.artifact_bytes)
    assert smear.before.gain == pytest.approx(0.1) and math.isnan(smear.before.interval)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(worths_table([xsa, smear]))
    text = console.export_text()
    assert "no score" in text and "+0.1000" in text and "xsa_layers=none" in text
