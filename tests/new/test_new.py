"""`jgolf new`: sizes by time, what it keeps of earlier starts, and a small text from end to end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jgolf import config as configs
from jgolf.cli import main
from jgolf.errors import EXIT_INTERRUPTED, JgolfError
from jgolf.new.folder import CommandFailed, Journal, run_command
from jgolf.new.sizes import CPU, GPU, MOST_PASSES, TOKENS_A_PARAMETER, Candidate, choose, run_settings
from jgolf.verbs.new import _apart

ROOT = Path(__file__).parents[2]
CONFIG = """
from jgolf.config import load
from jgolf.config.parts import compose

def config():
    return compose("least", load("demo"), {
        "model.vocab_size": 0, "model.num_layers": 1, "model.model_dim": 32, "model.num_heads": 1,
        "model.num_kv_heads": 1, "model.bigram_buckets": 0, "model.value_embedding_layers": (),
        "train.seq_len": 64, "train.batch_tokens": 1024, "evaluate.batch_tokens": 1024,
    })
"""

# --- sizes -------------------------------------------------------------------------------------

LADDER = [Candidate({"model.model_dim": width}, width * 1000, width * 10**6) for width in (10, 20, 40, 80)]
BATCH = 1000


def chosen(seconds: float, text_tokens: int = 10**9, slower: dict[int, float] | None = None) -> tuple[int, float, list]:
    """Of the ladder on a device of 10⁷ operations a second, the width, its step's seconds, and what was measured."""
    measured = []

    def step_s(settings: dict[str, int]) -> float:
        width = settings["model.model_dim"]
        measured.append(width)
        return width / 10 * (slower or {}).get(width, 1)

    candidate, found = choose(LADDER, BATCH, text_tokens, seconds, step_s)
    return candidate.parameters // 1000, found, measured


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_largest_that_gets_enough_tokens(width: int) -> None:
    """It needs a × 1000 w tokens, a step of 1000 takes w / 10 s: a w × w / 10 s."""
    least_s = TOKENS_A_PARAMETER * width * width / 10
    assert chosen(least_s * 1.001) == (width, width / 10, [10, width])
    assert chosen(least_s * 0.999)[0] == width // 2


def test_a_small_text_wants_a_small_network() -> None:
    enough = TOKENS_A_PARAMETER * 40_000 // MOST_PASSES
    assert chosen(1e6, enough + 1)[0] == 40
    assert chosen(1e6, enough - 1)[0] == 20
    assert chosen(1e6, 1) == (10, 1.0, [10])
    assert chosen(0.01) == (10, 1.0, [10])  # and so does a short time


def test_what_is_slower_or_faster_than_thought() -> None:
    seconds = TOKENS_A_PARAMETER * 40 * 40 / 10 * 1.001
    assert chosen(seconds, slower={40: 1.5}) == (20, 2.0, [10, 40, 20])
    assert chosen(seconds, slower={80: 0.25}) == (40, 4.0, [10, 40])  # 80 would have to be four times as fast
    assert chosen(seconds * 2.1, slower={80: 0.45}) == (80, 3.6, [10, 40, 80])


@pytest.mark.parametrize("kind", [CPU, GPU])
def test_every_size_is_a_network_and_larger_than_the_one_before(kind) -> None:
    from jgolf.new.sizes import _candidate

    base = configs.replace_all(configs.load(kind.config), {**kind.settings, "model.vocab_size": 1024})
    found = [_candidate(base, size.settings()) for size in kind.sizes]
    assert [one.parameters for one in found] == sorted({one.parameters for one in found})
    assert [one.flops for one in found] == sorted({one.flops for one in found})


def test_settings_of_a_length_are_settings() -> None:
    for steps in (1, 40, 1000, 10**6):
        configs.validate(configs.replace_all(configs.load("small"), run_settings(steps, 10 * steps, 60.0)))
    assert run_settings(1000, 5000, 60.0)["average.ema_decay"] == 0.98


