"""What a submission tells of several seeds, whose score it names, and what it says is missing."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from jgolf import config as configs
from jgolf.artifact.missing import missing
from jgolf.artifact.seeds import SeedRun, best_scorer
from jgolf.artifact.story import Sizes, Submitter, readme, summary
from jgolf.artifact.submission import write
from jgolf.errors import JgolfError
from tests.conftest import RECIPE

EIGHT = "8 × NVIDIA H100 80GB HBM3"
LOG = (
    "pr592: 30,404,196 parameters, 786,432 tokens a step in sequences of 2048, {devices} in 1 process, bfloat16, x\n"
    "step:4973/20000 train_loss:1.9 train_time:599000ms step_avg:120.45ms\n"
    "stopping: time cap reached train_time:{train_ms}ms step:4973/20000\n"
)
BITS = {1: 1.0607, 2: 1.0612, 3: 1.0613}
"""Seed → its sliding bits per byte; the others of a run follow from it."""


def ready(seed: int, **changes) -> SeedRun:
    """A run as the rules ask for it, but for the changes: of its log, its settings or its result."""
    log = {"devices": EIGHT, "train_ms": 599_500} | {k: changes.pop(k) for k in ("devices", "train_ms") if k in changes}
    config = configs.replace_all(RECIPE, {"train.seed": seed} | changes.pop("settings", {}))
    requirements = changes.pop("requirements", "# Python 3.12.1\njax==0.11.2\n")
    tokens, num_bytes, bits = 62_021_845, 151_080_891, BITS[seed]
    result = {"step": 4973, "calibration_s": 0.0, "split_tokens": tokens, "average": "ema", "sliding_stride": 64}
    result |= {"artifact_bytes": 15_900_000, "code_bytes": 45_000, "total_bytes": 15_945_000}
    result |= {"limit_bytes": 16_000_000, "num_devices": 8, "device": "NVIDIA H100 80GB HBM3", "options": []}
    result |= {"validation_sha256": {"fineweb_val_000000.bin": "ab" * 32}, "tokens": tokens, "bytes": num_bytes}
    result |= {"standard_tokens": tokens - 500, "standard_bytes": num_bytes - 1200}
    for prefix, off, seconds in (("", 0.02, 9.0), ("sliding_", 0.0, 80.0), ("pre_quantization_", 0.01, 0.0)):
        loss = (bits + off) * math.log(2) * num_bytes / tokens
        result |= {f"{prefix}val_bpb": bits + off, f"{prefix}val_loss": loss}
        result |= {f"{prefix}eval_s": seconds, f"{prefix}challenge_s": seconds}
    return SeedRun(f"run{seed}", config, LOG.format(**log), requirements, result | changes, '{"passed": true}')


def adapted(run: SeedRun, bits: float, seconds: float) -> SeedRun:
    figures = {"val_bpb": bits, "val_loss": 1.8, "eval_s": seconds, "challenge_s": seconds}
    return dataclasses.replace(run, result=run.result | {f"adapted_{name}": value for name, value in figures.items()})


def lacking(runs: list[SeedRun], author: str = "Ada", name: str = "n") -> list[str]:
    return missing(author, name, runs, best_scorer(runs))


def test_three_seeds_as_the_rules_ask_are_ready():
    assert lacking([ready(1), ready(2), ready(3)]) == []


CASES = [
    ({"bytes": 3_587_711}, "not FineWeb's validation split: 3,587,711 bytes were scored, expected about 151", 2),
    ({"sliding_challenge_s": 601.0}, "run1 (seed 1): the sliding evaluation takes 601 s for FineWeb's text on 8", 1),
    ({"devices": "1 × NVIDIA H200"}, "run1 (seed 1): trained on 1 × NVIDIA H200, expected 8 × H100", 1),
    ({"devices": "8 × NVIDIA A100"}, "trained on 8 × NVIDIA A100, expected 8 × H100", 1),
    ({"num_devices": 1}, "run1 (seed 1): scored on 1 × NVIDIA H100 80GB HBM3, so that the seconds", 1),
    ({"train_ms": 600_001}, "600.0 s of training, expected at most 600 s", 1),
    ({"calibration_s": 31.5}, "599.5 s of training and 31.5 s of learning from training text to quantize, expected", 1),
    ({"total_bytes": 16_000_001}, "artifact and code take 16,000,001 bytes, expected at most 16,000,000", 1),
    ({"limit_bytes": 15_000_000}, "artifact and code take 15,945,000 bytes, expected at most 15,000,000", 1),
    ({"split_tokens": 62_021_846}, "scored on 62,021,845 of 62,021,846 validation tokens only", 1),
    ({"requirements": ""}, "did not keep the versions of its packages", 3),
    ({"settings": {"model.num_layers": 11}}, "run2 differs from run1 in more than the seed: model.num_layers 12 (", 2),
    ({"settings": {"train.time_cap_s": 599.0}}, "differs from run1 in more than the seed: train.time_cap_s", 2),
    ({"settings": {"data.dir": "elsewhere", "name": "other"}}, None, 0),
    ({"options": ["--budget", "16000000"]}, "run2 was exported otherwise than run1", 2),
    ({"validation_sha256": {}}, "the runs were not scored on the same text", 1),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told", "count"), CASES)
def test_what_is_missing_is_said(changes, told, count):
    """Of the first run alone: settings and packages differ from both others'."""
    found = lacking([ready(1, **changes), ready(2), ready(3)])
    assert len(found) == count and (told is None or any(told in what for what in found)), found


