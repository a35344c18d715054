from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from jgolf.config import write_json
from jgolf.errors import JgolfError
from jgolf.history import read_histories, read_history
from jgolf.train.log import RunLog
from tests.conftest import RECIPE

REFERENCE_LOG = """\
model_params:26993756
warmup_step:20/20
step:0/20 val_loss:6.9000 val_bpb:4.1000 train_time:0ms step_avg:0.01ms
step:1/20 train_loss:6.9321 train_time:130ms step_avg:130.00ms
step:10/20 train_loss:5.5000 train_time:1300ms step_avg:130.00ms
swa:start step:14
late_qat:enabled step:16 scale:0.1483
step:20/20 train_loss:nan train_time:2600ms step_avg:130.00ms
step:20/20 val_loss:5.1000 val_bpb:3.0200 train_time:2601ms step_avg:130.05ms
peak memory allocated: 21472 MiB reserved: 22004 MiB
Total submission size int6+zstd: 15497769 bytes
final_int6_roundtrip val_loss:5.1200 val_bpb:3.0300 eval_time:10ms
final_int6_roundtrip_exact val_loss:5.12340000 val_bpb:3.03120000
final_int6_sliding_window val_loss:5.0900 val_bpb:3.0100 stride:64 eval_time:10ms
final_int6_sliding_window_exact val_loss:5.09120000 val_bpb:3.01340000
"""


def test_a_log_of_the_reference(tmp_path):
    path = tmp_path / "pytorch.txt"
    path.write_text(REFERENCE_LOG)
    run = read_history(path)
    assert run.name == "pytorch" and run.config == {} and run.artifact is None
    np.testing.assert_array_equal(run.train["step"], [1, 10, 20])
    np.testing.assert_allclose(run.train["train_time_s"], [0.13, 1.3, 2.6])
    np.testing.assert_allclose(run.train["train_loss"][:2], [6.9321, 5.5])
    assert math.isnan(run.train["train_loss"][2]) and np.isnan(run.train["grad_norm"]).all()
    np.testing.assert_array_equal(run.validation["step"], [0, 20])
    np.testing.assert_allclose(run.validation["val_bpb"], [4.1, 3.02])
    assert run.events == {"SWA": 14, "late QAT": 16}
    assert run.scores == {"validation": (5.1, 3.02), "standard": (5.1234, 3.0312), "sliding": (5.0912, 3.0134)}
    assert run.result == {
        **{"total_bytes": 15497769, "num_params": 26993756, "peak_memory_bytes": 21472 << 20},
        **{"eval_s": 0.01, "sliding_eval_s": 0.01},
    }


def test_values_that_are_no_numbers_count_as_not_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "train_loss": "x", "train_time_s": 1.5}\n{"step": null, "train_loss": 3}\n{"step": [2]}\n'
        '{"step": "3", "train_loss": 3}\n{"step": 2, "train_loss": 4, "grad_norm": null}\n[1]\n{"step": 3, "trai'
    )
    run = read_history(path)
    np.testing.assert_array_equal(run.train["step"], [1, 2])
    np.testing.assert_array_equal(run.train["train_loss"], [np.nan, 4])
    np.testing.assert_array_equal(run.train["train_time_s"], [1.5, np.nan])


@pytest.mark.parametrize("name", ["val_loss", "sliding_val_bpb", "total_bytes"])
def test_a_damaged_result_is_refused_by_name(run_dir, name):
    path = run_dir / "artifact" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "much"}))
    with pytest.raises(
        JgolfError, match=rf"result\.json: {name} is 'much', expected a number, .*; export the run again"
    ):
        read_history(run_dir)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run as the training loop logs it, with an export's result."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write_json(dataclasses.replace(RECIPE, name="x"), folder / "config.json")
    log = RunLog(folder)
    log.validation(0, 3, 7.0, 4.0, 0.0)
    for step, (late_qat, swa_count) in enumerate([(False, 0), (False, 1), (True, 2)], start=1):
        rest = {"learning_rate_multiplier": 1 - step / 4, "late_qat": late_qat, "swa_count": swa_count}
        log.metrics(step=step, train_loss=7.0 - step, grad_norm=0.5, train_time_s=step / 2, **rest)
        log.train_step(step, 3, 7.0 - step, step / 2, 1)
    log.validation(3, 3, 4.25, 2.5, 1.5)
    log.close()
    (folder / "artifact").mkdir()
    result = {"val_loss": 4.3, "val_bpb": 2.6, "sliding_val_loss": 4.2, "sliding_val_bpb": 2.4}
    (folder / "artifact" / "result.json").write_text(json.dumps(result))
    return folder


