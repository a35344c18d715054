"""Exports of a tiny run: what lands on disk, what is refused, and a submission scored without this package."""

import ast
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.artifact import submission
from jgolf.artifact.scoring import read_artifact
from jgolf.audit.sizes import read_claims, sizes
from jgolf.cli import main
from jgolf.config import AdaptedConfig, DataConfig, EvaluateConfig, HintsConfig
from jgolf.data.shards import TokenStream
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.export import options as export_options
from jgolf.model.functional import apply, parameter_shapes
from jgolf.quantize import budget as budget_search
from jgolf.quantize.export import quantize
from jgolf.train.averages import averaged_params
from jgolf.train.checkpoint import Checkpoints, load_state
from jgolf.train.step import init_state
from tests import pr1855
from tests.conftest import NANO, RECIPE, random_words

CONFIG = dataclasses.replace(
    RECIPE,
    name="tiny",
    model=NANO,
    train=dataclasses.replace(RECIPE.train, batch_tokens=512, seq_len=64, num_ranks=1),
    quantize=dataclasses.replace(RECIPE.quantize, small_size=256),
    evaluate=EvaluateConfig(batch_tokens=1024, sliding_stride=16),
)
VALIDATION_SHARD = "nano_val_000000.bin"


def make_run(run_dir, nano_data, config=CONFIG):
    """A run's folder as training leaves it, with weights that were drawn instead of trained."""
    config = dataclasses.replace(config, data=DataConfig(dir=str(nano_data)))
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.model)
    params = {path: rng.normal(size=shape).astype(np.float32) * 0.1 for path, shape in shapes.items()}
    state = init_state(config, {path: jnp.asarray(value) for path, value in params.items()})
    state = state._replace(step=jnp.int32(8), ema=jax.tree.map(lambda value: 1.1 * value, state.ema))
    if state.swa_sum:
        state = state._replace(swa_sum=jax.tree.map(lambda value: 1.8 * value, state.params), swa_count=jnp.int32(2))
    configs.write_json(config, run_dir / "config.json")
    (run_dir / "train.log").write_text("step:8/8 train_loss:6.0000\n")
    checkpoints = Checkpoints(run_dir, keep=1)
    checkpoints.save(state, 8, 1.0)
    checkpoints.close()
    return run_dir


@pytest.fixture(scope="session")
def run_dir(nano_data, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", nano_data)


@pytest.fixture
def run(run_dir, tmp_path):
    """A copy of the run, to export from."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def export(run, *options):
    """Exit code, result.json (None if there is none), and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["export", str(run), *map(str, options)])
    path = run / "artifact" / "result.json"
    return code, json.loads(path.read_text()) if path.exists() else None, out.getvalue() + err.getvalue()


def test_result_says_what_the_files_are(run):
    code, result, shown = export(run)
    assert code == 0
    assert result["artifact_bytes"] == (run / "artifact" / "model.jgolf").stat().st_size
    assert len(submission.code()) < result["code_bytes"] == submission.code_bytes() <= 45_000
    assert result["total_bytes"] == result["artifact_bytes"] + result["code_bytes"]
    assert result["pre_quantization_val_bpb"] < result["val_bpb"] + 0.05
    assert f"{result['val_bpb']:.5f}" in shown and f"{result['artifact_bytes']:,}" in shown
    stored = read_artifact(run / "artifact" / "model.jgolf").stored
    assert stored["blocks/0/mlp/up_proj/kernel"].form == "int5" and stored["embed/embedding"].form == "fp16"
    assert {"load", "quantize", "pack", "unpack", "score"} <= result["seconds"].keys()


