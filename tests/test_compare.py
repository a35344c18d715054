from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jgolf.cli import main
from jgolf.compare import Sample, further_pairs, further_seeds, paired_test, welch_test
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
    num_bytes: int | None = None,
    original: int | None = None,
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
        result |= {"tokens": tokens, "bytes": 2 * tokens if num_bytes is None else num_bytes}
        result["original_bytes"] = original
        (folder / "artifact" / "result.json").write_text(json.dumps(result))
    return str(folder)


def write_side(folder: Path, losses: tuple[float, ...], first_seed: int = 0, **of_each) -> list[str]:
    return [write_run(folder / str(i), loss, seed=first_seed + i, **of_each) for i, loss in enumerate(losses)]


def write_sides(folder: Path, first_seed_b: int = 10) -> tuple[list[str], list[str]]:
    """BETTER and WORSE, of different seeds unless it is said."""
    return write_side(folder / "a", BETTER), write_side(folder / "b", WORSE, first_seed_b)


@pytest.mark.parametrize(("count_a", "count_b"), [(2, 2), (3, 5), (8, 3)])
def test_welch_is_scipys(count_a, count_b):
    rng = np.random.default_rng(count_a)
    a, b = rng.normal(1.90, 0.002, count_a), rng.normal(1.91, 0.004, count_b)
    found = welch_test(Sample(tuple(a)), Sample(tuple(b)), 0.005)
    expected = stats.ttest_ind(b - 0.005, a, equal_var=False, alternative="greater")
    np.testing.assert_allclose(found.statistic, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(found.degrees_of_freedom, expected.df, rtol=1e-9)
    squares = b.var(ddof=1) / count_b, a.var(ddof=1) / count_a  # of the means' standard errors
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / (count_b - 1) + squares[1] ** 2 / (count_a - 1))
    np.testing.assert_allclose(found.statistic, (b.mean() - a.mean() - 0.005) / sum(squares) ** 0.5, rtol=1e-9)
    np.testing.assert_allclose(found.degrees_of_freedom, freedom, rtol=1e-9)
    interval = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(found.interval, (interval.low, interval.high), rtol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_paired_test_is_scipys(count):
    rng = np.random.default_rng(count)
    noise = rng.normal(0, 0.01, count)  # of the seed, shared by both sides
    a, b = 1.90 + noise + rng.normal(0, 0.001, count), 1.908 + noise + rng.normal(0, 0.001, count)
    found = paired_test(Sample(tuple(a)), Sample(tuple(b)), 0.005)
    expected = stats.ttest_rel(b - 0.005, a, alternative="greater")
    np.testing.assert_allclose(found.statistic, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-9)
    assert found.degrees_of_freedom == expected.df == count - 1
    error = (b - a).std(ddof=1) / count**0.5
    np.testing.assert_allclose(found.statistic, ((b - a).mean() - 0.005) / error, rtol=1e-9)
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    np.testing.assert_allclose(found.interval, (interval.low, interval.high), rtol=1e-9)


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


def test_further_pairs_give_the_chance_that_is_asked_for():
    """By simulation of every difference, as above."""
    a, b = (1.900, 1.906, 1.903, 1.909), (1.908, 1.911, 1.915, 1.914)
    count = further_pairs(Sample(a), Sample(b), 0.005, 0.01, 0.8)
    known = np.subtract(b, a)
    assert count > 2

    def share_of_records(further: int) -> float:
        draws = np.random.default_rng(1).normal(known.mean(), known.std(ddof=1), (20_000, further))
        differences = np.concatenate([np.broadcast_to(known, (20_000, len(known))), draws], axis=1)
        return float(np.mean(stats.ttest_1samp(differences, 0.005, axis=1, alternative="greater").pvalue < 0.01))

    assert share_of_records(count) > 0.79
    assert share_of_records(count - 1) < 0.81


def test_a_side_that_does_not_vary_is_tested_without_a_warning(recwarn):
    """Then the noise is the other side's, whose degrees of freedom remain."""
    found = welch_test(Sample((1.9, 1.9, 1.9)), Sample(WORSE), 0.005)
    error = np.std(WORSE, ddof=1) / 3**0.5
    np.testing.assert_allclose(found.statistic, (np.mean(WORSE) - 1.9 - 0.005) / error, rtol=1e-9)
    assert found.degrees_of_freedom == pytest.approx(2) and not recwarn.list


def test_what_is_no_record_needs_a_seed_at_least():
    a, b = Sample((1.9000, 1.9012, 1.8991)), Sample((1.9070, 1.9094, 1.9067))
    assert welch_test(a, b, 0.005).p_value > 0.01
    assert further_seeds(a, b, 0.005, 0.01, 0.01, both=True) == 1


def test_no_seeds_help_a_difference_below_the_margin():
    assert further_seeds(Sample((1.900, 1.901)), Sample((1.904, 1.9045)), 0.005, 0.01, 0.8) is None


def test_record(tmp_path, capsys):
    a, b = write_sides(tmp_path)
    assert main(["compare", *a, "--", *b]) == 0
    shown = capsys.readouterr().out
    expected = stats.ttest_ind(np.array(WORSE) - 0.005, BETTER, equal_var=False, alternative="greater")
    assert f"p = {expected.pvalue:.2g}\n" in shown and "\na record" in shown and "Welch's t" in shown
    assert f"{np.mean(BETTER):.5f}" in shown and f"{np.std(WORSE, ddof=1):.5f}" in shown
    interval = stats.ttest_ind(WORSE, BETTER, equal_var=False).confidence_interval(0.95)
    assert f"95% interval of how much lower A is: {interval.low:.5f} to {interval.high:.5f} nats" in shown


def test_runs_of_the_same_seeds_are_compared_in_pairs(tmp_path, capsys):
    """Whatever their order."""
    a, b = write_sides(tmp_path, first_seed_b=0)
    assert main(["compare", *a, "--", b[2], b[0], b[1]]) == 0
    shown = capsys.readouterr().out
    expected = stats.ttest_rel(np.array(WORSE) - 0.005, BETTER, alternative="greater")
    assert f"p = {expected.pvalue:.2g}\n" in shown and f"paired t = {expected.statistic:.3f}" in shown
    assert main(["compare", *a, "--", *b, "--significance", "1e-5"]) == 1
    pairs = further_pairs(Sample(BETTER), Sample(WORSE), 0.005, 1e-5, 0.8)
    assert f"{pairs} of each, the same on both sides" in " ".join(capsys.readouterr().out.split())


def test_no_record_names_the_seeds_that_are_missing(tmp_path, capsys):
    a, b = write_sides(tmp_path)
    assert main(["compare", "--significance", "1e-4", *a, "--", *b]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    both = further_seeds(Sample(BETTER), Sample(WORSE), 0.005, 1e-4, 0.8, both=True)
    assert further_seeds(Sample(BETTER), Sample(WORSE), 0.005, 1e-4, 0.8) is None  # three runs of B are too few
    assert "not a record" in shown and f"no number up to 1000 of A alone, or {both} of each" in shown


# --- different tokenizers ------------------------------------------------------------------------

TEXT_BYTES = 151_100_000
PIECES, CASE_CODED = 62_021_845, 47_851_520
"""Tokens of one text by two tokenizers."""


def write_tokenized(
    folder: Path, bpbs: tuple[float, ...], tokens: int, num_bytes: int = TEXT_BYTES, **more
) -> list[str]:
    """Runs of these sliding bits per byte, whose nats a token are what they are with so many tokens."""
    nats_each = np.log(2) * num_bytes / tokens
    losses = tuple(bpb * nats_each for bpb in bpbs)
    return write_side(folder, losses, bpb_a_nat=1 / nats_each, tokens=tokens, num_bytes=num_bytes, **more)


@pytest.mark.parametrize("margin", [0.005, 0.0065])
def test_other_tokens_of_the_same_text_are_compared_in_bits_per_byte(margin, tmp_path, capsys):
    """SciPy's test of the bits per byte, the margin in bits per byte by B's tokens. A's nats a token are higher."""
    better, worse = (1.0605, 1.0608, 1.0603), (1.0640, 1.0638, 1.0642)
    a = write_tokenized(tmp_path / "a", better, CASE_CODED)
    b = write_tokenized(tmp_path / "b", worse, PIECES, first_seed=5)
    bits = margin / np.log(2) * PIECES / TEXT_BYTES
    expected = stats.ttest_ind(np.array(worse) - bits, better, equal_var=False, alternative="greater")
    is_record = expected.pvalue < 0.01
    assert main(["compare", "--margin", str(margin), *a, "--", *b]) == (0 if is_record else 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"p = {expected.pvalue:.2g} " in shown and f"{margin:g} nats are {bits:.5f} bits per byte" in shown
    difference = np.mean(worse) - np.mean(better)
    nats = difference * np.log(2) * TEXT_BYTES / PIECES
    assert f"A is {difference:.5f} bits per byte, {nats:.5f} nats a token of B's, lower than B" in shown
    assert "nats a token do not compare" in shown and f"{np.std(better, ddof=1):.5f}" in shown


def test_other_tokens_are_compared_in_pairs_too(tmp_path, capsys):
    better, worse = (1.0605, 1.0608, 1.0603), (1.0638, 1.0642, 1.0637)
    a, b = write_tokenized(tmp_path / "a", better, CASE_CODED), write_tokenized(tmp_path / "b", worse, PIECES)
    main(["compare", *a, "--", *b])
    bits = 0.005 / np.log(2) * PIECES / TEXT_BYTES
    expected = stats.ttest_rel(np.array(worse) - bits, better, alternative="greater")
    assert f"p = {expected.pvalue:.2g}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("counts", "code"), [((160_000_000, 160_000_000), 0), ((160_000_000, 160_000_001), 2)])
def test_the_original_s_bytes_decide_where_they_are_counted(counts, code, tmp_path, capsys):
    """B's tables count other bytes than A's sidecars, so that the runs' own bits per byte do not compare."""
    better, worse = (1.0605, 1.0608, 1.0603), (1.20, 1.21, 1.22)
    a = write_tokenized(tmp_path / "a", better, CASE_CODED, counts[0], original=counts[0])
    b = write_tokenized(tmp_path / "b", worse, PIECES, TEXT_BYTES, first_seed=5, original=counts[1])
    words = ["compare", *a, "--", *b, "--significance", "0.5", "--margin", "0.001"]
    assert main(words) == code
    shown = " ".join("".join(capsys.readouterr()).split())
    if code:
        assert "160,000,001 of the original text" in shown and "counted for every run" in shown
        return
    original = np.array(worse) * TEXT_BYTES / 160_000_000
    expected = stats.ttest_ind(
        original - 0.001 / np.log(2) * PIECES / 160_000_000, better, equal_var=False, alternative="greater"
    )
    assert f"p = {expected.pvalue:.2g} " in shown and f"{original.mean():.5f}" in shown
    assert "the same 160,000,000 bytes of the original text" in shown


def test_rows_of_other_tokens_leave_out_other_bytes(tmp_path, capsys):
    """The standard score drops what fills no row: it compares where the bytes that were scored are the same."""
    a = write_tokenized(tmp_path / "a", (1.0605, 1.0608, 1.0603), CASE_CODED)
    b = write_tokenized(tmp_path / "b", (1.0640, 1.0638, 1.0642), PIECES)
    words = ["compare", "--score", "standard", *a, "--", *b]
    assert main(words) == 2
    assert "compare the sliding scores" in " ".join(capsys.readouterr().err.split())
    for bytes_b, code in ((TEXT_BYTES - 999, 2), (TEXT_BYTES, 0)):
        for paths, tokens, num_bytes in ((a, CASE_CODED, TEXT_BYTES), (b, PIECES, bytes_b)):
            for path in paths:
                file = Path(path) / "artifact" / "result.json"
                result = json.loads(file.read_text()) | {"standard_tokens": tokens, "standard_bytes": num_bytes}
                file.write_text(json.dumps(result))
        assert main(words) == code


def test_scores_with_test_time_training_come_first(tmp_path, capsys):
    a, b = write_sides(tmp_path)
    for path, loss in zip([*a, *b], [*WORSE, *BETTER], strict=True):
        file = Path(path) / "artifact" / "result.json"
        adapted = {"adapted_val_loss": loss, "adapted_val_bpb": 0.6 * loss}
        file.write_text(json.dumps(json.loads(file.read_text()) | adapted))
    assert main(["compare", *a, "--", *b]) == 1
    assert "score of the artifact with test-time training" in capsys.readouterr().out
    assert main(["compare", "--score", "sliding", *a, "--", *b]) == 0


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


def test_what_is_a_run_is_told_by_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_side(Path("a"), BETTER)
    write_side(Path("b"), WORSE)
    Path("b/2").rename("sliding")  # a run that is called as the value of an option is
    Path("b/1").rename("0.001")
    a = ["a/0", "a/1", "a/2"]
    assert main(["compare", "--margin", "0.001", *a, "--", "b/0", "0.001", "sliding", "--score", "sliding"]) == 0
    assert main(["compare", "--score", "sliding", *a, "--", "b/0", "sliding", "0.001", "--margin", "0.001"]) == 0


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
        (lambda t: [*write_side(t / "a", (1.0, 1.0)), "--", *write_side(t / "b", (2.0, 2.0), 5)], "do not vary on"),
        (lambda t: [*write_side(t / "a", (1.0, 1.1)), "--", *write_side(t / "b", (2.0, 2.1))], "do not vary from seed"),
        (
            lambda t: [
                *write_tokenized(t / "a", (1.06, 1.07), CASE_CODED),
                "--",
                *write_tokenized(t / "b", (1.06, 1.07), PIECES, TEXT_BYTES - 1),
            ],
            "62,021,845 tokens of 151,099,999 bytes",
        ),
        (
            lambda t: [
                *write_tokenized(t / "a", (1.06, 1.07), CASE_CODED),
                *write_tokenized(t / "c", (1.05,), PIECES),
                "--",
                *write_tokenized(t / "b", (1.06, 1.07), PIECES),
            ],
            "A has runs of different tokenizers",
        ),
        (
            lambda t: [
                *(write_run(t / "a" / str(i), 1.9 + i / 100, tokens=7, num_bytes=0) for i in range(2)),
                "--",
                *(write_run(t / "b" / str(i), 2.0 + i / 100, bpb_a_nat=0.61, tokens=0, num_bytes=0) for i in range(2)),
            ],
            "scored is not known",
        ),
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