def test_too_few_seeds_and_repeated_ones_are_missing():
    assert ["results of 1 seed, expected 3" in what for what in lacking([ready(1)])] == [True]
    assert ["results of 2 seeds, expected 3" in what for what in lacking([ready(1), ready(2)])] == [True]
    twice = lacking([ready(1), ready(2), ready(2), ready(3)])
    assert twice == ["several runs of seed 2, which are no sample of the noise"]


def test_a_run_without_an_artifact_has_no_score_after_quantization():
    runs = [ready(1), ready(2), ready(3), dataclasses.replace(ready(1), name="raw", result=None)]
    assert lacking(runs) == ["raw (seed 1): not scored after quantization: export the run"]
    assert summary(Submitter("a", "", "n", ""), runs, ["a", "b", "c", "d"], "sliding", [])["val_bpb"] == pytest.approx(
        np.mean([*BITS.values()])
    )


def test_empty_names_are_missing():
    runs = [ready(1), ready(2), ready(3)]
    assert lacking(runs, author=" ", name="") == ["--author is empty", "--name is empty"]


def test_the_best_score_is_the_lowest_that_is_legal():
    runs = [ready(1), ready(2)]
    assert best_scorer(runs) == "sliding"
    assert best_scorer([adapted(run, 1.05, 500) for run in runs]) == "adapted"
    assert best_scorer([adapted(runs[0], 1.05, 500), adapted(runs[1], 1.05, 601)]) == "sliding"  # one takes too long
    assert best_scorer([adapted(runs[0], 1.05, 500), runs[1]]) == "sliding"  # one was not asked
    assert best_scorer([adapted(run, 1.07, 500) for run in runs]) == "sliding"
    slow = [dataclasses.replace(run, result=run.result | {"sliding_challenge_s": 900.0}) for run in runs]
    assert best_scorer(slow) == "sliding"  # none is quick enough
    assert best_scorer([adapted(run, 1.07, 500) for run in slow]) == "adapted"
    cut = [dataclasses.replace(run, result=run.result | {"val_bpb": 1.0}) for run in runs]
    assert best_scorer(cut) == "sliding"  # rows leave the last tokens out
    whole = [dataclasses.replace(run, result=run.result | {"standard_tokens": run.result["tokens"]}) for run in cut]
    assert best_scorer(whole) == "standard"