def test_the_adapted_score_is_that_of_an_evaluation(run, tmp_path, capsys):
    settings = {"rank": "2", "chunk": "16", "learning-rate": "0.01", "phases": "0"}
    given = [word for name, value in settings.items() for word in (f"--adapted.{name}", value)]
    own = [word.replace("--adapted", "--evaluate.adapted") for word in given]
    code, result, shown = export(run, "--max-tokens", 300, "--adapted", *own)
    assert code == 0 and f"with test-time training       val_loss:{result['adapted_val_loss']:.5f}" in shown
    kept = tmp_path / "kept.npz"
    words = ["--max-tokens", "300", "--scorer", "adapted", "--resume-file", str(kept), "--json", *given]
    assert main(["evaluate", str(run / "artifact" / "model.jgolf"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val_loss"] == pytest.approx(result["adapted_val_loss"], rel=1e-6)
    assert found["val_loss"] != result["sliding_val_loss"]
    assert found["tokens"] == 300 and found["scorer"] == "adapted" and not kept.exists()
    seconds = found["compile_s"] + (found["seconds"] - found["compile_s"]) * 151_100_000 / found["bytes"] / 8
    assert found["challenge_s"] == pytest.approx(seconds)


def test_hints_of_the_adapted_score_are_those_of_an_evaluation_and_of_an_audit(run, capsys):
    adapted = {"rank": "2", "chunk": "16", "learning-rate": "1e-5", "phases": "0"}
    given = [word for name, value in adapted.items() for word in (f"--adapted.{name}", value)]
    hints = ["--hints.orders", "1", "2", "--hints.min-count", "1"]
    own = [f"--evaluate.{word[2:]}" if word.startswith("--") else word for word in [*given, *hints]]
    code, without, _ = export(run, "--max-tokens", 300, "--adapted", *own)
    assert code == 0 and "hints_gained_bpb" not in without
    code, result, shown = export(run, "--max-tokens", 300, "--adapted", "--hints", *own)
    gained = result["hints_gained_bpb"]
    assert code == 0 and f"; {gained:.5f} of it by hints" in shown and gained != 0
    assert without["adapted_val_bpb"] - result["adapted_val_bpb"] == pytest.approx(gained, rel=0.01)
    settings = HintsConfig(orders=(1, 2), min_count=1)
    of_both = AdaptedConfig(rank=2, chunk=16, learning_rate=1e-5, phases=0), settings
    assert result["code_bytes"] == submission.code_bytes(*of_both) > submission.code_bytes(of_both[0])
    artifact = run / "artifact" / "model.jgolf"
    words = ["--max-tokens", "300", "--scorer", "adapted", "--json", *given, "--hints", *hints]
    assert main(["evaluate", str(artifact), *words]) == 0
    assert json.loads(capsys.readouterr().out)["val_bpb"] == pytest.approx(result["adapted_val_bpb"], rel=1e-6)
    claims = read_claims(artifact)
    assert claims[0].has_hints and all(check.passed for check in sizes(artifact, claims, *of_both))


def test_over_the_limit_is_a_failure_with_a_way_back(run):
    _, fits, _ = export(run)
    code, result, shown = export(run, "--limit-bytes", fits["total_bytes"] - 1)
    assert code == 1 and result["limit_bytes"] == fits["total_bytes"] - 1
    assert "1 bytes over the limit; cheapest way back: --quantize." in shown
    assert "embedding" in shown and "over" in shown
    code, _, shown = export(run, "--limit-bytes", 1000)
    assert code == 1 and "no single change saves that much" in shown


@pytest.mark.parametrize(
    "settings, forms",
    [
        (["--quantize.small-size", "1000000"], {"fp16", "fp32"}),
        ([f"--quantize.{kind}=fp32" for kind in ["mlp", "attention", "embedding", "table", "small"]], {"fp32"}),
        (["--quantize.mlp=int4", "--quantize.attention=int4"], {"int4", "int8", "fp16", "fp32"}),
    ],
)
def test_storage_forms_from_the_command_line(run, settings, forms):
    code, result, _ = export(run, "--max-tokens", 500, *settings)
    assert code == 0
    assert {tensor.form for tensor in read_artifact(run / "artifact" / "model.jgolf").stored.values()} == forms
    if forms == {"fp32"}:
        assert result["val_loss"] == pytest.approx(result["pre_quantization_val_loss"], abs=1e-7)


def test_an_untied_head_is_exported(nano_data, tmp_path):
    model = dataclasses.replace(NANO, tie_embeddings=False)
    run = make_run(tmp_path / "run", nano_data, dataclasses.replace(CONFIG, model=model))
    code, _, _ = export(run, "--max-tokens", 500)
    stored = read_artifact(run / "artifact" / "model.jgolf").stored
    assert code == 0 and stored["head/kernel"].form == "fp16"


def test_averages_side_by_side(run):
    code, result, shown = export(run, "--compare-averages", "--max-tokens", 1000)
    assert code == 0 and list(result["averages"]) == ["raw", "ema", "swa", "ema+swa"]
    for average, row in result["averages"].items():
        _, alone, _ = export(run, "--average", average, "--max-tokens", 1000)
        for name in ("pre_quantization_val_bpb", "val_bpb"):
            assert row[name] == pytest.approx(alone[name], abs=1e-9)
        assert row["artifact_bytes"] == alone["artifact_bytes"]
        assert f"{row['val_bpb']:.5f}" in shown and f"{row['artifact_bytes']:,}" in shown


def test_averages_that_a_run_does_not_have(nano_data, tmp_path):
    run = make_run(
        tmp_path / "run",
        nano_data,
        dataclasses.replace(CONFIG, average=dataclasses.replace(RECIPE.average, swa_start=0)),
    )
    code, result, shown = export(run, "--compare-averages", "--max-tokens", 500)
    assert code == 0 and "no parameters were summed" in result["averages"]["ema+swa"]["missing"]
    assert "none" in shown and "val_bpb" in result["averages"]["raw"]


def test_a_run_that_asked_for_the_demo_but_had_other_data(nano_data, run):
    config = configs.read_json(run / "config.json")
    configs.write_json(configs.replace(config, "data.build_demo", True), run / "config.json")
    code, result, _ = export(run, "--max-tokens", 500)
    assert code == 0 and "compressors_bpb" not in result


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--calibration-tokens", "64"], "--calibration-tokens: expected with --budget"),
        (
            ["--budget", "9", "--calibration-tokens", str(10**20)],
            "--calibration-tokens 1" + 20 * "0" + ": expected below",
        ),
        (["--github-id", "ada"], "--github-id: expected with --submission"),
        (["--hints"], "--hints: expected with --adapted, whose predictions they tilt"),
        (
            ["--evaluate.max-tokens", "64"],
            "--evaluate.max-tokens: counts in training only, which is over; --max-tokens",
        ),
        (["--quantize.late-qat-start", "0"], "--quantize.late-qat-start: counts in training only"),
    ],
)
def test_options_that_would_change_nothing_are_refused(words, told, run):
    code, result, shown = export(run, *words)
    assert code == 2 and result is None and told in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--author", "OLD", "NEW"],
        ["NEW", "--author", "OLD"],
        ["--blurb=OLD", "NEW", "--max-tokens", "5"],
        ["--submission", "OLD", "--", "NEW"],
        ["--quantize.clip-percentiles", "0.9", "1.0", "--name", "OLD", "NEW"],
    ],
)
def test_the_settings_are_those_of_the_run_that_is_exported(words, tmp_path, capsys):
    for name, form in (("OLD", "int4"), ("NEW", "int7")):
        config = dataclasses.replace(
            CONFIG,
            quantize=dataclasses.replace(RECIPE.quantize, mlp=form),
            average=dataclasses.replace(RECIPE.average, export="raw"),
        )
        configs.write_json(config, tmp_path / name / "config.json")
    words = [word.replace("OLD", str(tmp_path / "OLD")).replace("NEW", str(tmp_path / "NEW")) for word in words]
    options = export_options._parse(words, "export.py")
    assert (options.run_dir, options.quantize.mlp, options.average) == (tmp_path / "NEW", "int7", "raw")
    with pytest.raises(SystemExit):
        export_options._parse(["--help", *words], "export.py")
    assert "(default: int7)" in capsys.readouterr().out


