"""`jgolf audit` on an exported run and on a submission: what is written, refused, and said wrongly."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from jgolf.artifact import submission
from jgolf.audit.sizes import read_claims, sizes
from jgolf.cli import main
from jgolf.errors import ArtifactError
from tests.test_export import make_run

QUICK = ["--max-tokens", "1000", "--try-tokens", "400", "--samples", "2", "--every-token", "0"]


@pytest.fixture(scope="module")
def exported(made_once, nano_data):
    def make(folder):
        make_run(folder, nano_data)
        assert main(["export", str(folder)]) == 0

    return made_once("audited-run", make)


@pytest.fixture
def run(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "run"))


def call(*words):
    """Exit code, and what was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


def test_an_audit_of_a_run_goes_into_its_submission(run, tmp_path):
    author = ["--author", "Ada", "--name", "Small"]
    code, shown = call("export", run, "--submission", tmp_path / "first", *author)
    assert code == 0 and "no audit.json: jgolf audit tries" in shown
    code, shown = call("audit", run, "--try-tokens", "400", "--samples", "2")
    assert code == 0, shown
    assert "the audit passed" in shown and "not tried" not in shown
    found = json.loads((run / "artifact" / "audit.json").read_text())
    result = json.loads((run / "artifact" / "result.json").read_text())
    assert found["passed"] and found["scorer"] == "rows" and str(run) not in json.dumps(found)
    assert found["val_bpb"] == pytest.approx(result["val_bpb"], rel=1e-6)
    conditions = [check["condition"] for check in found["checks"]]
    assert {"causality", "normalisation", "one pass", "bytes", "size", "score"} <= set(conditions)
    code, shown = call("export", run, "--submission", tmp_path / "second", *author)
    assert code == 0 and "audit.json" not in shown
    assert json.loads((tmp_path / "second" / "audit.json").read_text()) == found
    code, shown = call("export", run, "--quantize.mlp", "int4")  # another artifact, which nobody has audited
    assert code == 0 and not (run / "artifact" / "audit.json").exists()


def test_a_submission_is_audited(run, nano_data, tmp_path):
    call("export", run, "--submission", tmp_path / "done", "--author", "Ada", "--name", "Small")
    text = ["--tokens", *nano_data.glob("*_val_*.bin"), "--tokenizer", nano_data / "nano.model"]
    out = tmp_path / "found.json"
    words = ["audit", tmp_path / "done", *text, *QUICK, "--stride", "16", "--out", out]
    code, shown = call(*words)
    assert code == 0 and json.loads(out.read_text())["scorer"] == "sliding", shown
    (tmp_path / "done" / "more.py").write_text("weights = 7")
    summary = json.loads((tmp_path / "done" / "submission.json").read_text())
    (tmp_path / "done" / "submission.json").write_text(json.dumps({**summary, "bytes_total": 1}))
    code, shown = call(*words)
    assert code == 1 and "more.py" in shown and "the audit FAILED" in shown
    assert sum(check["passed"] is False for check in json.loads(out.read_text())["checks"]) == 2


def test_test_time_training_is_audited(run):
    settings = {"rank": 2, "chunk": 16, "phases": 0, "learning-rate": 0.01}
    words = [word for name, value in settings.items() for word in (f"--adapted.{name}", value)]
    words += ["--max-tokens", 200, "--try-tokens", 150, "--samples", 2]
    code, shown = call("audit", run, "--scorer", "adapted", *words)
    assert code == 0, shown
    found = json.loads((run / "artifact" / "audit.json").read_text())
    assert found["settings"]["rank"] == 2 and found["tokens"] == 200 and found["try_tokens"] == 150
    untried = [check["tried"] for check in found["checks"] if check["passed"] is None]
    assert [words.split()[0] for words in untried] == ["the", "each", f"{found['val_bpb']:.6f}"]


def test_sizes_that_are_understated(exported, tmp_path):
    artifact = Path(shutil.copytree(exported / "artifact", tmp_path / "artifact")) / "model.jgolf"
    result = json.loads(artifact.with_name("result.json").read_text())
    assert all(check.passed for check in sizes(artifact, read_claims(artifact)))

    def failing(**changes):
        artifact.with_name("result.json").write_text(json.dumps({**result, **changes}))
        return [check.figure for check in sizes(artifact, read_claims(artifact)) if not check.passed]

    assert failing(artifact_bytes=result["artifact_bytes"] - 1) == [1]
    assert failing(code_bytes=result["code_bytes"] - 5, total_bytes=result["total_bytes"] - 5) == [5, 5]
    with artifact.open("ab") as file:
        file.truncate(16_000_000)
    total = 16_000_000 + result["code_bytes"]
    assert failing(artifact_bytes=16_000_000, total_bytes=total) == [total]
    with pytest.raises(ArtifactError, match="result.json: says no sizes and scores, or is damaged"):
        failing(val_bpb="low")
    artifact.with_name("score.pyz").write_bytes(b"no zip")
    with pytest.raises(ArtifactError, match="score.pyz: not the code of a submission"):
        failing()
    artifact.with_name("score.pyz").write_bytes(submission.code())
    artifact.with_name("train_gpt.py").write_text(submission.TRAIN_TEXT)
    assert failing(artifact_bytes=16_000_000, total_bytes=total) == [total]
    artifact.with_name("result.json").unlink()
    found = sizes(artifact, read_claims(artifact))
    assert found[0].passed is None and "neither result.json nor submission.json is beside" in found[0].note


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--samples", "1"], "--samples 1: expected at least 2"),
        (["--seed", "-1"], "--seed -1: expected at least 0"),
        (["--every-token", "-1"], "--every-token -1: expected at least 0"),
        (["--try-tokens", "-1"], "--try-tokens -1: expected at least 0"),
        (["--max-tokens", "-1"], "--max-tokens -1: expected at least 0"),
        (["--max-tokens", "20"], "the tokens are too few to try the scorer rows on: found 21, expected at least 66"),
        (["--documents", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--scorer", "rows", "--stride", "8"], "--stride: expected with a scorer that slides"),
        (["--out", "."], "--out .: a folder, expected the name of a file to write"),
        (["--out", "nowhere/a.json"], "nowhere: cannot be written to, expected the folder for a.json"),
    ],
)
def test_bad_options(words, told, exported):
    code, shown = call("audit", exported, *words)
    assert code == 2 and told in shown


def test_no_model(tmp_path):
    code, shown = call("audit", tmp_path / "nowhere" / "model.jgolf")
    assert code == 2 and "nowhere/model.jgolf: cannot be read: No such file" in shown


def test_a_run_that_was_not_exported(exported, tmp_path):
    shutil.copy(exported / "config.json", tmp_path)
    code, shown = call("audit", tmp_path)
    assert code == 2 and "has neither artifact/model.jgolf nor model.jgolf, expected the folder of a run" in shown
