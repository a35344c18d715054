"""Runs alike but for the seed: how they are found, and what their seeds say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from jgolf.config import replace, write_json
from jgolf.history import read_history
from jgolf.report.groups import against, all_against, compared_kind, default_baseline, groups_of, with_groups
from tests.conftest import RECIPE

BYTES_A_TOKEN = 2.5
OLD, NEW = (2.000, 2.003, 1.998, 2.001), (1.985, 1.989, 1.984, 1.986)


def _run(folder, loss, seed, rate=0.025, kinds=("validation",)):
    folder.mkdir(parents=True)
    write_json(replace(replace(RECIPE, "train.seed", seed), "optim.muon.learning_rate", rate), folder / "config.json")
    score = {"val_loss": loss, "val_bpb": loss / math.log(2) / BYTES_A_TOKEN}
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, **score, "train_time_s": 1.0}) + "\n")
    if "sliding" in kinds:
        (folder / "artifact").mkdir()
        result = {f"sliding_{name}": value for name, value in score.items()}
        (folder / "artifact" / "result.json").write_text(json.dumps(result))
    return read_history(folder)


def _sides(folder, seeds_of_new):
    old = [_run(folder / f"old-seed{seed}", loss, seed, 0.02) for seed, loss in enumerate(OLD)]
    new = [_run(folder / f"new-seed{seed}", loss, seed) for seed, loss in zip(seeds_of_new, NEW, strict=True)]
    return groups_of(with_groups([*old, *new]), "validation")


@pytest.mark.parametrize("is_paired", [False, True])
def test_a_difference_is_that_of_the_t_test(is_paired, tmp_path):
    old, new = _sides(tmp_path, range(4) if is_paired else range(10, 14))
    assert (old.name, new.name) == ("old", "new")
    test = (stats.ttest_rel if is_paired else stats.ttest_ind)(
        np.array(OLD) - 0.005, NEW, alternative="greater", **({} if is_paired else {"equal_var": False})
    )
    both = (stats.ttest_rel if is_paired else stats.ttest_ind)(NEW, OLD, **({} if is_paired else {"equal_var": False}))
    low, high = both.confidence_interval(0.95)
    found = against(new, old)
    bits = 1 / math.log(2) / BYTES_A_TOKEN
    assert found.difference == pytest.approx(bits * (np.mean(NEW) - np.mean(OLD)))
    assert found.half == pytest.approx(bits * (high - low) / 2)
    assert f"p = {test.pvalue:.2g} " in found.told and "passes" in found.told
    assert ("paired" if is_paired else "Welch") in found.told
    assert "does not pass" in against(old, new).told
    half = stats.sem(NEW) * stats.t.ppf(0.975, 3)
    assert new.half == pytest.approx(bits * half) and new.mean == pytest.approx(bits * np.mean(NEW))


def test_one_seed_tells_no_noise(tmp_path):
    runs = [_run(tmp_path / "a", 2.0, 1), _run(tmp_path / "b", 1.9, 1, 0.03)]
    a, b = groups_of(with_groups(runs), "validation")
    found = against(b, a)
    assert found.difference < 0 and math.isnan(found.half) and "the seeds’ noise is not known" in found.told
    assert all_against([a, b], 0)[0][0].told == "baseline"


@pytest.mark.parametrize(
    ("names", "seeds", "expected"),
    [
        (("new-1", "new-2"), (1, 2), "new"),
        (("demos1", "demos12"), (1, 2), "demos"),
        (("alps", "alpha"), (1, 2), "alps, alpha"),
        (("x-seed-1", "x-seed-2"), (1, 2), "x"),
        (("first", "again"), (1, 1), None),
    ],
)
def test_runs_alike_but_for_the_seed_share_a_name(names, seeds, expected, tmp_path):
    runs = with_groups([_run(tmp_path / name, 2.0, seed) for name, seed in zip(names, seeds, strict=True)])
    assert [run.legend for run in runs] == ([expected] * 2 if expected else list(names))


def test_logs_of_several_seeds_share_a_name(tmp_path):
    names = ("train_seed42.log", "train_seed314.log", "other.log")
    for name in names:
        (tmp_path / name).write_text("step:3/3 val_loss:2.0 val_bpb:1.2 train_time:5ms\n")
    runs = with_groups([read_history(tmp_path / name) for name in names])
    assert [run.legend for run in runs] == ["train", "train", "other"]


def test_the_kind_that_every_scored_run_has_is_compared(tmp_path):
    exported = _run(tmp_path / "a", 2.0, 1, kinds=("validation", "sliding"))
    plain = _run(tmp_path / "b", 2.0, 2)
    assert compared_kind([exported]) == "sliding"
    assert compared_kind([exported, plain]) == "validation"
    assert compared_kind([]) == ""


def test_the_whole_recipe_is_an_ablations_baseline(tmp_path):
    runs = [_run(tmp_path / "a", 2.0, 1), _run(tmp_path / "b", 2.0, 1, 0.03)]
    named = [
        type(run)(**{**run.__dict__, "group": group})
        for run, group in zip(runs, ("without XSA", "without nothing"), strict=True)
    ]
    assert default_baseline(groups_of(named, "validation")) == 1
    assert default_baseline(groups_of(runs, "validation")) == 0