# --- budget ----------------------------------------------------------------------------------


def divergence(run, nano_data):
    """Nats a token by which the artifact's predictions depart from the exported average's (Kullback-Leibler).

    Where the weights are at no minimum the loss may fall by an error as well as rise; this can only rise.
    """
    config = configs.load(run / "config.json")
    state = load_state(run, config)
    tokens = jnp.asarray(TokenStream([nano_data / VALIDATION_SHARD]).take(0, 2048).reshape(-1, 64), jnp.int32)
    log_softmax = jax.jit(lambda params: jax.nn.log_softmax(apply(config.model, params, tokens)))
    before = log_softmax(averaged_params(state, "ema"))
    after = log_softmax(read_artifact(run / "artifact" / "model.jgolf").params())
    return float(jnp.mean(jnp.sum(jnp.exp(before) * (before - after), axis=-1)))


def test_a_budget_is_filled_and_beats_the_recipe_s_forms(run, nano_data):
    _, recipe, _ = export(run)
    recipe_harm = divergence(run, nano_data)
    budget = recipe["total_bytes"] - recipe["artifact_bytes"] // 8
    code, result, shown = export(run, "--budget", budget, "--calibration-tokens", 4096)
    assert code == 0 and result["budget_bytes"] == budget
    assert 0.98 * (budget - result["code_bytes"]) < result["artifact_bytes"] <= budget - result["code_bytes"]
    assert divergence(run, nano_data) < recipe_harm / 10
    assert "predicted" in shown and {"curvature", "pack", "search"} <= result["seconds"].keys()
    learning_s = [result["seconds"][name] for name in ("curvature", "search")]
    assert recipe["calibration_s"] == 0 < result["calibration_s"] == pytest.approx(sum(learning_s))
    assert result["rate_weight"] in (0.0, 1.0)
    forms = {tensor.form for tensor in read_artifact(run / "artifact" / "model.jgolf").stored.values()}
    assert forms <= {"int4", "int5", "int6", "int7", "int8", "fp32"}