def test_the_summary_is_of_all_seeds(tmp_path):
    runs = [ready(2), ready(1, train_ms=598_000), ready(3), ready(3)]
    runs[3] = dataclasses.replace(runs[3], name="again")
    found = write(tmp_path / "made", Submitter("Ada", "ada", "Née", "b"), runs, b"model", b"code", "# Python 3\n")
    assert len(found) == 1
    told = json.loads((tmp_path / "made" / "submission.json").read_text())
    assert "Née" in (tmp_path / "made" / "submission.json").read_text()
    bits = [run.result["sliding_val_bpb"] for run in runs]
    losses = [run.result["sliding_val_loss"] for run in runs]
    assert told["val_bpb"] == pytest.approx(np.mean(bits)) and told["val_bpb_std"] == pytest.approx(
        np.std(bits, ddof=1)
    )
    assert told["val_loss"] == pytest.approx(np.mean(losses))
    assert told["val_loss_std"] == pytest.approx(np.std(losses, ddof=1))
    assert told["scorer"] == "sliding" and told["seeds"] == [2, 1, 3, 3] and told["missing"] == found
    assert [*told["seed_results"]] == ["2", "1", "3 (run3)", "3 (again)"]
    one = told["seed_results"]["1"]
    assert one["log"] == "train_seed1.log" and one["train_s"] == 598.0 and one["train_devices"] == [EIGHT]
    assert (one["sliding_val_bpb"], one["sliding_challenge_s"], one["bytes_total"]) == (BITS[1], 80.0, 15_945_000)
    names = {path.name for path in (tmp_path / "made").iterdir()}
    logs = {"train.log", "train_seed1.log", "train_seed3.log", "train_seed3_2.log"}
    assert logs | {name.replace("train", "result").replace(".log", ".json") for name in logs} <= names
    assert (tmp_path / "made" / "requirements.txt").read_text() == runs[0].requirements
    text = (tmp_path / "made" / "README.md").read_text()
    assert f"the mean of 4 seeds with a deviation of {np.std(bits, ddof=1):.6f}" in text
    assert "| 1 | " in text and found[0] in text and "with it the sum" in text
    config = configs.read_json(tmp_path / "made" / "config.json")
    assert config == configs.replace(runs[0].config, "data", configs.DataConfig())


def test_one_seed_has_no_deviation():
    runs, who = [ready(1)], Submitter("a", "", "", "")
    told = summary(who, runs, ["train.log"], "sliding", [])
    assert told["val_bpb"] == BITS[1] and told["val_bpb_std"] is None
    text = readme(who, runs, ["train.log"], "sliding", [], Sizes(1, 2, 3), "3.12")
    assert "by the scorer `sliding`, one seed." in text and "What is missing" not in text


def write_run(folder, run: SeedRun):
    (folder / "artifact").mkdir(parents=True)
    configs.write_json(run.config, folder / "config.json")
    (folder / "train.log").write_text(run.log)
    (folder / "requirements.txt").write_text(run.requirements)
    (folder / "artifact" / "result.json").write_text(json.dumps(run.result))
    return folder


def test_a_run_is_read_from_its_folder(tmp_path):
    folder = write_run(tmp_path / "run1", ready(1))
    assert SeedRun.read(folder) == dataclasses.replace(ready(1), audit="")
    (folder / "artifact" / "audit.json").write_text(ready(1).audit)
    assert SeedRun.read(folder) == ready(1)
    on = LOG.format(devices="8 × NVIDIA H200", train_ms=599_900)
    (folder / "train.log").write_text(ready(1).log + on)  # a run that went on elsewhere
    assert SeedRun.read(folder).devices == [EIGHT, "8 × NVIDIA H200"] and SeedRun.read(folder).train_s == 599.9
    (folder / "train.log").write_text("nothing\n")
    assert SeedRun.read(folder).devices == [] and math.isnan(SeedRun.read(folder).train_s)
    (folder / "artifact" / "result.json").unlink()
    (folder / "requirements.txt").unlink()
    assert SeedRun.read(folder).result is None and SeedRun.read(folder).requirements == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps({"val_bpb": 1.0}), "step is None, expected a number, as exports of this version write it"),
        ("{", "damaged"),
        ("[]", "expected an object"),
        (json.dumps({**ready(1).result, "options": "x"}), "options is 'x'"),
        (json.dumps({**ready(1).result, "options": [5]}), "options is [5]"),
        (json.dumps({**ready(1).result, "original_bytes": 9}), "sliding_original_bpb is None"),
        (json.dumps({**ready(1).result, "adapted_val_bpb": 1.0}), "adapted_val_loss is None"),
    ],
)  # fmt: skip
def test_results_that_cannot_be_told_are_refused(text, told, tmp_path):
    folder = write_run(tmp_path / "run1", ready(1))
    (folder / "artifact" / "result.json").write_text(text)
    with pytest.raises(JgolfError) as error:
        SeedRun.read(folder)
    assert told in str(error.value) and "jgolf export" in str(error.value)