# --- the folder --------------------------------------------------------------------------------


def test_what_was_done_and_found_is_known_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 1})
    with pytest.raises(ZeroDivisionError), journal.doing("split"):
        raise ZeroDivisionError
    failed = Journal(tmp_path, {"seed": 2})  # nothing came of it, so it may be another one now
    assert not failed.was_begun("split")
    with failed.doing("split"):
        failed.keep(found={"a": 1})
    with pytest.raises(ZeroDivisionError), failed.doing("train"):
        raise ZeroDivisionError
    again = Journal(tmp_path, {"seed": 2})
    assert again.facts == {"found": {"a": 1}}
    assert again.is_done("split") and again.was_begun("train") and not again.is_done("train")
    with pytest.raises(JgolfError, match="begun with other options .seed was 2, is 3.: give the same ones"):
        Journal(tmp_path, {"seed": 3})
    (tmp_path / "new.json").write_text('{"asked": 5')
    with pytest.raises(JgolfError, match="new.json: not what `jgolf new` left there, or damaged"):
        Journal(tmp_path, {"seed": 2})


def test_a_command_is_printed_as_it_runs(capfd: pytest.CaptureFixture) -> None:
    run_command(["--version"], "again")
    assert re.fullmatch(r"\n\$ jgolf --version\njgolf \d.*\n", capfd.readouterr().out)
    with pytest.raises(CommandFailed, match="`jgolf 'no such'` ended with exit code 2; .*: again") as error:
        run_command(["no such"], "again")
    assert error.value.exit_code == 2


def test_the_command_to_go_on_asks_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a name that is no UTF-8, begins as an option does or with a dot, and with many digits."""
    shown: list[list[str]] = []

    def stopped(words: list[str], again: str) -> None:
        shown.append([*words, *shlex.split(again)])
        raise KeyboardInterrupt

    monkeypatch.setattr("jgolf.verbs.new.run_command", stopped)
    monkeypatch.chdir(tmp_path)
    for name, folder in (("-\udcff .txt", "-\udcff "), (".notes", "notes")):
        (tmp_path / name).write_text("a small text")
        words = [f"./{name}", "--minutes", "10.1234567", "--max-mb", "12345.67891"]
        assert main(["new", *words]) == EXIT_INTERRUPTED
        journal = (tmp_path / "runs" / folder / "new.json").read_text()
        assert "-" not in [word[0] for word in shown[-1] if name in word]
        assert "12345.67891" in shown[-1][: shown[-1].index("jgolf")]
        assert main(shown[-1][shown[-1].index("new") :]) == EXIT_INTERRUPTED
        assert (tmp_path / "runs" / folder / "new.json").read_text() == journal
        assert {key: json.loads(journal)["asked"][key] for key in ("minutes", "max_mb")} == {
            "minutes": 10.1234567,
            "max_mb": 12345.67891,
        }


def test_what_it_writes_is_no_text_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a text")
    for out in ([], ["--out", "x/y"], ["--out", "."]):
        assert main(["new", ".", *out]) == 2
        assert ": lies in ., of which all texts are read: choose a folder outside it" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def _interrupt_the_parent(seconds: float) -> None:
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(seconds)


def test_work_in_another_process_ends_with_this_one() -> None:
    """Also where that one was not interrupted itself."""
    started = time.monotonic()
    as_found = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            _apart(_interrupt_the_parent, 600.0)
    finally:
        signal.signal(signal.SIGINT, as_found)
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()


# --- end to end --------------------------------------------------------------------------------


def jgolf(*words: object, cwd: Path, **how) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jgolf", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **how)


@pytest.fixture(scope="module")
def verse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text of 40 kB in short lines, and a config of a second."""
    folder, chooser = tmp_path_factory.mktemp("verse"), random.Random(0)
    words = ["".join(chooser.choices("abcdefghilmnoprstu", k=chooser.randrange(2, 8))) for _ in range(800)]
    lines = (" ".join(chooser.choices(words, k=5)) + "\n" * (1 + (n % 4 == 3)) for n in range(1500))
    (folder / "verse.txt").write_text("".join(lines))
    (folder / "least.py").write_text(CONFIG)
    return folder