def test_every_average_is_fitted_to_the_same_budget(run, monkeypatch):
    monkeypatch.setattr(budget_search, "CLOSE_ENOUGH", 0.985)  # so that few trials do
    budget = submission.code_bytes() + 24_000
    options = ["--budget", budget, "--calibration-tokens", 512, "--max-tokens", 500]
    code, result, shown = export(run, "--compare-averages", *options)
    assert code == 0 and list(result["averages"]) == ["raw", "ema", "swa", "ema+swa"]
    for row in result["averages"].values():
        # a matrix so small that all of it takes one bit more makes a jump of 600 bytes
        assert 0.97 * 24_000 < row["artifact_bytes"] <= 24_000 and f"{row['val_bpb']:.5f}" in shown
    _, alone, _ = export(run, "--average", "swa", *options)
    row = result["averages"]["swa"]
    assert row["artifact_bytes"] == alone["artifact_bytes"]
    assert row["val_bpb"] == pytest.approx(alone["val_bpb"], abs=1e-9)


def test_with_room_enough_nothing_but_fp16_is_lost(run):
    code, result, _ = export(run, "--budget", 16_000_000, "--calibration-tokens", 64, "--max-tokens", 500)
    assert code == 0 and abs(result["val_loss"] - result["pre_quantization_val_loss"]) < 1e-3
    forms = {tensor.form for tensor in read_artifact(run / "artifact" / "model.jgolf").stored.values()}
    assert forms == {"fp16", "fp32"}


def test_budgets_that_cannot_be_met(run):
    code, result, shown = export(run, "--budget", 1000)
    assert code == 2 and result is None and "the code alone takes" in shown
    code, result, shown = export(run, "--budget", submission.code_bytes() + 1000, "--calibration-tokens", 64)
    assert code == 2 and result is None and "cannot be met" in shown
    smallest_bytes = int(re.search(r"it takes ([\d,]+)", shown)[1].replace(",", ""))
    enough = submission.code_bytes() + smallest_bytes
    assert export(run, "--budget", enough - 1, "--calibration-tokens", 64)[0] == 2
    assert export(run, "--budget", enough, "--calibration-tokens", 64, "--max-tokens", 500)[0] == 0


