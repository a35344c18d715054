from __future__ import annotations

import collections
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from jgolf import config as configs
from jgolf import doctor, files
from jgolf.cli import main
from jgolf.config import Config, load
from jgolf.data import demo as demo_module
from jgolf.data.shards import write_shard
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.model.kernels import door
from jgolf.train.options import TrainOptions


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def checks(config: Config, **options) -> dict[str, doctor.Check]:
    found = doctor.run_checks(TrainOptions(config, **options), options.get("run_dir", Path("runs/new")))
    return {check.name: check for check in found}


def make_data(folder: Path, vocab_size: int) -> None:
    """Shards of random ids and a tokenizer, as `jgolf data pack` leaves them."""
    rng = np.random.default_rng(0)
    for split, size in (("train", 2000), ("val", 600)):
        write_shard(folder / f"fineweb_{split}_000000.bin", rng.integers(0, vocab_size, size))
    text = [" ".join("".join(rng.choice(list("abcdefgh"), 6)) for _ in range(200)) for _ in range(60)]
    files.write_bytes(folder / "my.model", train_tokenizer(text, vocab_size))


def test_the_demo_needs_nothing_more(capsys):
    assert main(["doctor", "demo"]) == 0
    shown = capsys.readouterr().out
    assert "ready to train: jgolf train demo" in shown and "data/demo will be built" in shown


def test_missing_data_is_named_with_what_to_do(capsys):
    assert main(["doctor", "pr592"]) == 1
    shown = capsys.readouterr().out
    assert "jgolf data download sp1024" in shown and "2 things missing" in shown
    assert "30,404,196 parameters" in shown


def test_a_state_without_room_is_refused_as_train_refuses_it(nano_data, capsys):
    """Terabytes: on a CPU nothing but the system, which kills, would stop the process that asks for them."""
    line = ["demo", "--data", str(nano_data), "--model.vocab-size", "0"]
    line += ["--model.value-embedding-dim", "2000000000"]
    assert main(["doctor", *line]) == 1
    shown = capsys.readouterr().out
    assert "device memory" in shown and "make the model smaller" in shown
    assert main(["train", *line, "--run-dir", "big"]) == 2
    shown = capsys.readouterr().err
    assert "GB: make the model smaller" in shown and not Path("big/config.json").exists()


def test_settings_are_taken_as_train_takes_them(capsys):
    make_data(Path("my data"), 1024)
    assert main(["doctor", "demo", "--data", "my data", "--train.steps", "30", "--run-dir", "runs/a b"]) == 0
    shown = capsys.readouterr().out
    assert "my data: 2,000 in 1 shard; 30 steps pass" in shown and "runs/a b: free" in shown
    assert "jgolf train demo --data 'my data' --train.steps 30 --run-dir 'runs/a b'" in shown


def test_tokens_are_counted():
    config = configs.replace(load("demo"), "data.dir", "tokens")
    Path("tokens").mkdir()
    write_shard(Path("tokens/x_train_0.bin"), np.arange(1000))
    found = checks(config)
    assert "1,000 in 1 shard;" in found["train tokens"].found
    passes = config.train.steps * config.train.batch_tokens / 1000
    assert f"{passes:.2g} times" in found["train tokens"].found
    assert found["tokenizer"].verdict == "missing"


def test_state_bytes_are_those_of_a_state():
    """Parameters, EMA and SWA; one momentum for Muon's matrices, two moments for the rest; six counters."""
    config = load("demo")
    from jgolf.model.functional import parameter_shapes
    from jgolf.rules import rule_of

    sizes = {path: int(np.prod(shape)) for path, shape in parameter_shapes(config.model).items()}
    moments = sum(size * (1 if rule_of(path).group == "muon" else 2) for path, size in sizes.items())
    assert doctor.state_bytes(config) == pytest.approx(4 * (3 * sum(sizes.values()) + moments), abs=64)


def test_a_full_disk(monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 10**5))
    assert checks(load("demo"))["disk"].verdict == "missing"


def test_settings_that_make_no_sense():
    config = configs.replace(load("demo"), "train.batch_tokens", 1000)
    found = checks(config)
    assert found["settings"].verdict == "missing" and "train.batch_tokens is 1000" in found["settings"].found


@pytest.mark.parametrize("name", ["model.num_heads", "train.seq_len", "train.num_ranks"])
def test_settings_from_which_nothing_follows(name):
    found = checks(configs.replace(load("demo"), name, 0))
    assert found["settings"].verdict == "missing" and name in found["settings"].found
    assert "batch" not in found and "run folder" in found


