from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import urllib.parse
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jgolf import api
from jgolf import config as configs
from jgolf.artifact import container
from jgolf.cli import main
from jgolf.errors import JgolfError, MissingExtraError
from jgolf.history import read_histories, read_history
from jgolf.report.charts import chart_data
from jgolf.report.curves import history_plots, smoothed, step_times_ms
from jgolf.report.leaderboard import leaderboard
from jgolf.report.page import _script
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

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self._table: list[list[str]] = []
        self.text = path.read_text()
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "input"):
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables[dict(attrs).get("id", str(len(self.tables)))] = []
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data)
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self._table[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self) -> dict:
        """What the page's script draws."""
        return json.loads(re.search('id="data">(.*?)</script>', self.text, re.DOTALL)[1])

    def column(self, table: str, head: str) -> list[str]:
        heads, *rows = self.tables[table]
        return [row[heads.index(head)] for row in rows]


def report(out: Path, *arguments: object, plots: bool = False) -> Page:
    """The page that the command writes."""
    assert main(["report", *map(str, arguments), "--out", str(out), *([] if plots else ["--no-plots"])]) == 0
    return Page(out / "index.html")


def test_page_of_several_runs(tmp_path, capsys):
    log = tmp_path / "pytorch.txt"
    log.write_text(REFERENCE_LOG)
    runs = [write_run(tmp_path / "a", artifact=True), write_run(tmp_path / "b<i>", 0.03), log]
    page = report(tmp_path / "out", *runs, plots=True)
    assert "index.html: 3 runs, 11 plots as PNG and SVG" in capsys.readouterr().out
    words = " ".join(page.words)
    assert "b<i>" in words and "<i>" not in page.text
    for shown in (
        "2.0777",
        "2.1234",
        "3.0134",
        "optim.muon.learning_rate",
        "0.03",
        "a chip",
        "15,497,769 of 16,000,000",
    ):
        assert shown in words
    # What every run has is compared; what some have stands beside it.
    assert "Best score: 2.1234 bits per byte (last validation, a)" in words
    assert page.column("results", "run") == ["a", "b<i>", "pytorch"]
    assert page.column("results", "last validation") == ["2.1234", "2.1234", "3.0200"]
    assert page.column("results", "quantized, sliding window") == ["2.0777", "–", "3.0134"]
    assert page.column("results", "quantization gap") == ["+0.0500", "–", "–"]
    assert page.column("results", "Δ") == ["baseline", "+0.0000", "+0.8966"]
    assert page.column("results", "bytes") == ["123,456", "–", "15,497,769"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {
        "loss-steps.png",
        "bpb-time.svg",
        "artifact-size.png",
        "levels-int5.svg",
        "scores.png",
        "results.csv",
    }
    for path in (tmp_path / "out").glob("*.png"):
        assert path.read_bytes().startswith(PNG) and path.with_suffix(".svg").read_text().rstrip().endswith("</svg>")


def test_the_page_needs_no_other_file(tmp_path):
    page = report(tmp_path / "out", write_run(tmp_path / "a", artifact=True))
    assert not page.all("link") and not page.all("img") and "http" not in page.text and "url(" not in page.text
    assert not any("src" in attributes for _, attributes in page.tags)
    addresses = [one["href"] for one in page.all("a")]
    assert all(address.startswith(("#", "data:text/csv")) for address in addresses)
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {address[1:] for address in addresses if address[0] == "#"} <= anchors
    (csv,) = (urllib.parse.unquote(address.partition(",")[2]) for address in addresses if address[0] != "#")
    assert csv == (tmp_path / "out" / "results.csv").read_text()
    script = " ".join(page.scripts)
    assert "Copyright (c) 2022 Leon Sorokin" in script and "prefers-color-scheme: dark" in script


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_can_be_read(tmp_path):
    (tmp_path / "page.js").write_text(_script())
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)