def test_a_budget_over_the_limit_fails(run):
    limit = submission.code_bytes() + 10_000
    code, result, shown = export(run, "--budget", limit + 40_000, "--limit-bytes", limit, "--calibration-tokens", 64)
    assert code == 1 and result["total_bytes"] > limit and f"--budget {limit}" in shown


# --- submission ------------------------------------------------------------------------------

CHECKOUT = Path(__file__).parents[1]
RUN_AND_SHOW_MODULES = """
import atexit, runpy, sys
sys.path.insert(0, "")
del sys.argv[0]
atexit.register(lambda: print(*[m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "jgolf"], sep="\\n"))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_in(folder, *words):
    """Runs a file of a folder with nothing of this checkout in reach; its lines, and the package's files that ran."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", RUN_AND_SHOW_MODULES, *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def score_in(folder, nano_data, *options, tokenizer="nano.model"):
    words = ["--tokens", nano_data / VALIDATION_SHARD, "--tokenizer", nano_data / tokenizer, *options]
    return run_in(folder, "score.pyz", *words)


def test_a_submission_scores_itself(run, nano_data, tmp_path):
    options = ["--submission", tmp_path / "made", "--author", "Ada Lovelace", "--name", "Née à Londres", "--blurb", "b"]
    (run / "train.log").write_bytes(b"step:8/8 \xff\n/home/ada/x: lost\n")
    code, result, shown = export(run, *options, "--github-id", "ada")
    assert code == 0 and "made: written; before it can be submitted, this is missing:" in shown

    folder = Path(shutil.move(tmp_path / "made", tmp_path / "elsewhere"))
    written = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    story = {"README.md", "submission.json", "train.log", "result.json", "config.json", "requirements.txt"}
    assert story | {"model.jgolf", "score.pyz", "train_gpt.py", "jgolf.zip"} == set(written)
    counted = sum(path.stat().st_size for name, path in written.items() if name not in story | {"jgolf.zip"})
    assert counted == result["total_bytes"]
    with zipfile.ZipFile(written["jgolf.zip"]) as package:
        assert package.read("jgolf/train/loop.py") == (CHECKOUT / "jgolf" / "train" / "loop.py").read_bytes()
        assert package.read("jgolf/configs/demo.py") == (CHECKOUT / "configs" / "demo.py").read_bytes()
    assert json.loads(written["result.json"].read_text())["val_bpb"] == result["val_bpb"]
    assert written["train.log"].read_bytes() == b"step:8/8 \xff\nx: lost\n"
    assert not any(str(tmp_path) in written[name].read_text(errors="replace") for name in story)
    assert f"{result['sliding_val_bpb']:.6f}" in written["README.md"].read_text()
    summary = json.loads(written["submission.json"].read_text())
    assert summary["author"] == "Ada Lovelace" and summary["github_id"] == "ada" and summary["name"] == "Née à Londres"
    assert (summary["bytes_total"], summary["bytes_code"]) == (result["total_bytes"], result["code_bytes"])
    assert (summary["val_loss"], summary["val_bpb"]) == (result["sliding_val_loss"], result["sliding_val_bpb"])

    shown = score_in(folder, nano_data, "--stride", result["sliding_stride"])
    assert shown.returncode == 0, shown.stderr
    scores, *modules = shown.stdout.splitlines()
    assert len(modules) > 20 and not any(Path(module).is_relative_to(CHECKOUT) for module in modules)
    with zipfile.ZipFile(folder / "score.pyz") as code, tarfile.open(fileobj=code.open("sources.tar.xz")) as sources:
        text = sources.extractfile("jgolf/rules.py").read().decode()
        whole = (CHECKOUT / "jgolf" / "rules.py").read_text()
        types = {line for line in whole.splitlines() if line.lstrip().startswith("def ")}  # which are left out
        kept = {line for line in text.splitlines() if not line.lstrip().startswith(("def ", "from ", "import "))}
        assert kept <= {*whole.splitlines()} and len(types) > 3
        names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
        assert names <= {node.name for node in ast.walk(ast.parse(whole)) if isinstance(node, ast.FunctionDef)}
    scores = json.loads(scores)
    for name in ("val_loss", "val_bpb", "sliding_val_loss", "sliding_val_bpb"):
        assert scores[name] == pytest.approx(result[name], abs=1e-6)
    assert (scores["tokens"], scores["bytes"]) == (len_of_standard_rows(result), pytest.approx(scores["bytes"]))


