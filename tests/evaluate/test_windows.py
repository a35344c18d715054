import json

import numpy as np
import pytest

from jgolf.data.text import Text
from jgolf.errors import DataError
from jgolf.evaluate.score import UNSCORED, summarize
from jgolf.evaluate.windows import document_windows, packed_windows, sliding_windows, standard_windows
from tests.conftest import GOLDEN


def scored(windows):
    """How many times each target is scored."""
    end = int((windows.start + windows.length).max())
    counts = np.zeros(end, int)
    for start, length, first in zip(*windows, strict=True):
        counts[start + first : start + length] += 1
    return counts


def test_standard_rows_drop_the_remainder():
    windows = standard_windows(1 + 3 * 8 + 5, 8)
    assert windows.start.tolist() == [0, 8, 16]
    assert (scored(windows) == 1).all()
    with pytest.raises(DataError, match="found 8, expected at least 9"):
        standard_windows(8, 8)


@pytest.mark.parametrize("num_targets", [1, 5, 15, 16, 17, 19, 20, 21, 24, 63, 64, 65, 200])
@pytest.mark.parametrize("stride", [1, 3, 4, 16])
def test_sliding_scores_every_target_once(num_targets, stride):
    windows = sliding_windows(num_targets + 1, 16, stride)
    counts = scored(windows)
    assert len(counts) == num_targets
    assert (counts == 1).all()
    assert (windows.start % stride == 0).all()
    # All but the first window's targets have at least seq_len − stride tokens of context.
    assert (windows.first_scored[1:] == 16 - stride).all()


@pytest.mark.parametrize(("num_targets", "stride"), [(200, 64), (128, 64), (130, 32), (90, 64)])
def test_reference_windows_follow_the_reference_s_loop(num_targets, stride):
    expected = []
    for start in range(0, num_targets, stride):
        end = min(start + 128, num_targets)
        expected.append((start, end - start, 0 if start == 0 else max(end - start - stride, 0)))
    windows = sliding_windows(num_targets + 1, 128, stride, reference_windows=True)
    assert list(zip(*(field.tolist() for field in windows), strict=True)) == expected


def test_bad_strides_and_too_few_tokens():
    with pytest.raises(DataError, match="stride 0"):
        sliding_windows(100, 16, 0)
    with pytest.raises(DataError, match="stride 17"):
        sliding_windows(100, 16, 17)
    with pytest.raises(DataError, match="found 1"):
        sliding_windows(1, 16, 4)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_within_documents(stride):
    """Every target once; no context of another document; as long a context as the stride allows."""
    rng = np.random.default_rng(stride)
    starts = np.concatenate([[0], np.sort(rng.choice(np.arange(1, 300), 40, replace=False))])
    windows = document_windows(starts, 301, 8, stride)
    assert (scored(windows) == 1).all() and len(scored(windows)) == 300
    document = np.searchsorted(starts, np.arange(300), side="right")
    for start, length, first in zip(*windows, strict=True):
        assert len(set(document[start : start + length])) == 1
        assert first == 0 or first == 8 - stride
        assert first == 0 or start not in starts


def test_one_document_of_windows_slides():
    expected = sliding_windows(201, 16, 4)
    for found, wanted in zip(document_windows(np.array([0]), 201, 16, 4), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_packed_rows_are_cut_where_the_reference_cuts_them():
    golden = json.loads((GOLDEN / "packed_validation.json").read_text())
    arrays = np.load(GOLDEN / "packed_validation.npz")
    text = Text.of(arrays["tokens"], 1, arrays["sidecar"])
    assert text.starts.tolist() == golden["documents"]
    seq_len, rows = golden["seq_len"], golden["rows_per_batch"]
    text = text.first((len(text.tokens) - 1) // seq_len * seq_len + 1)
    windows = packed_windows(text.starts, len(text.tokens), seq_len, rows)
    packed = windows.start // (rows * seq_len)
    for row, segments in enumerate(golden["segments"]):
        own = windows[packed == row]
        assert [*(own.start % (rows * seq_len)), rows * seq_len] == segments
        assert int(own.length.sum()) == rows * seq_len and not own.first_scored.any()


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_packed_rows_give_the_reference_s_bits_per_byte(num_ranks):
    """From the reference's own scores of one process, for two as well where both score the same targets."""
    golden = json.loads((GOLDEN / "packed_validation.json").read_text())
    arrays = np.load(GOLDEN / "packed_validation.npz")
    text = Text.of(arrays["tokens"], 1, arrays["sidecar"]).first(1025)
    nats = np.full(len(text.tokens) - 1, UNSCORED)
    for rank in range(num_ranks):
        windows = packed_windows(text.starts, len(text.tokens), 64, 3, rank, num_ranks)
        span = slice(windows.start[0], windows.start[-1] + windows.length[-1])
        nats[span] = np.append(arrays["nll"], np.full(64, np.float32(4)))[span]
    found, expected = summarize(nats, text.target_bytes), golden[f"world{num_ranks}"]
    assert (found.tokens, found.bytes) == (expected["tokens"], expected["bytes"])
    if num_ranks == 1:
        assert found.val_loss == pytest.approx(expected["val_loss"], rel=1e-7)
        assert found.val_bpb == pytest.approx(expected["val_bpb"], rel=1e-7)


def test_too_few_tokens_for_packed_rows():
    with pytest.raises(DataError, match="expected at least 385, one packed row of 3 × 64 for each of 2"):
        packed_windows(np.array([0]), 300, 64, 3, 0, 2)
