"""What quantization reads of the training text: all of it, or runs from all over it."""

import dataclasses

import numpy as np

from jgolf.config import DataConfig
from jgolf.data.shards import write_shard
from jgolf.quantize import calibration
from tests.conftest import RECIPE

CONFIG = dataclasses.replace(
    RECIPE,
    model=dataclasses.replace(RECIPE.model, vocab_size=1000),
    train=dataclasses.replace(RECIPE.train, seq_len=10),
)


def config_of(tmp_path, *lengths):
    """A run over shards of so many tokens, numbered from 0 on over all of them."""
    ends = np.cumsum(lengths)
    for number, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        write_shard(tmp_path / f"some_train_{number:06}.bin", np.arange(end - length, end, dtype=np.uint16))
    return dataclasses.replace(CONFIG, data=DataConfig(dir=str(tmp_path)))


def test_a_short_text_is_counted_whole_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "COUNTED_RUN", 64)
    runs = calibration.counted_runs(config_of(tmp_path, 100, 130))
    np.testing.assert_array_equal(np.concatenate(runs), np.arange(230))
    assert {len(run) for run in runs[:-1]} == {64}


def test_of_a_long_text_runs_from_all_over_it_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "COUNTED_RUN", 16)
    monkeypatch.setattr(calibration, "COUNTED_RUNS", 5)
    runs = calibration.counted_runs(config_of(tmp_path, 300, 396))
    assert [len(run) for run in runs] == [16] * 5
    np.testing.assert_array_equal([run[0] for run in runs], [0, 170, 340, 510, 680])
    np.testing.assert_array_equal(runs[1], np.arange(170, 186))


def test_sequences_are_from_all_over_the_text(tmp_path):
    rows = calibration.calibration_rows(config_of(tmp_path, 300, 310), 40)
    np.testing.assert_array_equal(rows, np.arange(10) + np.array([[0], [200], [400], [600]]))
    assert len(calibration.calibration_rows(config_of(tmp_path, 300, 310), 40, wanted=70)) == 7
