"""The same numbers for every number of devices and processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import Runs, finish, free_port, nano_config

from jgolf import config as configs

WORKER = Path(__file__).parent / "layout_worker.py"


def _results(output: str) -> list[dict]:
    return [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT ")]


@pytest.fixture(scope="module")
def results(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    path = tmp_path_factory.mktemp("layouts") / "config.json"
    configs.write_json(nano_config(runs.data_dir), path)
    one = _results(finish(runs.start(WORKER, str(path), "1,2,4,8", devices=8)))
    address = f"localhost:{free_port()}"
    pair = [runs.start(WORKER, str(path), "8", address, "2", str(index), devices=4) for index in range(2)]
    first, second = (finish(process) for process in pair)
    assert not _results(second)
    return {str(result["devices"]): result for result in one} | {"2 × 4": _results(first)[0]}


@pytest.mark.parametrize("layout", ["2", "4", "8", "2 × 4"])
def test_losses_and_scores_do_not_depend_on_the_layout(results: dict[str, dict], layout: str) -> None:
    alone, spread = results["1"], results[layout]
    assert len(alone["losses"]) == 20
    assert alone["late_qat"][0] == 0 and alone["late_qat"][-1] == 1  # both kinds of step are among them
    assert spread["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert spread["standard"] == pytest.approx(alone["standard"], rel=1e-6)
    assert spread["sliding"] == pytest.approx(alone["sliding"], rel=1e-6)