def test_a_run_of_ours(run_dir):
    run = read_history(run_dir)
    assert run.name == "mine" and run.config["optim.muon.learning_rate"] == 0.025
    np.testing.assert_allclose(run.train["train_loss"], [6, 5, 4])
    np.testing.assert_allclose(run.train["learning_rate_multiplier"], [0.75, 0.5, 0.25])
    assert run.events == {"SWA": 2, "late QAT": 3}
    assert run.scores == {"validation": (4.25, 2.5), "standard": (4.3, 2.6), "sliding": (4.2, 2.4)}
    # Its log, alone, tells the same as far as it goes.
    log = read_history(run_dir / "train.log")
    np.testing.assert_allclose(log.train["train_loss"], run.train["train_loss"])
    np.testing.assert_allclose(log.validation["val_bpb"], run.validation["val_bpb"])


def test_a_killed_and_resumed_run(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train_loss": 3.5, "train_time_s": 1.75}\n{"step": 4, "train_lo')
    run = read_history(run_dir)
    np.testing.assert_allclose(run.train["train_loss"], [6, 5, 3.5])  # the step counts once, the last time


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "nothing", "cannot be read"),
        (lambda folder: folder, "there is no config.json in it"),
        (lambda folder: _write(folder / "notes.txt", "no such lines"), "holds no line of a training run"),
        (lambda folder: _write(folder / "config.json", "{}").parent, "the run has not begun"),
        (lambda folder: _write(folder / "m.jsonl", "[1]\n5\n"), "holds no line of a training run"),
    ],
)
def test_errors(make, expected, tmp_path):
    with pytest.raises(JgolfError, match=expected):
        read_history(make(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "metrics.jsonl",
            '{"step": 1}\n{"step": 2, "train_loss": 1' + "0" * 400 + "}\n",
            ":2: a number of 401 characters",
        ),
        (
            "metrics.jsonl",
            "[" * 100_000 + "\n",
            ":1: not JSON that we take: nested more than 64 deep; remove that line",
        ),
        ("metrics.jsonl", "[" * 100_000, ":1: not JSON that we take: nested more than 64 deep"),
        ("metrics.jsonl", '{"step": 1}\n{"step": 2, "tra\n{"step": 3}\n', ":2: not JSON: "),
        ("metrics.jsonl", '{"step": 1, "val_loss": 1, "val_bpb": 0.0}\n', ":1: val_bpb is 0, expected more than 0"),
        ("a.log", "step:1/2 train_loss:1.2.3 train_time:5ms step_avg:5ms\n", ":1: '1.2.3' is no number"),
        ("a.log", "\nstep:1/2 val_loss:1.0 val_bpb:0.0000 train_time:5ms\n", ":2: val_bpb is 0, expected more than 0"),
        ("a.log", "step:1/2 val_loss:1.0 val_bpb:-1 train_time:5ms\n", ":1: val_bpb is -1, expected more than 0"),
        ("a.log", f"step:{'9' * 5000}/2 train_loss:1 train_time:5ms\n", ":1: a number of 5,000 characters"),
        ("a.log", "step:1/2 train_loss:1e999 train_time:5ms\n", ":1: the number 1e999 is too large"),
        ("a.log", "step:9999999999999999999/2 train_loss:1 train_time:5ms\n", ":1: step 9999999999999999999 is too"),
        ("a.log", "final_x val_loss:1 val_bpb:0\n", ":1: val_bpb is 0"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(name, text, expected, tmp_path):
    with pytest.raises(JgolfError) as error:
        read_history(_write(tmp_path / name, text))
    assert str(error.value).startswith(f"{tmp_path / name}{expected}") and len(str(error.value)) < 400


def test_a_run_s_folder_without_its_metrics_is_known_by_its_log(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    run = read_history(run_dir)
    np.testing.assert_allclose(run.train["train_loss"], [6, 5, 4])
    assert run.scores == {"validation": (4.25, 2.5), "standard": (4.3, 2.6), "sliding": (4.2, 2.4)}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"folder": 5}, "run 1: expected an object with a folder such as runs/000, found"),
        ([], "run 1: expected an object with a folder such as runs/000, found"),
        ({"folder": "runs/000"}, "run 1: seed is None, expected an integer"),
        ({"folder": "runs/000", "seed": 1, "ema_val_bpb": "2"}, "ema_val_bpb is '2', expected a number, more than 0"),
        ({"folder": "runs/000", "seed": 1, "ema_val_bpb": 0}, "ema_val_bpb is 0, expected a number, more than 0"),
        ({"folder": "runs/000", "seed": 1, "raw_val_loss": []}, "raw_val_loss is [], expected a number, 0 or more"),
        ({"folder": "runs/000", "seed": 1, "artifact_bytes": "many"}, "artifact_bytes is 'many', expected a number"),
    ],
)
def test_rows_of_a_sweep_with_wrong_types(row, expected, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"runs": [row]}))
    with pytest.raises(JgolfError) as error:
        read_histories(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'results.json'}: not the results of a sweep")
    assert expected in str(error.value)


def test_a_sweep_without_a_result(tmp_path):
    (tmp_path / "results.json").write_text('{"runs": []}')
    with pytest.raises(JgolfError, match="this sweep has no result yet"):
        read_histories(tmp_path)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