def test_the_forms_of_pr1855_come_back_and_score_without_this_package(nano_data, tmp_path):
    """GPTQ from the run's own text, gates, corrections: what is on the disk is what the submission scores."""
    model = dataclasses.replace(
        pr1855.MODEL, vocab_size=NANO.vocab_size, num_layers=4, loop_layers=(1, 2), lanes_from=3, xsa_layers=(0, 3)
    )
    config = dataclasses.replace(
        pr1855.CONFIG,
        name="tiny1855",
        model=model,
        train=dataclasses.replace(pr1855.CONFIG.train, batch_tokens=512, seq_len=64, num_ranks=1, accumulation=1),
        quantize=dataclasses.replace(pr1855.RECORD.quantize, small_size=256),
        evaluate=CONFIG.evaluate,
    )
    run = make_run(tmp_path / "run", nano_data, config)
    words = ["--submission", tmp_path / "made", "--author", "a", "--name", "n", "--calibration-tokens", 4096]
    code, result, shown = export(run, *words)
    assert code == 0, shown
    stored = read_artifact(run / "artifact" / "model.jgolf").stored
    assert {tensor.form for tensor in stored.values()} == {"int6", "int7", "int8", "fp16"}
    assert stored["blocks/0/attn/gate"].form == "int8" and stored["embed/embedding"].form == "int7"
    corrected = {path: tensor.correction for path, tensor in stored.items() if tensor.correction is not None}
    assert len(corrected) == 3 and all(len(one.right.levels) == 4 for one in corrected.values())
    near = dataclasses.replace(config.quantize, gptq=False)
    weights = averaged_params(load_state(run, config), config.average.export)
    without = quantize({path: np.asarray(value) for path, value in weights.items()}, near)
    other = "blocks/1/mlp/up_proj/kernel"
    np.testing.assert_array_equal(stored[other].scales, without[other].scales)
    assert 0.05 < np.mean(stored[other].values != without[other].values) < 0.95
    shown = score_in(tmp_path / "made", nano_data, "--stride", result["sliding_stride"])
    assert shown.returncode == 0, shown.stderr
    scores = json.loads(shown.stdout.splitlines()[0])
    for name in ("val_bpb", "sliding_val_bpb"):
        assert scores[name] == pytest.approx(result[name], rel=3e-6)


@pytest.mark.parametrize(
    ("line", "published"),
    [
        ("python train.py --resume --run-dir secret/runs/x", "python train.py --resume --run-dir x"),
        ("--run-dir /home/ada/runs/x", "--run-dir x"),
        ("--run-dir='/home/ada/my runs/x y'", "--run-dir=x y"),
        ("error in '~/my runs/x/config.json'", "error in config.json"),
        ("~/x/train.log: cannot be written", "train.log: cannot be written"),
        ("data.dir ../../ada/tokens (was /mnt/tokens/), seed 3", "data.dir tokens (was tokens), seed 3"),
        ("/home/ada/data/x_val_000000.bin: no tokens", "x_val_000000.bin: no tokens"),
        ("step:3/20 train_loss:6.1/2 tok/s 1 / 2 and/or 'a/b' it's 5/s, that's 7/s", None),
    ],
)
def test_a_submission_names_no_folders(line, published):
    assert submission.without_folders(f"a\n{line}\nb\n") == f"a\n{published or line}\nb\n"


def len_of_standard_rows(result):
    return result["tokens"] // 64 * 64


def test_a_submission_refuses_another_tokenizer(run, nano_data, tmp_path):
    code, _, _ = export(run, "--submission", tmp_path / "made", "--author", "a", "--name", "n")
    (tmp_path / "other.model").write_bytes(train_tokenizer(random_words(1), NANO.vocab_size))
    shown = score_in(tmp_path / "made", nano_data, tokenizer=tmp_path / "other.model")
    assert code == 0 and shown.returncode == 2
    assert shown.stderr.startswith("error: ") and "not the tokenizer" in shown.stderr