def test_the_page_draws_the_runs_numbers(tmp_path):
    folder = write_run(tmp_path / "a", artifact=True)
    data, run = report(tmp_path / "out", folder).data, read_history(folder)
    (shown,) = data["runs"]
    for kind, columns in (("train", run.train), ("validation", run.validation)):
        for name, values in columns.items():
            if np.isfinite(values).any():
                np.testing.assert_allclose(shown[kind][name], values, rtol=1e-6)
    assert shown["train"]["step_ms"][0] is None
    np.testing.assert_allclose(shown["train"]["step_ms"][1:], 100, rtol=1e-6)
    assert shown["events"] == {"SWA": 51, "late QAT": 61}
    assert [chart["id"] for chart in data["charts"]] == [
        *("val_bpb", "train_loss", "val_loss", "learning_rate_multiplier", "grad_norm", "step_ms"),
    ]
    (group,) = data["groups"]
    assert group["points"] == [2.0777] and group["half"] is None
    contents = read_contents(run)
    for chart in data["levels"]:
        counts = contents.level_counts[chart["id"].removeprefix("levels_")]
        np.testing.assert_allclose(chart["series"][0]["share"], 100 * counts / counts.sum(), rtol=1e-6)


def test_long_curves_are_thinned_to_means(tmp_path):
    losses = np.random.default_rng(0).normal(3, 1, 3 * 4000 - 1)
    folder = write_run(tmp_path / "a")
    rows = [{"step": step, "train_loss": loss} for step, loss in enumerate(losses.tolist(), start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (shown,) = chart_data([read_history(folder)], [])["runs"]
    expected = [losses[start : start + 3].mean() for start in range(0, len(losses), 3)]
    np.testing.assert_allclose(shown["train"]["train_loss"], expected, rtol=1e-6)
    assert shown["train"]["step"][:2] == [2, 5]


def test_bytes_of_the_original_have_their_own_curve_and_column(tmp_path):
    folder = write_run(tmp_path / "a")
    row = {"step": 70, "val_loss": 3.5, "val_bpb": 2.1234, "original_bpb": 2.2345, "train_time_s": 7.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    page = report(tmp_path / "out", folder)
    assert page.column("results", "of the original text") == ["2.2345"]
    assert "2.2345 over the bytes of the original text" in page.words
    assert [chart["id"] for chart in page.data["charts"]][:2] == ["val_bpb", "original_bpb"]


def test_one_run_reports_into_its_own_folder(tmp_path):
    run = write_run(tmp_path / "a")
    assert main(["report", str(run), "--no-plots"]) == 0
    assert (run / "report" / "index.html").exists()


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / parent / "run") for parent in ("old", "new")]
    page = report(tmp_path / "out", *runs)
    assert page.column("results", "run") == ["old/run", "new/run"] and "The runs have the same settings." in page.words
    assert len(page.data["groups"]) == 2  # the same seed twice is no sample


def test_names_are_text_whatever_is_in_them(tmp_path):
    """Not TeX to matplotlib, which also leaves names with an underscore in front out of its legends, nor emoji."""
    names = ["$x_{", r"\$a$b$", "_hidden", "[red]:smile:", "漢字", "b\udcff"]
    runs = [write_run(tmp_path / name, 0.01 * place) for place, name in enumerate(names, start=1)]
    (plot,) = (plot for plot in history_plots([read_history(run) for run in runs]) if plot.name == "loss-steps")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot.image("png").startswith(PNG)
    figure = matplotlib.figure.Figure()
    plot.draw(figure, LIGHT)
    _, shown = figure.axes[0].get_legend_handles_labels()
    assert [name.strip() for name in shown] == [*names[:-1], "b?"]
    page = report(tmp_path / "out", *runs)
    assert set(names[:-1]) < set(page.words)
    assert [run["name"] for run in page.data["runs"]] == [*names[:-1], "b?"]


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
    report(tmp_path / "out", run)
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
    page = report(tmp_path / "out", tmp_path / "sweep")
    words = " ".join(page.words)
    assert "Best score: 2.3000 bits per byte (quantized, rows, learning rate 0.02, mean of 2 seeds)" in words
    assert page.column("seeds", "Δ") == ["baseline", "+0.1500"]
    assert "learning rate 0.03, seed 1" in words and "2.4100" in words and "2.4500" in words
    runs = read_histories(tmp_path / "sweep")
    assert [place for place, _ in placed(runs)] == [0, 0, 1]
    assert [run.legend for run in runs] == ["learning rate 0.02", "learning rate 0.02", "learning rate 0.03"]


def test_a_run_that_diverged(tmp_path):
    runs = [write_run(tmp_path / "diverged"), write_run(tmp_path / "whole", 0.03)]
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    for row in rows[40:]:
        row |= {name: math.nan for name in ("train_loss", "val_loss", "val_bpb") if name in row}
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report(tmp_path / "out", *runs)
    assert "Best score: 2.1234 bits per byte (last validation, whole)." in page.words
    assert page.data["groups"][0]["mean"] is None and page.data["against"]["0"][1]["difference"] is None
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
    assert main(["report", str(run), "--baseline", "runs/old"]) == 2
    assert f"--baseline runs/old: none of the runs; expected one of {run}" in capsys.readouterr().err
    assert main(["report", str(run), "--watch", "0.5"]) == 2
    assert "--watch 0.5: expected from 1 to 86400 seconds" in capsys.readouterr().err
    for missing in ("matplotlib", "jinja2"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            assert main(["report", str(run)]) == MissingExtraError.exit_code
    assert capsys.readouterr().err.count("pip install 'jgolf[report]'") == 2


def test_a_running_run_is_watched(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a")
    whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(whole[:30]))
    seen = []

    def sleep(seconds: float) -> None:
        seen.append((seconds, Page(run / "report" / "index.html")))
        (run / "metrics.jsonl").write_text("".join(whole))
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("jgolf.report.cli.time.sleep", sleep)
    assert main(["report", str(run), "--watch", "20"]) == 0
    assert [seconds for seconds, _ in seen] == [20, 20]
    assert all({"http-equiv": "refresh", "content": "20"} in page.all("meta") for _, page in seen)
    assert [page.data["runs"][0]["train"]["step"][-1] for _, page in seen] == [29, 70]
    assert not any("http-equiv" in meta for meta in Page(run / "report" / "index.html").all("meta"))


def test_what_vanishes_for_a_while_is_waited_for(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "a")
    page, metrics = run / "report" / "index.html", run / "metrics.jsonl"
    content, pages = metrics.read_bytes(), []

    def sleep(seconds: float) -> None:
        pages.append(page.read_bytes())
        if len(pages) == 1:
            metrics.write_bytes(b"[\n")
        elif len(pages) == 3:
            metrics.write_bytes(content)
        elif len(pages) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("jgolf.report.cli.time.sleep", sleep)
    assert main(["report", str(run), "--watch", "20"]) == 0
    assert pages[0] == pages[1] == pages[2]
    error = capsys.readouterr().err
    assert error.count("the page stays as it was until that can be read") == error.count("metrics.jsonl:1: ") == 1
    metrics.unlink()
    assert main(["report", str(run), "--watch", "20"]) == 2


def test_samples_and_starts_are_shown(tmp_path):
    run = write_run(tmp_path / "a")
    sample = {"prompt": "1 <", "text": "1 < 2 & so on", "temperature": 0.8}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    start = {"date": "2026-11-26T07:00:00+00:00", "command": "train.py x", "commit": "abc", "hardware": "8 × a chip"}
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    page = report(tmp_path / "out", run)
    assert {"1 <", " 2 & so on", "a: temperature 0.8"} <= set(page.words)
    assert page.tables["starts"][1] == ["a", "2026-11-26 07:00:00 UTC", "8 × a chip", "abc", "train.py x"]
    (run / "samples.jsonl").write_text('{"prompt": 1, "text": "x"}\n')
    with pytest.raises(JgolfError, match=r"samples\.jsonl:1: expected an object with the texts prompt, text"):
        read_history(run)


def test_the_leaderboard_is_a_list_of_facts():
    records = leaderboard()
    assert [record.val_bpb for record in records] == sorted(record.val_bpb for record in records)
    assert {record.pull_request: record.val_bpb for record in records}.items() >= {1855: 1.06108, 592: 1.1476}.items()
