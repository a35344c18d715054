"""What a sweep's folder keeps, and what it takes for the same sweep."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jgolf import config as configs
from jgolf.data.fingerprint import data_fingerprint
from jgolf.data.shards import write_shard
from jgolf.errors import JgolfError
from jgolf.history import FinalScore
from jgolf.sweep.folder import SweepFolder
from jgolf.sweep.grid import SweepRun, make_runs
from jgolf.sweep.results import RunResult
from tests.conftest import RECIPE

RATE = "optim.muon.learning_rate"


@pytest.fixture
def runs(tmp_path: Path, demo_dir: Path) -> list[SweepRun]:
    data = tmp_path / "data"
    data.mkdir()
    (tokenizer,) = demo_dir.glob("*.model")
    shutil.copy(tokenizer, data)
    for split in ("train", "val"):
        write_shard(data / f"x_{split}_0.bin", np.arange(1000))
    base = configs.replace_all(RECIPE, {"data.dir": str(data), "train.time_cap_s": 0.0})
    return make_runs(base, 2, [f"{RATE}=0.02,0.03"])


def trained(folder: SweepFolder, index: int, loss: float) -> RunResult:
    """What training the run of `folder.runs` with this index leaves, and returns."""
    run = folder.runs[index]
    (name,) = [name for name, new in folder.new.items() if new is run]
    configs.write_json(run.config, folder.path / name / "config.json")
    (folder.path / name / "metrics.jsonl").write_text("")
    scores = {"raw": FinalScore(loss, loss / 2)}
    return RunResult(run, loss, scores, 1000 + index, name, data_fingerprint(run.config.data))


def test_results_come_back_in_order(runs, tmp_path):
    folder = SweepFolder(tmp_path / "sweep", runs)
    assert list(folder.new) == ["runs/000", "runs/001", "runs/002", "runs/003"]
    results = {index: trained(folder, index, 2.0 + index) for index in (2, 0)}
    for result in results.values():
        folder.keep(result, {"seconds": 7.0})

    again = SweepFolder(tmp_path / "sweep", runs)
    assert again.results == [results[0], results[2]] == folder.results
    assert again.seconds == 7.0
    assert again.new == {"runs/001": runs[1], "runs/003": runs[3]}
    rows = list(csv.DictReader((tmp_path / "sweep" / "results.csv").open()))
    assert [(row[RATE], row["seed"], row["raw_val_loss"]) for row in rows] == [
        ("0.02", "1337", "2.0"),
        ("0.03", "1337", "4.0"),
    ]


def test_a_loss_that_is_no_number_comes_back(runs, tmp_path):
    folder = SweepFolder(tmp_path / "sweep", runs)
    folder.keep(trained(folder, 0, float("nan")), {"seconds": 1.0})
    assert "NaN" not in (tmp_path / "sweep" / "results.json").read_text()
    (result,) = SweepFolder(tmp_path / "sweep", runs).results
    assert np.isnan([result.train_loss, *result.scores["raw"]]).all()


def test_other_data_do_not_compare(runs, tmp_path):
    folder = SweepFolder(tmp_path / "sweep", runs)
    folder.keep(trained(folder, 0, 2.0), {"seconds": 1.0})
    SweepFolder(tmp_path / "sweep", runs).make_ready()
    write_shard(tmp_path / "data" / "x_val_0.bin", np.arange(999))
    again = SweepFolder(tmp_path / "sweep", runs)
    with pytest.raises(JgolfError, match="runs/000: trained on other tokens than .*data holds now"):
        again.make_ready()


def test_what_is_left_of_runs_without_a_result_goes(runs, tmp_path):
    folder = SweepFolder(tmp_path / "sweep", runs)
    folder.keep(trained(folder, 0, 2.0), {"seconds": 1.0})
    trained(folder, 1, 2.0)  # and stopped before it was kept
    others = tmp_path / "sweep" / "runs"
    for name, file in (("007", "mine.txt"), ("notes", "config.json")):
        (others / name).mkdir()
        (others / name / file).write_text("{}")
    SweepFolder(tmp_path / "sweep", runs).make_ready()
    assert sorted(path.name for path in others.iterdir()) == ["000", "007", "notes"]


def test_a_result_is_not_lost_to_other_options(runs, tmp_path):
    folder = SweepFolder(tmp_path / "sweep", runs)
    folder.keep(trained(folder, 3, 2.0), {"seconds": 1.0})
    with pytest.raises(JgolfError, match=r"runs/003: its result would be lost.*learning_rate 0\.03"):
        SweepFolder(tmp_path / "sweep", runs[:2])
    written = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert len(written["runs"]) == 1