def test_submissions_that_cannot_be_made_are_refused_before_any_work(run, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("")
    names = ["--author", "a", "--name", "n"]
    for options, message in [
        (["--submission", full, *names], "not empty"),
        (["--submission", tmp_path / "file", *names], "a file, expected a folder"),
        (["--submission", tmp_path / "new", *names, "--max-tokens", 500], "leave --max-tokens out"),
        (["--submission", tmp_path / "new", *names, "--runs", run], "named twice"),
        (["--submission", tmp_path / "new", *names, "--runs", full], "full: not a run directory"),
        (["--runs", run], "--runs: expected with --submission"),
    ]:
        code, result, shown = export(run, *options)
        assert code == 2 and result is None and message in shown
    assert [path.name for path in full.iterdir()] == ["notes.txt"] and not (tmp_path / "new").exists()
    (run / "train.log").unlink()
    code, result, shown = export(run, "--submission", tmp_path / "new", *names)
    assert code == 2 and result is None and "has no train.log" in shown


def test_over_the_limit_a_submission_says_so(run, tmp_path):
    code, result, shown = export(
        run, "--submission", tmp_path / "new", "--author", "a", "--name", "n", "--limit-bytes", 1000
    )
    assert code == 1
    told = f"artifact and code take {result['total_bytes']:,} bytes, expected at most 1,000"
    assert told in shown and told in (tmp_path / "new" / "README.md").read_text()
    assert any(told in what for what in json.loads((tmp_path / "new" / "submission.json").read_text())["missing"])


def seeds_of(run, tmp_path, *seeds):
    """Copies of the run as if other seeds had made it."""
    found = []
    for seed in seeds:
        found.append(Path(shutil.copytree(run, tmp_path / f"seed{seed}")))
        config = configs.read_json(run / "config.json")
        configs.write_json(configs.replace(config, "train.seed", seed), found[-1] / "config.json")
        (found[-1] / "train.log").write_text(f"of seed {seed}\n")
    return found


def test_a_submission_tells_of_further_seeds(run, tmp_path):
    second, third = seeds_of(run, tmp_path, 2, 3)
    forms = ["--quantize.mlp", "int6", "--quantize.clip-percentiles", "0.99", "1.0"]
    assert export(second, *forms)[0] == 0
    made, who = tmp_path / "made", ["--author", "a", "--name", "n"]
    code, result, shown = export(run, *forms, "--submission", made, *who, "--runs", second, third)
    assert code == 0 and "ready to submit" not in shown
    assert "seed3 (seed 3): not scored after quantization" in shown and "exported otherwise" not in shown
    told = json.loads((made / "submission.json").read_text())
    assert told["export"] == result["options"] == forms
    assert told["val_bpb"] == pytest.approx(result[f"{told['scorer']}_val_bpb"]) and told["val_bpb_std"] == 0.0
    assert told["eval_s"] == result["sliding_eval_s"] > 0
    text_share = 151_100_000 / result["bytes"] * result["num_devices"] / 8
    assert result["sliding_challenge_s"] == pytest.approx(result["sliding_eval_s"] * text_share, rel=0.02, abs=20)
    assert (made / "train_seed2.log").read_text() == "of seed 2\n"
    assert json.loads((made / "result_seed2.json").read_text())["options"] == forms
    assert (made / "train_seed3.log").exists() and not (made / "result_seed3.json").exists()
    _, _, shown = export(run, "--submission", tmp_path / "again", *who, "--runs", second)
    assert "seed2 was exported otherwise than run: '--quantize.mlp int6" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--average", "raw", "--codec", "range", "--budget", "90000", "--calibration-tokens", "64"],
        ["--adapted", "--hints"],
        ["--quantize.lqer.rank", "2", "--quantize.scale-floor", "False", "--quantize.clip-percentiles", "0.9", "1.0"],
        ["--max-tokens", "5", "--evaluate.adapted.chunk-by-length", "256", "8", "2000", "24"],
        ["--evaluate.adapted.additions", "k", "mlp", "--limit-bytes", "9", "--quantize.mlp-clip-sigmas", "11.5"],
    ],
)
def test_an_export_can_be_repeated_by_its_words(words, run):
    options, config = export_options.read_command([str(run), *words], "export.py")
    found = export_options.repeated(options, configs.read_json(run / "config.json"))
    again, config_again = export_options.read_command([str(run), *found], "export.py")
    assert (again, config_again) == (options, config) and sorted(found) == sorted(words)


