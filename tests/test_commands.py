"""The commands, as a person runs them, on a small real run."""

import contextlib
import io
import json
import lzma
import os
import re
import runpy
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MAX_TOKENS = 8192
SMALL_OPTIONS = f"""
    --model.num-layers 2 --model.model-dim 64 --model.num-heads 2 --model.num-kv-heads 1 --model.xsa-layers 1
    --model.value-embedding-layers 1 --model.bigram-buckets 512 --model.bigram-dim 32 --model.value-embedding-dim 32
    --train.batch-tokens 1024 --train.seq-len 128 --train.warmdown-steps 20 --train.validate-every 20
    --quantize.small-size 2048 --evaluate.max-tokens {MAX_TOKENS} --evaluate.batch-tokens 4096
    --average.swa-every 2
"""
SMALL = SMALL_OPTIONS.split()


def run(*words, cwd=ROOT, check=True):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_here(*words, cwd=ROOT, check=True):
    """`run` without a process of its own, which takes seconds to import JAX."""
    target, *arguments = map(str, words)
    name = arguments.pop(0) if target == "-m" else target
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "120")
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            start = runpy.run_module if target == "-m" else runpy.run_path
            start(name, run_name="__main__")
        except SystemExit as end:
            code = end.code
    if check:
        assert code == 0, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run_dir(made_once, demo_dir):
    def train(folder):
        done = run(ROOT / "train.py", "demo", "--run-dir", folder, "--data", demo_dir, "--steps", "40", *SMALL)
        (folder / "stdout").write_text(done.stdout)

    return made_once("small-run", train)


@pytest.fixture(scope="module")
def exported(made_once, run_dir):
    def export(shown):
        shown.write_text(run(ROOT / "export.py", run_dir, "--max-tokens", MAX_TOKENS).stdout)

    return made_once("small-export", export).read_text()


def test_training_learns_and_logs(run_dir):
    text = (run_dir / "stdout").read_text()
    assert (run_dir / "train.log").read_text() == text
    pattern = r"^step:(\d+)/40 train_loss:(\d+\.\d{4}) train_time:\d+ms step_avg:\d+\.\d\dms$"
    steps = [int(step) for step, _ in re.findall(pattern, text, re.MULTILINE)]
    assert steps == [*range(1, 11), 20, 40]
    validated = re.findall(r"^step:(\d+)/40 val_loss:(\S+) val_bpb:(\S+) train_time:\d+ms", text, re.MULTILINE)
    assert [int(step) for step, _, _ in validated] == [0, 20, 40]
    # 1,024 pieces at random are 10 bits a token of some 2.4 bytes.
    assert float(validated[0][1]) == pytest.approx(np.log(1024), abs=0.1)
    assert float(validated[-1][2]) < 0.85 * float(validated[0][2])
    assert "late_qat:enabled" in text
    assert "no kernels without an NVIDIA GPU" in text


