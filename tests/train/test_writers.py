from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jgolf.cli import main
from jgolf.errors import MissingExtraError
from jgolf.train.log import RunLog
from jgolf.train.writers import open_writers
from tests.conftest import RECIPE

CALLS = [
    {"step": 1, "train_loss": 6.5, "late_qat": False},
    {"step": 2, "train_loss": 6.25, "late_qat": True},
    {"step": 2, "val_loss": 6.0, "val_bpb": 3.5},
]


@pytest.fixture
def wandb(monkeypatch) -> list[tuple]:
    """A stand-in for the package, and what was asked of it."""
    asked: list[tuple] = []

    class Run:
        def log(self, values, step):
            asked.append(("log", step, values))

        def finish(self):
            asked.append(("finish",))

    def init(**options):
        asked.append(("init", options))
        return Run()

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return asked


def test_wandb_gets_what_the_metrics_file_gets(tmp_path, wandb):
    log = RunLog(tmp_path)
    log.attach(*open_writers(["wandb", "wandb"], tmp_path, RECIPE, first_step=0))
    for values in CALLS:
        log.metrics(**values)
    log.close()
    (name, options), *rest = wandb
    assert name == "init" and options["mode"] == "offline" and options["dir"] == str(tmp_path)
    assert options["config"]["optim.muon.learning_rate"] == 0.025
    assert rest == [
        ("log", 1, {"train_loss": 6.5, "late_qat": 0.0}),
        ("log", 2, {"train_loss": 6.25, "late_qat": 1.0}),
        ("log", 2, {"val_loss": 6.0, "val_bpb": 3.5}),
        ("finish",),
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_wandb_goes_online_only_if_told_to(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    open_writers(["wandb"], tmp_path, RECIPE, first_step=0)
    assert wandb[0][1]["mode"] == "online"


def test_tensorboard_events_hold_the_metrics(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    (writer,) = open_writers(["tensorboard"], tmp_path, RECIPE, first_step=0)
    for values in CALLS:
        writer.write(values)
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {}
    for record in _records(path.read_bytes()):
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found[value.tag, event.step] = value.simple_value
    expected = {(n, c["step"]): float(v) for c in CALLS for n, v in c.items() if n != "step"}
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()))


def _records(data: bytes):
    """The records of a TensorBoard file: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_begins(name, module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    status = main(["train", "demo", "--run-dir", str(tmp_path / "run"), "--writers", name])
    assert status == MissingExtraError.exit_code
    shown = capsys.readouterr().err
    assert f"--writers {name} needs the package {module}" in shown and f"pip install 'jgolf[{name}]'" in shown
    assert not Path(tmp_path / "run").exists()