def test_a_submission_s_training_runs_by_its_own_package(run, tmp_path):
    export(run, "--submission", tmp_path / "made", "--author", "a", "--name", "n")
    done = run_in(tmp_path / "made", "train_gpt.py", "--help")
    assert done.returncode == 0 and "--train.warmdown-steps" in done.stdout, done.stderr
    modules = [line for line in done.stdout.splitlines() if line.startswith("/") and line.endswith(".py")]
    assert len(modules) > 20 and not any(Path(module).is_relative_to(CHECKOUT) for module in modules)


@pytest.mark.slow
def test_a_submission_from_training_to_its_own_rerun(nano_data, tmp_path):
    """Two seeds are trained and exported, with test-time training; the folder scores itself, and trains the second seed
    to the same artifact."""
    config = dataclasses.replace(CONFIG, data=DataConfig(dir=str(nano_data)))
    settings = {"train.steps": 6, "train.time_cap_s": 0.0, "train.warmdown_steps": 3, "evaluate.adapted.rank": 2}
    settings |= {"evaluate.adapted.chunk": 16, "evaluate.adapted.phases": 0}
    configs.write_json(configs.replace_all(config, settings), tmp_path / "tiny.json")
    runs = [tmp_path / "first", tmp_path / "second"]
    for seed, run in enumerate(runs, start=5):
        assert main(["train", str(tmp_path / "tiny.json"), "--seed", str(seed), "--run-dir", str(run)]) == 0
    forms, made = ["--adapted", "--hints", "--quantize.mlp", "int6"], tmp_path / "made"
    _, other, _ = export(runs[1], *forms)
    code, result, shown = export(
        runs[0], *forms, "--submission", made, "--author", "a", "--name", "n", "--runs", runs[1]
    )
    assert code == 0 and "results of 2 seeds, expected 3" in shown and "kept" not in shown
    told = json.loads((made / "submission.json").read_text())
    key = f"{told['scorer']}_val_bpb"
    assert told["val_bpb"] == pytest.approx(np.mean([result[key], other[key]]))
    assert told["val_bpb_std"] == pytest.approx(np.std([result[key], other[key]], ddof=1))
    assert told["seed_results"]["5"]["train_s"] > 0 and told["seed_results"]["6"]["train_devices"] == ["1 × cpu"]
    assert f"jax=={jax.__version__}\n" in (made / "requirements.txt").read_text()
    counted = sum((made / name).stat().st_size for name in submission.COUNTED)
    assert counted == result["total_bytes"] > result["artifact_bytes"] + submission.code_bytes()

    shown = score_in(made, nano_data, "--stride", result["sliding_stride"])
    assert shown.returncode == 0, shown.stderr
    scores = json.loads(shown.stdout.splitlines()[0])
    for name in ("val_bpb", "sliding_val_bpb", "adapted_val_bpb"):
        assert scores[name] == pytest.approx(result[name], rel=3e-6)

    done = run_in(made, "train_gpt.py", "--data", nano_data, "--seed", 6)
    assert done.returncode == 0, done.stderr
    again = json.loads((made / "run" / "artifact" / "result.json").read_text())
    assert again["options"] == forms and f"{again['adapted_val_bpb']:.5f}" in done.stdout
    for name in ("val_bpb", "sliding_val_bpb", "adapted_val_bpb", "artifact_bytes"):
        assert again[name] == pytest.approx(other[name], rel=1e-6)


def test_a_submission_may_go_into_an_empty_folder(run, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, _ = export(run, "--submission", tmp_path / "empty", "--author", "a", "--name", "n")
    assert code == 0 and (tmp_path / "empty" / "model.jgolf").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
