"""When a network's loop counts as on, beside the steps that train it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from jgolf.evaluate.score import Score
from jgolf.train.clock import Clock
from jgolf.train.loop import Loop
from jgolf.train.run import _loop_notice, _never_loops
from tests.conftest import RECIPE

TRAIN = dataclasses.replace(RECIPE.train, steps=8, time_cap_s=0.0, loop_start_fraction=0.5)
MODEL = dataclasses.replace(RECIPE.model, loop_layers=(1, 2))


@pytest.mark.parametrize(("first_step", "looped"), [(0, False), (4, False), (5, True), (8, True)])
def test_a_resumed_run_validates_as_the_step_before_was_trained(first_step: int, looped: bool) -> None:
    """Steps 1 to 4 of 8 are trained without the loop: without an interruption, so would step 4 be validated."""
    asked = []

    def standard(params, max_tokens, **how):
        asked.append(how["looped"])
        return Score(1.0, 1.0, tokens=1, bytes=1, seconds=0.0)

    run = SimpleNamespace(
        config=dataclasses.replace(RECIPE, train=TRAIN, model=MODEL),
        first_step=first_step,
        first_is_validated=False,
        clock=Clock(0.0),
        mesh=None,
        state=SimpleNamespace(params={}),
        validation=SimpleNamespace(standard=standard),
        log=SimpleNamespace(validation=lambda *values: None),
    )
    loop = Loop(run, SimpleNamespace(received=None))
    loop._validate()
    assert asked == [looped]


@pytest.mark.parametrize(
    ("changed", "never"),
    [
        ({}, False),
        ({"loop_start_fraction": 0.875}, False),  # the eighth step begins there
        ({"loop_start_fraction": 0.9}, True),
        ({"loop_start_fraction": 1.0}, True),
        ({"loop_start_fraction": 1.0, "time_cap_s": 600.0}, False),  # the cap may be reached in the last step
        ({"loop_start_fraction": 0.5, "steps": 1}, True),
        ({"loop_start_fraction": 0.0, "steps": 1}, False),
        ({"steps": 0}, False),
    ],
)
def test_a_loop_that_is_never_trained_is_told(changed: dict[str, float], never: bool) -> None:
    train = dataclasses.replace(TRAIN, **changed)
    assert _never_loops(train) == never
    assert f"none of the {train.steps} steps" in _loop_notice(train)