@pytest.mark.slow
def test_a_text_becomes_a_model_and_the_same_command_goes_on(
    verse: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    words = ["new", "verse.txt", "--minutes", "0.02", "--config", "least.py"]
    done = jgolf(*words, cwd=verse)
    assert done.returncode == 0, done.stdout + done.stderr
    out = verse / "runs" / "verse"
    shown = re.findall(r"^\$ jgolf (.*)$", done.stdout, re.MULTILINE)
    verbs = [
        "data split",
        "data tokenizer",
        "data pack",
        "data pack",
        "train",
        "export",
        "sample",
        "sample",
        "compress",
    ]
    assert [next(verb for verb in verbs if line.startswith(verb)) for line in shown] == verbs
    assert "--lossless" in shown[1] and "line breaks lost" in done.stdout
    result = json.loads((out / "artifact" / "result.json").read_text())
    assert f"{result['original_bpb']:.4f} bits per byte of held-out text" in done.stdout
    assert result["original_bytes"] == result["bytes"] >= 4000  # lossless
    held_out = (out / "text" / "held-out.txt").stat().st_size
    size = (out / "held-out.txt.jgz").stat().st_size
    assert f"{held_out:,} → {size:,} bytes" in done.stdout
    assert json.loads((out / "config.json").read_text())["train"]["time_cap_s"] == pytest.approx(1.2)

    journal = json.loads((out / "new.json").read_text())
    journal["done"].remove("compress")  # as if it had been killed there
    (out / "new.json").write_text(json.dumps(journal))
    monkeypatch.chdir(verse)
    assert main(words) == 0
    assert re.findall(r"^\$ jgolf (.*)$", capfd.readouterr().out, re.MULTILINE) == [shown[-1] + " --overwrite"]
    assert main(["new", "verse.txt", "--minutes", "3", "--config", "least.py"]) == 2
    assert "begun with other options (minutes was 0.02, is 3.0)" in capfd.readouterr().err


@pytest.mark.slow
def test_stopping_stops_the_training_and_it_goes_on_from_there(verse: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["new", str(verse / "verse.txt"), "--out", str(out), "--minutes", "5", "--config", str(verse / "least.py")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jgolf", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = out / "train.log"
    until = time.monotonic() + 120
    while not (log.exists() and "step:10/" in log.read_text()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    in_use = jgolf(*words, cwd=tmp_path)
    assert in_use.returncode == 2 and "in use by process" in in_use.stderr
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED, error
    assert "asked to stop; to go on: jgolf new" in error
    assert "stopping: asked to stop" in log.read_text()
    journal = json.loads((out / "new.json").read_text())
    assert "train" in journal["begun"] and "train" not in journal["done"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "a.txt: no text but white space"),
        (b"a small text, " * 40, [], "bytes to train on, expected at least 20,000: give more text"),
        (b"caf\xe9", [], "a.txt: not UTF-8 text: byte 0xe9"),
        (b"text", ["--minutes", "0"], "--minutes 0.0: expected more than 0"),
        (b"text", ["--minutes", "nan"], "--minutes nan: expected more than 0"),
        (b"text", ["--minutes", "1e7"], "--minutes 10000000.0: expected more than 0, and at most 1,000,000"),
        (b"text", ["--max-mb", "inf"], "--max-mb inf: expected more than 0, and at most 1,000,000"),
        (b"text", ["--seed", "-1"], "--seed -1: expected from 0 to 4294967295"),
        (b"text", ["--config", "nothing"], "no config 'nothing'"),
    ],
)
def test_bad_input_is_refused_in_words(
    tmp_path: Path,
    content: bytes,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(content)
    assert main(["new", "a.txt", *options]) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