def test_metrics_hold_every_step_once(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train_loss" in row] == list(range(1, 41))
    assert sum(row.get("late_qat", False) for row in rows) == 2  # multipliers 0.1 and 0.05
    assert json.loads((run_dir / "config.json").read_text())["model"]["num_layers"] == 2
    (start,) = map(json.loads, (run_dir / "starts.jsonl").read_text().splitlines())
    assert start["command"].startswith("train.py demo --run-dir") and start["hardware"].endswith("cpu")


def test_export_scores_what_is_on_the_disk(run_dir, exported, demo_dir):
    result = json.loads((run_dir / "artifact" / "result.json").read_text())
    assert result["artifact_bytes"] == (run_dir / "artifact" / "model.jgolf").stat().st_size
    assert result["total_bytes"] == result["artifact_bytes"] + result["code_bytes"] < 16_000_000
    assert abs(result["val_bpb"] - result["pre_quantization_val_bpb"]) < 0.1
    assert f"{result['val_bpb']:.5f}" in exported
    text = (demo_dir / "val.txt").read_bytes()
    assert f"scored on the first {result['tokens']:,} of {result['split_tokens']:,} validation tokens only" in exported
    xz = lzma.compress(text[: result["bytes"]], preset=9)
    assert result["compressors_bpb"]["xz -9"] == 8 * len(xz) / result["bytes"]
    sizes = result["compressed"]
    assert sizes["bytes"] == min(16_384, result["bytes"])
    assert f"compressed by the model and restored: {sizes['compressed_bytes']:,} bytes" in exported
    assert "zlib -9" in exported
    assert "xz -9" in exported


def test_evaluate_gives_the_export_s_figures(run_dir, exported, demo_dir, tmp_path):
    result = json.loads((run_dir / "artifact" / "result.json").read_text())
    artifact = run_dir / "artifact" / "model.jgolf"
    given = ("--tokens", *demo_dir.glob("*_val_*.bin"), "--tokenizer", *demo_dir.glob("*.model"))
    given += ("--max-tokens", MAX_TOKENS, "--batch-tokens", 2048)
    score = json.loads(run_here("-m", "jgolf", "evaluate", artifact, *given, "--json").stdout)
    facts = {"seconds", "context", "compile_s", "hints", "scorer", "devices", "bytes_per_s", "challenge_s"}
    assert score.keys() == {"val_loss", "val_bpb", "tokens", "bytes", "original_bpb", "original_bytes"} | facts
    assert score["val_bpb"] == pytest.approx(result["val_bpb"], rel=1e-6)
    assert score["original_bpb"] == score["val_bpb"]  # the demo's tokenizer keeps its text
    assert result["original_bpb"] == result["val_bpb"] and result["original_bytes"] == result["bytes"]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["original_bpb"] == last["val_bpb"]
    assert "bytes, those of the original text" in (run_dir / "train.log").read_text()
    sliding = json.loads(run_here("-m", "jgolf", "evaluate", artifact, *given, "--stride", "64", "--json").stdout)
    assert sliding["val_bpb"] == pytest.approx(result["sliding_val_bpb"], rel=1e-6)
    assert sliding["tokens"] == result["tokens"]
    hinted = run_here("-m", "jgolf", "evaluate", artifact, *given, "--hints", "--hints.orders", "1", "2", "--json")
    found = json.loads(hinted.stdout)
    assert found["hints"]["hits"] <= found["hints"]["fired"] and found["hints"]["fired"] > 0
    assert found["val_bpb"] + found["hints"]["gained_bpb"] == pytest.approx(score["val_bpb"], rel=1e-6)
    alone = run_here("-m", "jgolf", "evaluate", artifact, "--max-tokens", MAX_TOKENS).stdout  # its run knows the data
    assert f"val_bpb {result['val_bpb']:.6f}" in alone
    shutil.copy(artifact, tmp_path)
    lost = run_here("-m", "jgolf", "evaluate", tmp_path / artifact.name, check=False)
    assert lost.returncode == 2 and "give --tokenizer and --tokens" in lost.stderr
    shown = run_here("-m", "jgolf", "evaluate", run_dir, "--max-tokens", MAX_TOKENS).stdout
    assert f"(ema): val_loss {result['pre_quantization_val_loss']:.6f}" in shown
    before = json.loads(run_here("-m", "jgolf", "evaluate", run_dir, *given, "--json").stdout)
    assert before["val_bpb"] == pytest.approx(result["pre_quantization_val_bpb"], rel=1e-6)


def test_a_window_longer_than_the_text_is_refused(run_dir, exported):
    words = ("--stride", "1", "--seq-len", "1000000000", "--max-tokens", MAX_TOKENS)
    done = run_here("-m", "jgolf", "evaluate", run_dir / "artifact" / "model.jgolf", *words, check=False)
    assert done.returncode == 2
    assert f"--seq-len 1000000000: expected at most {MAX_TOKENS}, the tokens that there are to score" in done.stderr


@pytest.mark.parametrize("option", ["--max-tokens", "--limit-bytes", "--budget", "--calibration-tokens"])
def test_an_export_that_makes_no_sense_leaves_the_earlier_one(run_dir, exported, option):
    before = (run_dir / "artifact" / "result.json").read_bytes()
    done = run_here(ROOT / "export.py", run_dir, option, "-5", check=False)
    assert done.returncode == 2
    assert f"{option} -5: expected 0 or more" in done.stderr
    assert (run_dir / "artifact" / "result.json").read_bytes() == before


def test_sample_writes_text(run_dir):
    words = ("-m", "jgolf", "sample", run_dir, "--prompt", "The function", "--tokens", "8")
    first, again = run(*words).stdout, run_here(*words, "--keep").stdout
    assert first.startswith("The function")
    assert first == again
    kept = json.loads((run_dir / "samples.jsonl").read_text())
    (run_dir / "samples.jsonl").unlink()
    assert kept["prompt"] == "The function" and f"{kept['text']}\n" == first and kept["tokens"] == 8


def test_serve_writes_what_sample_does(run_dir):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jgolf", "serve", str(run_dir), "--port", "0"]
    words = ("--prompt", "The function", "--tokens", "8", "--top-k", "0", "--top-p", "0.9", "--seed", "3")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert "128 tokens of context, 1,024 pieces" in server.stdout.readline()
            address = server.stdout.readline().partition(" ")[0]
            asked = {"prompt": "The function", "tokens": 8, "temperature": 0.8, "top_p": 0.9, "seed": 3}
            request = urllib.request.Request(
                f"{address}continue", json.dumps(asked).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as answer:
                *pieces, end = map(json.loads, answer.read().splitlines())
        finally:
            server.kill()
    text = "".join(piece["text"] for piece in pieces)
    assert "end" in end and f"The function{text}\n" == run_here("-m", "jgolf", "sample", run_dir, *words).stdout


def test_init_from_an_artifact_starts_where_it_ended(run_dir, exported, demo_dir, tmp_path):
    result = json.loads((run_dir / "artifact" / "result.json").read_text())
    start = run_dir / "artifact" / "model.jgolf"
    words = ["--run-dir", tmp_path / "on", "--data", demo_dir, "--steps", "1", *SMALL]
    text = run_here(ROOT / "train.py", "--init-from", start, *words).stdout
    (first,) = re.findall(r"^step:0/1 val_loss:(\S+)", text, re.MULTILINE)
    assert float(first) == pytest.approx(result["val_loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            ["train.py", "nothing"],
            2,
            "no config 'nothing': expected one of baseline, best, demo, pr1855, pr414, pr592, small",
        ),
        (["train.py", "pr592", "--data", "/nowhere"], 2, "jgolf data"),
        (["train.py", "--model.num-heads", "5"], 2, "model.num_heads is 5: expected a divisor of model_dim"),
        (["train.py", "--resume", "--run-dir", "/nowhere"], 2, "no run to resume"),
        (["export.py", "/nowhere"], 2, "not a run directory"),
        (["-m", "jgolf", "frobnicate"], 2, "no verb 'frobnicate'"),
        (["-m", "jgolf", "tain"], 2, "did you mean train?"),
        (["train.py", "pr529"], 2, "did you mean pr592?"),
        (["train.py", "--seed", "99999999999999999999"], 2, "train.seed is 99999999999999999999: expected from 0 to"),
        (["train.py", "--run-dir", __file__], 2, "test_commands.py: a file, expected a folder"),
        (["-m", "jgolf", "sample", "x", "--temperature", "nan"], 2, "--temperature nan"),
        (["-m", "jgolf", "sample", "x.jgolf", "--keep"], 2, "--keep: x.jgolf is no run directory"),
        (["-m", "jgolf", "sample", "x", "--top-p", "0"], 2, "--top-p 0.0: expected more than 0, and at most 1"),
        (["-m", "jgolf", "evaluate", "x", "--max-tokens", "-5"], 2, "--max-tokens -5: expected at least 0"),
        (
            ["-m", "jgolf", "evaluate", "x", "--scorer", "rows", "--stride", "5"],
            2,
            "--stride: expected with a scorer that",
        ),
        (
            ["-m", "jgolf", "evaluate", "x", "--stride", "5", "--resume-file", "y"],
            2,
            "expected with --scorer tuned or ad",
        ),
        (["-m", "jgolf", "evaluate", "x", "--adapted.rank", "3"], 2, "--adapted.…: expected with --scorer adapted"),
        (
            ["-m", "jgolf", "evaluate", "x", "--scorer", "adapted", "--adapted.rank", "0"],
            2,
            "adapted.rank is 0: expected",
        ),
        (
            ["-m", "jgolf", "evaluate", "x", "--scorer", "documents", "--within-documents", "False"],
            2,
            "--within-documents: --scorer documents says it already",
        ),
        (["-m", "jgolf", "evaluate", "x", "--reference-ranks", "2"], 2, "expected with --scorer packed --reference-w"),
        (["-m", "jgolf", "evaluate", "x", "--hints.share", "0.9"], 2, "--hints.…: expected with --hints"),
        (
            ["-m", "jgolf", "evaluate", "x", "--hints", "--hints.orders", "4", "2"],
            2,
            "hints.orders is (4, 2): expected one or more numbers of tokens from 1 on, rising",
        ),
        (["-m", "jgolf", "evaluate", "x", "--hints", "--scorer", "tuned"], 2, "--hints: expected with any scorer but"),
        (
            ["-m", "jgolf", "evaluate", "x", "--hints", "--reference-windows", "--stride", "5"],
            2,
            "--hints: expected without --reference-windows",
        ),
        (["-m", "jgolf", "evaluate", "/nowhere/x.jgolf"], 2, "/nowhere/x.jgolf: cannot be read"),
    ],
)
def test_bad_input_is_refused_in_words(words, code, expected, tmp_path):
    words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
    done = run_here(*words, cwd=tmp_path, check=False)
    assert done.returncode == code
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_the_home_folder_in_a_run_s_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").write_text("a file")
    done = run_here(ROOT / "train.py", "--run-dir=~/x", cwd=tmp_path, check=False)
    assert done.returncode == 2 and f"{tmp_path / 'x'}: a file, expected a folder" in done.stderr


def test_a_folder_with_a_run_is_not_written_over(run_dir, demo_dir):
    before = (run_dir / "train.log").read_bytes()
    done = run_here(ROOT / "train.py", "--run-dir", run_dir, "--data", demo_dir, "--steps", "1", *SMALL, check=False)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert "--resume" in done.stderr
    assert (run_dir / "train.log").read_bytes() == before


def test_a_run_goes_on_by_its_config_file(run_dir, tmp_path):
    """Its folder is the file's, whatever the name in it says; another recipe's name is refused."""
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    done = run_here(ROOT / "train.py", run_dir / "config.json", "--resume")
    assert "resumed after step" in done.stdout and "stopping: all steps done" in done.stdout
    named = run_here(
        ROOT / "train.py", run_dir / "config.json", "--name", "other", "--resume", cwd=tmp_path, check=False
    )
    assert named.returncode == 2 and "runs/other: there is no run to resume" in named.stderr
    (tmp_path / "settings").mkdir()
    shutil.copy(run_dir / "config.json", tmp_path / "settings")  # no run, only its settings
    words = [tmp_path / "settings" / "config.json", "--resume"]
    named = run_here(ROOT / "train.py", *words, cwd=tmp_path, check=False)
    assert named.returncode == 2 and "runs/demo: there is no run to resume" in named.stderr
    done = run_here(ROOT / "train.py", "pr592", "--resume", "--run-dir", run_dir, check=False)
    assert done.returncode == 2 and "a run of demo, not of pr592; leave out pr592" in done.stderr


def test_data_of_another_vocabulary_is_refused(demo_dir, tmp_path):
    words = ["--data", demo_dir, "--run-dir", tmp_path / "r", *SMALL, "--model.vocab-size", "512"]
    done = run_here(ROOT / "train.py", *words, check=False)
    assert done.returncode == 2
    assert "the tokenizer has 1024 pieces, expected 512" in done.stderr
    assert not (tmp_path / "r").exists()


def test_divergence_stops_with_the_step(demo_dir, tmp_path):
    words = ["--data", demo_dir, "--run-dir", tmp_path / "r", "--steps", "20", *SMALL]
    words += ["--optim.adamw.token-learning-rate", "1e38", "--train.checkpoint-every-steps", "1"]
    done = run_here(ROOT / "train.py", *words, check=False)
    assert done.returncode == 3
    assert re.search(r"step \d+: the training loss is .*(nan|inf)", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_artifact_is_refused(damage, run_dir, exported, demo_dir, tmp_path):
    data = bytearray((run_dir / "artifact" / "model.jgolf").read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    (tmp_path / "bad.jgolf").write_bytes(data)
    given = ("--tokens", *demo_dir.glob("*_val_*.bin"), "--tokenizer", *demo_dir.glob("*.model"))
    done = run_here("-m", "jgolf", "evaluate", tmp_path / "bad.jgolf", *given, check=False)
    assert done.returncode == 2
    assert "bad.jgolf" in done.stderr
    assert "Traceback" not in done.stderr
