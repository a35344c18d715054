"""A short run of the tool that damages files, over the readers that take milliseconds; and whether it sees faults."""

import pytest

from tests.fuzz import campaign
from tests.fuzz.readers import ALL_READERS, FAULTY

QUICK = [reader for reader in ALL_READERS if reader.needs == "numpy" and reader.share == 1.0]


@pytest.mark.parametrize("reader", QUICK, ids=lambda reader: reader.name)
def test_damaged_files_are_refused_or_harmless(tmp_path, reader):
    campaign.make_example(reader, tmp_path)
    trial = campaign.Trial(reader, tmp_path)
    outcomes = [trial.of(seed=1, index=index, raise_errors=True)[0] for index in range(50)]
    assert not set(outcomes) & set(campaign.FAULTS)
    assert len(set(outcomes)) > 1 or reader.checksummed  # the damage is neither too small nor too large
    assert trial.grown_bytes() < campaign.MOST_BYTES


@pytest.mark.slow
def test_every_kind_of_fault_is_counted():
    tally = campaign.run(FAULTY, 24, seed=0)
    assert {"refused", "stack trace", "believed", "killed", "memory", "other"} == set(tally.counts)
    assert tally.counts.total() == 24 and tally.num_faults == len(tally.faults)
