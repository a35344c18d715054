"""Batches of whole documents against the takes of the record's loader."""

import json

import numpy as np
import pytest

from jgolf.data.batches import BatchOrder
from jgolf.data.shards import TokenStream, find_shards, write_shard
from jgolf.errors import DataError
from jgolf.model.context import piece_starts


def cases(golden, folder):
    return json.loads((golden / "pr1855" / folder / "cases.json").read_text())


@pytest.mark.parametrize(
    ("folder", "number"),
    [*(("loader", number) for number in range(5)), *(("loader_edges", number) for number in range(3))],
)
def test_takes_and_pieces(golden, folder, number):
    case = cases(golden, folder)[number]
    expected = np.load(golden / "pr1855" / folder / "batches.npz")
    stream = TokenStream(find_shards(golden / "pr1855" / folder, "train"))
    ranks, run_tokens = case["world_size"], case["tokens_per_take"]
    order = BatchOrder(run_tokens, run_tokens, ranks, case["grad_accum_steps"], take_runs=ranks)
    for take in range(case["takes"]):
        step, micro_step = divmod(take, order.accumulation)
        batch = order.batch(stream, step)
        for rank in range(ranks):
            name = f"case{number}/rank{rank}/take{take}"
            inputs, targets = batch.inputs[micro_step, rank, 0], batch.targets[micro_step, rank, 0]
            np.testing.assert_array_equal(inputs, expected[f"{name}/x"].ravel())
            np.testing.assert_array_equal(targets, expected[f"{name}/y"].ravel())
            starts = np.flatnonzero(piece_starts(inputs[None].astype(np.int32), case["max_doc_len"])[0])
            boundaries = expected[f"{name}/cu_seqlens" if f"{name}/cu_seqlens" in expected else f"{name}/cu"]
            np.testing.assert_array_equal(starts, np.unique(boundaries)[:-1])  # the last is the row's end


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_any_number_of_devices_trains_on_the_same_tokens(golden, devices):
    stream = TokenStream(find_shards(golden / "pr1855" / "loader", "train"))
    order = BatchOrder(20, 20, num_ranks=8, accumulation=1, take_runs=8)
    laid_out = order.for_devices(devices)
    for step in range(7):
        whole, parts = order.batch(stream, step), laid_out.batch(stream, step)
        assert parts.inputs.shape == (8 // devices, devices, 1, 20)
        np.testing.assert_array_equal(parts.inputs.reshape(-1, 20), whole.inputs.reshape(-1, 20))
        np.testing.assert_array_equal(parts.targets.reshape(-1, 20), whole.targets.reshape(-1, 20))


def test_more_devices_than_rows(golden):
    """Rows that cannot be split are spread over the devices with those of the next micro-steps."""
    stream = TokenStream(find_shards(golden / "pr1855" / "loader", "train"))
    order = BatchOrder(20, 20, num_ranks=2, accumulation=4, take_runs=2)
    spread = order.for_devices(4)
    assert (spread.num_ranks, spread.accumulation) == (4, 2)
    for step in range(7):
        whole, parts = order.batch(stream, step), spread.batch(stream, step)
        np.testing.assert_array_equal(parts.inputs.reshape(-1, 20), whole.inputs.reshape(-1, 20))
    assert order.for_devices(16) is None and order.for_devices(3) is None


def test_shards_too_short_for_a_take(tmp_path):
    for number in range(2):
        write_shard(tmp_path / f"a_train_{number}.bin", [7] * 10 + [1] + [7] * 8)
    stream = TokenStream(find_shards(tmp_path, "train"))
    assert BatchOrder(8, 8, 1, 1, take_runs=1).batch(stream, 3).inputs[0, 0, 0].tolist() == [1] + [7] * 7
    with pytest.raises(DataError, match="no shard holds 10 tokens after its first BOS"):
        BatchOrder(9, 9, 1, 1, take_runs=1).batch(stream, 0)
