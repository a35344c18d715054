from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jgolf import api
from jgolf import config as configs
from jgolf.artifact import container
from jgolf.cli import main
from jgolf.errors import MissingExtraError
from jgolf.history import read_histories, read_history
from jgolf.report.curves import history_plots, smoothed, step_times_ms
from jgolf.report.plots import LIGHT, placed
from jgolf.report.sizes import read_contents
from tests.conftest import RECIPE
from tests.history.test_read import REFERENCE_LOG

matplotlib = pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"
FORMS = {"blocks/0/mlp/up_proj/kernel": "int5", "blocks/0/attn/q_proj/kernel": "int6", "skip_weights": "fp32"}


def write_run(folder: Path, learning_rate: float = 0.025, artifact: bool = False) -> Path:
    folder.mkdir(parents=True)
    config = configs.replace_all(RECIPE, {"name": "x", "optim.muon.learning_rate": learning_rate})
    configs.write_json(config, folder / "config.json")
    rows = [{"step": 0, "val_loss": 7.0, "val_bpb": 4.0, "train_time_s": 0.0}]
    rows += [
        {
            "step": step,
            "train_loss": 7 - step / 20,
            "grad_norm": 0.5,
            "learning_rate_multiplier": 1 - step / 80,
            "late_qat": step > 60,
            "swa_count": max(0, step - 50),
            "train_time_s": 0.1 * step,
        }
        for step in range(1, 71)
    ]
    rows.append({"step": 70, "val_loss": 3.5, "val_bpb": 2.1234, "train_time_s": 7.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if artifact:
        rng = np.random.default_rng(0)
        shapes = {
            "blocks/0/mlp/up_proj/kernel": (64, 96),
            "blocks/0/attn/q_proj/kernel": (64, 64),
            "skip_weights": (3, 64),
        }
        params = {path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()}
        data = api.pack(api.quantize(params, dataclasses.replace(RECIPE.quantize, small_size=0)), {})
        container.write(folder / "artifact" / "model.jgolf", data)
        result = {"val_loss": 3.6, "val_bpb": 2.2, "sliding_val_loss": 3.4, "sliding_val_bpb": 2.0777}
        result |= {"pre_quantization_val_bpb": 2.15, "average": "ema", "total_bytes": 123_456, "code_bytes": 1000}
        (folder / "artifact" / "result.json").write_text(json.dumps({**result, "device": "a chip"}))
    return folder


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_of_several_runs(tmp_path, capsys):
    log = tmp_path / "pytorch.txt"
    log.write_text(REFERENCE_LOG)
    runs = [write_run(tmp_path / "a", artifact=True), write_run(tmp_path / "b<i>", 0.03), log]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    assert "index.html: 10 plots of 3 runs" in capsys.readouterr().out
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    words = " ".join(page.words)
    assert "b<i>" in words and "<i>" not in re.sub("&lt;i&gt;", "", text)
    for shown in ("2.0777", "2.1234", "3.0134", "123,456", "optim.muon.learning_rate", "0.03", "a chip", "15,497,769"):
        assert shown in words
    assert "Best score: 2.0777 bits per byte (sliding window, from the artifact, a)" in words
    # One file, on its own: every picture is in it, for both grounds, with a text for those who do not see it.
    images, sources = page.all("img"), page.all("source")
    assert len(images) == len(sources) == 10 and all("prefers-color-scheme: dark" in s["media"] for s in sources)
    for address in [*(i["src"] for i in images), *(s["srcset"] for s in sources)]:
        assert base64.b64decode(address.removeprefix("data:image/png;base64,")).startswith(PNG)
    assert all(len(image["alt"]) > 60 for image in images)
    assert not page.all("script") and not page.all("link") and "http" not in re.sub('base64,[^"]*', "", text)
    by_title = {image["alt"].split(".")[0].split(" over")[0]: image["alt"] for image in images}
    assert "a: SWA from step 51, late QAT from step 61" in by_title["Learning-rate multiplier"]
    assert "b<i>: validation loss from 7.0000 at step 0 to 3.5000 at step 70" in by_title["Loss"]
    assert "pytorch: median 130.0 ms" in by_title["Step time"]
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names >= {"loss-steps.png", "bpb-time.png", "artifact-size.png", "levels-int5.png", "levels-int6.png"}
    assert all((tmp_path / "out" / name).read_bytes().startswith(PNG) for name in names)


def test_one_run_reports_into_its_own_folder(tmp_path):
    run = write_run(tmp_path / "a")
    assert main(["report", str(run)]) == 0
    assert (run / "report" / "index.html").exists()


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / parent / "run") for parent in ("old", "new")]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "old/run" in text and "new/run" in text and "The runs have the same settings." in text


