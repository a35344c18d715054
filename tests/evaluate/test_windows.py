import numpy as np
import pytest

from jgolf.errors import DataError
from jgolf.evaluate.windows import sliding_windows, standard_windows


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
