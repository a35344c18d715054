"""`jgolf report RUN…`: a page, plots and tables of runs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from jgolf import files
from jgolf.errors import JgolfError
from jgolf.history import SCORE_KINDS, History, read_histories
from jgolf.progress import counted, progress_bar
from jgolf.report.artifacts import Contents, artifact_plots
from jgolf.report.charts import chart_data
from jgolf.report.curves import history_plots
from jgolf.report.groups import (
    BASELINE,
    Group,
    all_against,
    compared_kind,
    default_baseline,
    groups_of,
    with_groups,
)
from jgolf.report.page import Sample, Section, download, page, require_jinja
from jgolf.report.plots import Plot, placed, require_matplotlib
from jgolf.report.seeds import groups_plots
from jgolf.report.sizes import read_contents
from jgolf.report.tables import (
    csv_text,
    leaderboard_table,
    results_table,
    seeds_table,
    settings_tables,
    sizes_table,
    starts_table,
)
from jgolf.report.verdict import cards, verdict

PAGE_FILE = "index.html"
CSV_FILE = "results.csv"
MOST_SAMPLES = 3
"""Of each run, the newest."""
CURVES = (
    "Strong lines are training losses smoothed over a part of the run, faint ones as they were logged; dots are "
    "validations. Drag to zoom all charts, click twice for the whole run. The last tenth shows what decides: "
    "differences of thousandths. Step 0 is the untrained model."
)


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")],
    out: Path | None = None,
    baseline: Path | None = None,
    watch: float = 0.0,
    plots: bool = True,
) -> None:
    """Show runs on one page: verdict, scores, curves, sizes, and the settings in which they differ.

    Example: jgolf report runs/new runs/old reference_train.log --out report

    Writes DIR/index.html, which needs no other file, DIR/results.csv, and each plot as PNG and SVG for papers.

    Args:
      runs: Run directories, sweeps' folders, metrics.jsonl files, or logs of the challenge, in any mixture.
      out: Folder DIR to write to; RUN/report for one run directory, else ./report.
      baseline: One of the runs: the others are compared with it and those of its recipe; by default the first. The
        page can choose another.
      watch: Seconds after which the page is written anew, until Ctrl-C; the browser follows. 0 writes it once.
      plots: Write the PNG and SVG files too.
    """
    if not runs:
        raise JgolfError("no run was named; expected run directories or training logs, such as: jgolf report runs/demo")
    if not (watch == 0 or 1 <= watch <= 86_400):
        raise JgolfError(f"--watch {watch:g}: expected from 1 to 86400 seconds, or 0 to write the page once")
    require_jinja()
    if plots and not watch:
        require_matplotlib()
    out = out or (runs[0] / "report" if len(runs) == 1 and runs[0].is_dir() else Path("report"))
    if watch:
        _watch(runs, out, baseline, watch)
        return
    found = _read(runs)
    _write_page(found, out, _place_of(baseline, found))
    drawn = _draw(found, out) if plots else 0
    told = f", {counted(drawn, 'plot')} as PNG and SVG" if plots else ""
    print(f"{out / PAGE_FILE}: {counted(len(found), 'run')}{told}")


def _watch(paths: Sequence[Path], out: Path, baseline: Path | None, every_s: float) -> None:
    """Writes the page again and again; the last one does not load itself again.

    What cannot be read after the first time, as files that are being copied anew, leaves the page as it is.
    """

    def write(refresh_s: int = 0) -> None:
        found = _read(paths)
        _write_page(found, out, _place_of(baseline, found), refresh_s)

    refresh_s, told = math.ceil(every_s), ""
    try:
        write(refresh_s)
        print(f"{out / PAGE_FILE}: written anew every {every_s:g} s; Ctrl-C ends that", flush=True)
        while True:
            time.sleep(every_s)
            try:
                write(refresh_s)
                told = ""
            except JgolfError as error:
                if str(error) != told:
                    told = str(error)
                    print(f"{told}; the page stays as it was until that can be read", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        write()


def _read(paths: Sequence[Path]) -> list[History]:
    return with_groups(_with_distinct_names([run for path in paths for run in read_histories(path)]))


def _draw(runs: Sequence[History], out: Path) -> int:
    """Writes every plot; returns their number."""
    groups = groups_of(runs, compared_kind(runs))
    plots: list[Plot] = [*history_plots(runs), *groups_plots(groups), *artifact_plots(_contents(runs))]
    for plot in progress_bar("drawing")(plots, len(plots)):
        for form in ("png", "svg"):
            files.write_bytes(out / f"{plot.name}.{form}", plot.image(form))
    return len(plots)


def _contents(runs: Sequence[History]) -> list[Contents]:
    return [Contents(place, run, found) for place, run in placed(runs) if (found := read_contents(run))]


def _place_of(baseline: Path | None, runs: Sequence[History]) -> int | None:
    """Place of the group that the baseline is in; None where none is named.

    Raises:
      JgolfError: it is none of the runs.
    """
    if baseline is None:
        return None
    names = list(dict.fromkeys(run.legend for run in runs))
    for run in runs:
        if baseline.resolve() == run.path.resolve() or str(baseline) in (run.name, run.legend):
            return names.index(run.legend)
    listed = ", ".join(str(run.path) for run in runs[:5])
    raise JgolfError(f"--baseline {baseline}: none of the runs; expected one of {listed}{', …' * (len(runs) > 5)}")


def _write_page(runs: Sequence[History], out: Path, baseline: int | None, refresh_s: int = 0) -> None:
    """Writes the page and the table of results."""
    for name, text in zip((PAGE_FILE, CSV_FILE), page_and_csv(runs, baseline, refresh_s), strict=True):
        files.write_text(out / name, text)


def page_and_csv(runs: Sequence[History], baseline: int | None = None, refresh_s: int = 0) -> tuple[str, str]:
    """The page of runs, and the table of their results as CSV.

    Args:
      runs: grouped, as `with_groups` does.
      baseline: place of the group that the others are compared with at first; None for the usual one.
      refresh_s: seconds after which a browser loads the page again; 0 for never.

    Raises:
      ArtifactError: an artifact of a run is damaged.
    """
    kind = compared_kind(runs)
    groups = groups_of(runs, kind)
    baseline = default_baseline(groups) if baseline is None else baseline
    against = all_against(groups, baseline)
    place_of = {group.name: place for place, group in enumerate(groups)}
    differences = against[baseline]
    results = results_table(runs, kind, [differences[place_of[run.legend]] for run in runs])
    contents = _contents(runs)
    sections = [
        Section("Verdict", verdict(groups, kind), cards=cards(groups, baseline, differences)),
        Section("Results", tables=[results], csv=download(CSV_FILE, results)),
    ]
    if len(groups) < len(runs):
        sections[-1] = replace(sections[-1], tables=[results, seeds_table(groups, differences)])
    if len(groups) > 1 and kind:
        text = f"Bits per byte, {SCORE_KINDS[kind]}. Strokes are means, circles seeds, bars 95 % intervals of the mean."
        forests = [("scores", "Scores"), ("differences", "Difference from the baseline; lower is better")]
        sections.append(Section("Comparison", text, forests=forests))
    sections.append(Section("Training", CURVES, has_curves=True))
    if contents:
        text = "Bytes that each kind of tensor takes in the artifact, and how often each quantized level occurs."
        sections.append(Section("Artifact", text, tables=[sizes_table(contents)], has_levels=True))
    if any(run.samples for run in runs):
        sections.append(Section("Samples", samples=_samples(runs)))
    if started := starts_table(runs):
        sections.append(Section("Starts", tables=[started]))
    text, tables = settings_tables(runs)
    sections += [Section("Settings", text, tables=tables), Section("Leaderboard", tables=[leaderboard_table()])]
    data = chart_data(runs, contents)
    for run, row in zip(runs, data["runs"], strict=True):
        row["group"] = place_of[run.legend]
    data |= {"groups": [_group_data(place, group) for place, group in enumerate(groups)], "baseline": baseline}
    data["baseline_told"] = BASELINE
    data["against"] = {place: [one._asdict() for one in found] for place, found in against.items()}
    title = f"Run {runs[0].name}" if len(runs) == 1 else counted(len(runs), "run")
    listed = ", ".join(group.name for group in groups)
    subtitle = f"{listed}; as of {time.strftime('%H:%M:%S')}" if refresh_s else listed
    baselines = [(groups[place].name, place) for place in against]
    text = page(f"jgolf report: {title}", subtitle, sections, baselines, data, refresh_s)
    return text, csv_text(results)


def _group_data(place: int, group: Group) -> dict[str, Any]:
    return {"name": group.name, "place": place, "mean": group.mean, "half": group.half, "points": group.bpb.tolist()}


def _with_distinct_names(histories: Sequence[History]) -> list[History]:
    """Runs of the same name are told apart by the folder they lie in."""
    names = [run.name for run in histories]
    longer = [
        run.name if names.count(run.name) == 1 else f"{run.path.resolve().parent.name}/{run.name}" for run in histories
    ]
    named = [name if longer.count(name) == 1 else str(run.path) for name, run in zip(longer, histories, strict=True)]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise JgolfError(f"{twice}: named twice; expected each run once")
    return [replace(run, name=name) for run, name in zip(histories, named, strict=True)]


def _samples(runs: Sequence[History]) -> list[Sample]:
    return [_sample(run, one) for run in runs for one in run.samples[-MOST_SAMPLES:]]


def _sample(run: History, one: dict[str, Any]) -> Sample:
    settings = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in one.items() if name not in ("prompt", "text")
    )
    prompt = one["prompt"] if one["text"].startswith(one["prompt"]) else ""
    return Sample(f"{run.name}: {settings}", prompt, one["text"][len(prompt) :])
