from __future__ import annotations

import re

import pytest

from jgolf import config as configs
from jgolf.errors import ConfigError
from jgolf.sweep.grid import groups, make_runs, trainings, varying_values
from tests.conftest import RECIPE

BASE = configs.replace(RECIPE, "train.time_cap_s", 0.0)


def test_a_grid_has_every_combination_with_every_seed():
    runs = make_runs(BASE, 2, ["optim.muon.learning-rate=0.02,0.03", "quantize.mlp=int5, int6"])
    assert [(run.setting["optim.muon.learning_rate"], run.setting["quantize.mlp"], run.seed) for run in runs] == [
        (0.02, "int5", 1337),
        (0.02, "int5", 1338),
        (0.02, "int6", 1337),
        (0.02, "int6", 1338),
        (0.03, "int5", 1337),
        (0.03, "int5", 1338),
        (0.03, "int6", 1337),
        (0.03, "int6", 1338),
    ]
    assert [run.config.optim.muon.learning_rate for run in runs] == [0.02] * 4 + [0.03] * 4
    assert groups(runs) == [[0, 1, 4, 5], [2, 3, 6, 7]]  # by the form that late QAT rounds to


def test_values_take_the_type_of_their_setting():
    runs = make_runs(BASE, 1, ["model.xsa_layers=3;2,3", "model.smear_gate=true,false", "train.steps=10,20"])
    assert {run.config.model.xsa_layers for run in runs} == {(3,), (2, 3)}
    assert {run.config.model.smear_gate for run in runs} == {True, False}
    assert {run.config.train.steps for run in runs} == {10, 20}
    assert len(groups(runs)) == 8


@pytest.mark.parametrize(
    ("assignment", "num_groups"),
    [
        ("optim.grad_clip=0,0.3,1", 1),
        ("train.warmdown_steps=100,200", 1),
        ("quantize.late_qat_start=0,0.1", 1),
        ("average.ema_decay=0.9,0.99", 1),
        ("average.swa_start=0,0.1,0.2", 2),  # without SWA there is no sum in the state
        ("optim.muon.momentum_warmup_steps=0,10", 2),
    ],
)
def test_groups(assignment, num_groups):
    assert len(groups(make_runs(BASE, 2, [assignment]))) == num_groups


def test_what_comes_after_training_is_not_trained_again():
    runs = make_runs(BASE, 2, ["quantize.clip_percentiles=1.0;0.999,1.0", "average.export=raw,ema"])
    assert trainings(runs) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert trainings(make_runs(BASE, 1, ["quantize.late_qat_start=0,0.1"])) == [[0], [1]]


def test_only_what_varies_is_a_value_of_the_program():
    runs = make_runs(BASE, 2, ["optim.adamw.beta2=0.95,0.99"])
    assert varying_values(runs) == {"optim.adamw.beta2": [0.95, 0.95, 0.99, 0.99]}


@pytest.mark.parametrize(
    ("seeds", "assignments", "expected"),
    [
        (0, [], "--seeds 0"),
        (1, ["optim.muon.learning_rate"], "expected NAME=VALUE"),
        (1, ["optim.muon.learning_rate="], "expected NAME=VALUE"),
        (1, ["optim.muon.learningrate=1,2"], "did you mean optim.muon.learning_rate"),
        (1, ["optim.muon=1,2"], "no setting is called 'optim.muon'"),
        (
            1,
            ["quantize.mlp=int5,int9"],
            "--set quantize.mlp=int9: expected one of int4, int5, int6, int7, int8, fp16, fp32",
        ),
        (1, ["train.steps=1,two"], "--set train.steps=two: expected a value such as the present train.steps=20000"),
        (1, ["model.smear_gate=yes"], "--set model.smear_gate=yes"),
        (1, ["train.steps=1,1"], "given twice"),
        (1, ["train.steps=1", "train.steps=2"], "given twice"),
        (1, ["train.seed=1,2"], "--seeds"),
        (1, ["optim.muon.momentum=0.9,1.5"], "optim.muon.momentum is 1.5"),
        (10**9, [], "--seeds 1000000000: 1,000,000,000 runs, expected at most 10,000"),
        (5000, ["train.steps=1,2,3"], "--seeds 5000 of 3 settings: 15,000 runs, expected at most 10,000"),
        (1, ["train.steps=" + ",".join(map(str, range(20_000)))], "--set train.steps: 20,000 values, expected at most"),
        (1, ["train.steps=" + "9" * 5000], "--set train.steps=" + "9" * 200 + ": expected a value such as"),
        (1, ["x" * 9000 + "=1"], "no setting is called '" + "x" * 78 + "…"),
    ],
)
def test_errors(seeds, assignments, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        make_runs(BASE, seeds, assignments)
