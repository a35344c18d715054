from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jgolf.cli import main
from jgolf.compare import Sample, further_seeds, welch_test
from jgolf.config import replace, write_json
from tests.conftest import RECIPE

BETTER, WORSE = (1.9000, 1.9012, 1.8991), (1.9101, 1.9120, 1.9093)


def write_run(
    folder: Path,
    sliding: float | None,
    validation: float = 2.0,
    bpb_a_nat: float = 0.6,
    seed: int | None = None,
    tokens: int = 1000,
) -> str:
    folder.mkdir(parents=True)
    seed = int(folder.name, 36) if seed is None else seed
    write_json(replace(RECIPE, "train.seed", seed), folder / "config.json")
    row = {"step": 3, "val_loss": validation, "val_bpb": bpb_a_nat * validation, "train_time_s": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    if sliding is not None:
        (folder / "artifact").mkdir()
        losses = {"": sliding + 0.1, "sliding_": sliding}
        result = {f"{kind}val_loss": loss for kind, loss in losses.items()}
        result |= {f"{kind}val_bpb": bpb_a_nat * loss for kind, loss in losses.items()}
        result |= {"tokens": tokens, "bytes": 2 * tokens}
        (folder / "artifact" / "result.json").write_text(json.dumps(result))
    return str(folder)


def write_side(folder: Path, losses: tuple[float, ...]) -> list[str]:
    return [write_run(folder / str(i), loss) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(("count_a", "count_b"), [(2, 2), (3, 5), (8, 3)])
def test_welch_is_scipys(count_a, count_b):
    rng = np.random.default_rng(count_a)
    a, b = rng.normal(1.90, 0.002, count_a), rng.normal(1.91, 0.004, count_b)
    found = welch_test(Sample(tuple(a)), Sample(tuple(b)), 0.005)
    expected = stats.ttest_ind(b - 0.005, a, equal_var=False, alternative="greater")
    np.testing.assert_allclose(found.statistic, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(found.degrees_of_freedom, expected.df, rtol=1e-9)


@pytest.mark.parametrize("both", [False, True])
def test_further_seeds_give_the_chance_that_is_asked_for(both):
    """By simulation of every loss: with the number it names the test succeeds often enough, with fewer it does not."""
    a, b = (
        Sample((1.900, 1.906, 1.903)),
        Sample((1.911, 1.915, 1.913, 1.910) if both else (1.911, 1.915, 1.913, 1.910) * 4),
    )
    count = further_seeds(a, b, 0.005, 0.01, 0.8, both)
    assert count > 2

    def share_of_records(further: int) -> float:
        rng = np.random.default_rng(1)

        def with_further(sample: Sample, number: int) -> np.ndarray:
            draws = rng.normal(sample.mean, sample.deviation, (20_000, number))
            return np.concatenate([np.broadcast_to(sample.losses, (20_000, len(sample.losses))), draws], axis=1)

        ours, theirs = with_further(a, further), with_further(b, both * further)
        p = stats.ttest_ind(theirs - 0.005, ours, axis=1, equal_var=False, alternative="greater").pvalue
        return float(np.mean(p < 0.01))

    assert share_of_records(count) > 0.79
    assert share_of_records(count - 1) < 0.81


def test_what_is_no_record_needs_a_seed_at_least():
    a, b = Sample((1.9000, 1.9012, 1.8991)), Sample((1.9070, 1.9094, 1.9067))
    assert welch_test(a, b, 0.005).p_value > 0.01
    assert further_seeds(a, b, 0.005, 0.01, 0.01, both=True) == 1


def test_no_seeds_help_a_difference_below_the_margin():
    assert further_seeds(Sample((1.900, 1.901)), Sample((1.904, 1.9045)), 0.005, 0.01, 0.8) is None


def test_record(tmp_path, capsys):
    a, b = write_side(tmp_path / "a", BETTER), write_side(tmp_path / "b", WORSE)
    assert main(["compare", *a, "--", *b]) == 0
    shown = capsys.readouterr().out
    expected = stats.ttest_ind(np.array(WORSE) - 0.005, BETTER, equal_var=False, alternative="greater")
    assert f"p = {expected.pvalue:.2g}" in shown and "\na record" in shown
    assert f"{np.mean(BETTER):.5f}" in shown and f"{np.std(WORSE, ddof=1):.5f}" in shown


def test_no_record_names_the_seeds_that_are_missing(tmp_path, capsys):
    a, b = write_side(tmp_path / "a", BETTER), write_side(tmp_path / "b", WORSE)
    assert main(["compare", "--significance", "1e-4", *a, "--", *b]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    both = further_seeds(Sample(BETTER), Sample(WORSE), 0.005, 1e-4, 0.8, both=True)
    assert further_seeds(Sample(BETTER), Sample(WORSE), 0.005, 1e-4, 0.8) is None  # three runs of B are too few
    assert "not a record" in shown and f"no number up to 1000 of A alone, or {both} of each" in shown


def test_runs_of_one_seed_are_no_sample(tmp_path, capsys):
    a = [write_run(tmp_path / f"a{i}", loss, seed=7) for i, loss in enumerate(BETTER)]
    assert main(["compare", *a, "--", *write_side(tmp_path / "b", WORSE)]) == 0
    assert "warning: A has several runs of seed 7" in capsys.readouterr().out


def test_worse_is_no_record(tmp_path, capsys):
    a, b = write_side(tmp_path / "a", BETTER), write_side(tmp_path / "b", WORSE)
    assert main(["compare", *b, "--", *a]) == 1
    assert "no number of further seeds helps" in capsys.readouterr().out


def test_options_may_follow_the_second_side(tmp_path):
    a, b = write_side(tmp_path / "a", BETTER), write_side(tmp_path / "b", WORSE)
    assert main(["compare", *a, "--", *b, "--margin", "0.02"]) == 1


def test_runs_without_artifacts_compare_by_their_last_validation(tmp_path, capsys):
    a = [write_run(tmp_path / f"a{i}", None, loss) for i, loss in enumerate(BETTER)]
    b = [write_run(tmp_path / f"b{i}", None, loss) for i, loss in enumerate(WORSE)]
    assert main(["compare", *a, "--", *b]) == 0
    assert "last validation during training" in capsys.readouterr().out


def test_logs_of_the_reference_compare_too(tmp_path):
    def write_log(name: str, loss: float) -> str:
        path = tmp_path / name
        path.write_text(
            "step:20/20 val_loss:2.1000 val_bpb:1.2000 train_time:1000ms step_avg:50.00ms\n"
            f"final_int6_sliding_window val_loss:{loss:.4f} val_bpb:{0.6 * loss:.4f} stride:64 eval_time:10ms\n"
            f"final_int6_sliding_window_exact val_loss:{loss:.8f} val_bpb:{0.6 * loss:.8f}\n"
        )
        return str(path)

    a = [write_log(f"a{i}.txt", loss) for i, loss in enumerate(BETTER)]
    assert main(["compare", *a, "--", *write_side(tmp_path / "b", WORSE)]) == 0


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda t: [*write_side(t / "a", BETTER[:1]), "--", *write_side(t / "b", WORSE)],
            "found 1 run in A and 3 in B",
        ),
        (lambda t: write_side(t / "a", BETTER), "found 3 runs in A and 0 in B"),
        (lambda t: [*write_side(t / "a", BETTER), "--", str(t / "b"), str(t / "c")], "cannot be read"),
        (lambda t: [*(a := write_side(t / "a", BETTER)), "--", *a[:2]], "named twice"),
        (lambda t: [*write_side(t / "a", (1.0, 1.0)), "--", *write_side(t / "b", (2.0, 2.0))], "do not vary"),
        (
            lambda t: [*write_side(t / "a", BETTER), "--", write_run(t / "b", 2.0), write_run(t / "c", None)],
            "no sliding-window score of the artifact found; export them",
        ),
        (
            lambda t: [*write_side(t / "a", BETTER), "--", write_run(t / "b", 2.0), write_run(t / "c", 2.1, 2.0, 0.61)],
            "not scored on the same text",
        ),
        (
            lambda t: [*write_side(t / "a", BETTER), "--", write_run(t / "b", 2.0), write_run(t / "c", 2.1, tokens=7)],
            "7 tokens",
        ),
        (
            lambda t: [
                "--score",
                "validation",
                *write_side(t / "a", BETTER),
                "--",
                write_run(t / "b", 2.0),
                write_run(t / "c", 2.1, 2.0, 0.6004),
            ],
            "not scored on the same text",
        ),
    ],
)
def test_errors(make, expected, tmp_path, capsys):
    assert main(["compare", *make(tmp_path)]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