def test_attention_that_cudnn_cannot_run(monkeypatch):
    monkeypatch.setattr(door, "gpu", lambda: "an NVIDIA GPU")
    found = checks(load("demo"))["attention"]
    assert found.verdict == "warning" and "bfloat16, not in float32" in found.found


@pytest.mark.parametrize(
    ("trial", "verdict", "expected"),
    [
        (lambda *what: 0.01, "ok", "agrees with ordinary JAX within 0.01"),
        (lambda *what: 0.5, "missing", "off by 0.5"),
        (lambda *what: 1 / 0, "missing", "the kernel of cuDNN fails: division by zero"),
    ],
)
def test_a_kernel_is_tried(trial, verdict, expected, monkeypatch):
    monkeypatch.setattr(door, "gpu", lambda: "an NVIDIA GPU")
    monkeypatch.setattr(doctor, "attention_error", trial)
    found = checks(configs.replace(load("demo"), "model.compute_dtype", "bfloat16"))["attention"]
    assert found.verdict == verdict and expected in found.found


def test_extras(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert checks(load("demo"))["extra torch"].verdict == "optional"
    assert main(["doctor", "demo"]) == 0
    assert "pip install 'jgolf[torch]'" in capsys.readouterr().out


# --- whatever is ready starts, and whatever is not does not -----------------------------------

SMALL = (
    "--train.steps 1 --train.warmdown-steps 1 --train.batch-tokens 256 --train.seq-len 128 --model.num-layers 1 "
    "--model.xsa-layers --model.value-embedding-layers --model.model-dim 32 --model.bigram-buckets 16 "
    "--model.rope-dims 8"
)


@pytest.fixture
def no_demo(monkeypatch):
    """Building it takes long, and none of these is to."""
    monkeypatch.setattr(demo_module, "build_demo", lambda folder: pytest.fail(f"the demo is built in {folder}"))


@pytest.mark.usefixtures("no_demo")
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("--data mine --model.vocab-size 320", ""),
        ("--data mine", "the tokenizer has 320 pieces, expected 1024"),
        ("--data mispelt", "mispelt: no such data folder"),
        ("--data mine --model.vocab-size 320 --tokenizer other.model", "other.model: no such tokenizer file"),
        ("--model.vocab-size 320", "data/demo: the demo, to be built there, has a tokenizer of 1024 pieces"),
        ("--data mine --model.vocab-size 320 --train.seq-len 768 --train.batch-tokens 768", "has 600 tokens"),
        ("--data mine --model.vocab-size 320 --run-dir runs/there", "runs/there: already holds a run"),
        ("--data mine --model.vocab-size 320 --init-from nothing.jgolf", "nothing.jgolf: cannot be read"),
        ("--data cut --model.vocab-size 320", "the shard is cut off"),
        ("--data high --model.vocab-size 320", "has the id 400, expected ids below 320"),
        ("--data unread --model.vocab-size 320", "no train shards"),
        ("--data short --model.vocab-size 320 --train.documents True", "no shard holds"),
    ],
)
def test_training_starts_where_the_doctor_says_so(options, found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    make_data(Path("mine"), 320)
    for name in ("cut", "high", "unread", "short"):
        shutil.copytree("mine", name)
    shard = Path("cut/fineweb_val_000000.bin")
    shard.write_bytes(shard.read_bytes()[:-1])
    write_shard("high/fineweb_train_000000.bin", [1, 400, 2])
    Path("unread/fineweb_train_000000.bin").unlink()
    write_shard("short/fineweb_train_000000.bin", np.arange(100))
    configs.write_json(load("demo"), Path("runs/there/config.json"))
    words = ["demo", *SMALL.split(), *options.split()]
    ready = main(["doctor", *words])
    told = capsys.readouterr().out
    assert ready == (1 if found else 0) and found in told
    before = sorted(path for path in Path.cwd().rglob("*") if "runs" not in path.parts)
    assert main(["train", *words]) == (2 if found else 0)
    assert found in capsys.readouterr().err
    assert sorted(path for path in Path.cwd().rglob("*") if "runs" not in path.parts) == before


def test_options_of_training_that_are_not_settings(capsys, monkeypatch):
    found = checks(load("demo"), resume=True)
    assert "there is no run to resume" in found["run folder"].found
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'jgolf[wandb]'" in checks(load("demo"), writers=("wandb",))["--writers"].found
    assert main(["doctor", "demo", "--num-processes", "2"]) == 2
    assert "--num-processes: the doctor checks this machine by itself" in capsys.readouterr().err
    configs.write_json(load("demo"), Path("runs/demo/config.json"))
    assert main(["doctor", "--resume", "--run-dir", "runs/demo"]) == 0
    assert "ready to train: jgolf train --resume --run-dir runs/demo" in capsys.readouterr().out
