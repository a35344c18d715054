"""The same numbers for every number of devices and processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jgolf import config as configs
from tests.train.runs import Runs, finish, free_port, nano_config

STEPS = 12
LEVERS = {"optim.muon.neuron_normalization": True, "optim.muon.look_ahead": 0.3, "optim.cautious_decay": True}
"""What stands beside Muon's orthogonalization, which the devices share."""
WORKER = Path(__file__).parent / "layout_worker.py"


def _results(output: str) -> list[dict]:
    return [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT ")]


@pytest.fixture(scope="module")
def config(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("layouts") / "config.json"
    config = configs.replace_all(nano_config(runs.data_dir, steps=STEPS), LEVERS)
    configs.write_json(configs.validate(config), path)
    return str(path)


@pytest.fixture(scope="module")
def one_and_eight(runs: Runs, config: str) -> list[dict]:
    """Of one and of all devices of a process that has eight."""
    return _results(finish(runs.start(WORKER, config, "1,8", devices=8)))


@pytest.fixture(scope="module")
def alone(one_and_eight: list[dict]) -> dict:
    return one_and_eight[0]


def test_eight_devices(one_and_eight: list[dict]) -> None:
    _agree(*one_and_eight)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 16])  # sixteen share Muon's orthogonalization in two groups of eight
def test_other_numbers_of_devices(runs: Runs, config: str, alone: dict, devices: int) -> None:
    _agree(alone, _results(finish(runs.start(WORKER, config, str(devices), devices=devices)))[0])


def test_two_processes_of_four_devices(runs: Runs, config: str, alone: dict) -> None:
    address = f"localhost:{free_port()}"
    pair = [runs.start(WORKER, config, "8", address, "2", str(index), devices=4) for index in range(2)]
    first, second = (finish(process) for process in pair)
    assert not _results(second)
    _agree(alone, _results(first)[0])


def _agree(alone: dict, spread: dict) -> None:
    assert len(alone["losses"]) == STEPS
    assert alone["late_qat"][0] == 0 and alone["late_qat"][-1] == 1  # both kinds of step are among them
    assert spread["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert spread["standard"] == pytest.approx(alone["standard"], rel=1e-6)
    assert spread["sliding"] == pytest.approx(alone["sliding"], rel=1e-6)