def test_names_are_text_whatever_is_in_them(tmp_path):
    """Not TeX to matplotlib, which also leaves names with an underscore in front out of its legends, nor emoji."""
    names = ["$x_{", r"\$a$b$", "_hidden", "[red]:smile:", "漢字", "b\udcff"]
    runs = [write_run(tmp_path / name, 0.01 * place) for place, name in enumerate(names, start=1)]
    (plot,) = (plot for plot in history_plots([read_history(run) for run in runs]) if plot.name == "loss-steps")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot.png(LIGHT).startswith(PNG)
    figure = matplotlib.figure.Figure()
    plot.draw(figure, LIGHT)
    _, shown = figure.axes[0].get_legend_handles_labels()
    assert [name.strip() for name in shown] == [*names[:-1], "b?"]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    words = Page((tmp_path / "out" / "index.html").read_text()).words
    assert set(names[:-1]) < set(words)


def test_contents_of_an_artifact(tmp_path):
    run = read_history(write_run(tmp_path / "a", artifact=True))
    contents = read_contents(run)
    stored, _ = container.read(run.artifact)
    assert {path: tensor.form for path, tensor in stored.items()} == FORMS
    for path, form in list(FORMS.items())[:2]:
        counts = contents.level_counts[form]
        levels = stored[path].values
        assert len(counts) == 2 ** int(form[3:]) and counts.sum() == levels.size
        assert (
            counts[len(counts) // 2] == (levels == 0).sum()
            and counts[0] == (levels == levels.dtype.type(-len(counts) // 2)).sum()
        )
        share = np.unique(levels, return_counts=True)[1] / levels.size
        assert contents.level_entropy_bits(form) == pytest.approx(-(share * np.log2(share)).sum())
    assert sum(size.packed_bytes for size in contents.report.kinds) == pytest.approx(run.artifact.stat().st_size, abs=3)


def test_step_times_span_what_was_not_logged(tmp_path):
    path = tmp_path / "pytorch.txt"
    path.write_text(REFERENCE_LOG)
    steps, ms = step_times_ms(read_history(path))
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_allclose(ms, [130, 130])


def test_a_run_that_has_only_begun(tmp_path):
    run = write_run(tmp_path / "a")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    assert main(["report", str(run)]) == 0
    assert [plot.name for plot in history_plots([read_history(run)])] == [
        "loss-steps",
        "loss-time",
        "learning-rate",
        "gradient-norm",
    ]


def test_a_sweep(tmp_path, capsys):
    """Its runs are called by what it varies; its scores are there, and one legend for the seeds of a setting."""
    rows = []
    for number, (rate, seed) in enumerate([(0.02, 1), (0.02, 2), (0.03, 1)]):
        write_run(tmp_path / "sweep" / "runs" / f"00{number}", rate)
        scores = {"raw_val_bpb": 2.3, "ema_val_bpb": 2.21 + number / 10, "quantized_val_bpb": 2.25 + number / 10}
        scores |= {f"{name.removesuffix('bpb')}loss": value for name, value in scores.items()}
        row = {"optim.muon.learning_rate": rate, "seed": seed, **scores, "folder": f"runs/00{number}"}
        rows.append({**row, "artifact_bytes": 123_456})
    (tmp_path / "sweep" / "results.json").write_text(json.dumps({"runs": rows}))
    assert main(["report", str(tmp_path / "sweep")]) == 0
    words = " ".join(Page((tmp_path / "sweep" / "report" / "index.html").read_text()).words)
    assert "Best score: 2.2500 bits per byte (rows, quantized, learning rate 0.02, seed 1)" in words
    assert "learning rate 0.03, seed 1" in words and "2.4100" in words and "2.4500" in words
    runs = read_histories(tmp_path / "sweep")
    assert [place for place, _ in placed(runs)] == [0, 0, 1]
    assert [run.legend for run in runs] == ["learning rate 0.02", "learning rate 0.02", "learning rate 0.03"]


def test_a_run_that_diverged(tmp_path):
    runs = [write_run(tmp_path / "diverged"), write_run(tmp_path / "whole")]
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    for row in rows[40:]:
        row |= {name: math.nan for name in ("train_loss", "val_loss", "val_bpb") if name in row}
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    assert "Best score: 2.1234 bits per byte (last validation, whole)" in (tmp_path / "out" / "index.html").read_text()
    losses = np.array([3.0] * 100 + [np.nan] * 100)
    np.testing.assert_array_equal(smoothed(losses)[:100], 3.0)
    assert np.isnan(smoothed(losses)[-90:]).all()


def test_errors(tmp_path, capsys, monkeypatch):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    run = write_run(tmp_path / "a")
    assert main(["report", str(run), str(run)]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main(["report"]) == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(run)]) == MissingExtraError.exit_code
    assert "pip install 'jgolf[report]'" in capsys.readouterr().err
