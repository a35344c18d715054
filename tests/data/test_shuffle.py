"""Documents in another order with every pass, against plain Python."""

import numpy as np
import pytest

from jgolf import config as configs
from jgolf.data.batches import BatchOrder
from jgolf.data.run_data import training_stream
from jgolf.data.shards import BOS_ID, TokenStream, write_shard
from jgolf.data.shuffle import ShuffledStream

LENGTHS = ((5, 1, 9, 3, 7, 2, 4), (6, 6, 1, 8, 12))
"""Tokens of the documents of two shards; the second begins with three more tokens of the first's last document."""


@pytest.fixture
def shards(tmp_path):
    number, paths = 2, []
    for index, lengths in enumerate(LENGTHS):
        tokens = [7000] * (3 * index)
        for length in lengths:
            tokens += [BOS_ID, *range(number, number + length - 1)]
            number += length
        paths.append(tmp_path / f"text_train_{index:06d}.bin")
        write_shard(paths[-1], np.array(tokens))
    return paths


def documents(tokens):
    """A shard's documents as tuples; what comes before the first BOS is one of them."""
    return [tuple(part) for part in np.split(tokens, np.flatnonzero(tokens == BOS_ID)) if len(part)]


def test_every_pass_has_all_documents_in_its_own_order(shards):
    plain, shuffled = TokenStream(shards), ShuffledStream(shards, seed=3)
    size = len(plain)
    sizes = [len(TokenStream([path])) for path in shards]
    np.testing.assert_array_equal(shuffled.take(0, size), plain.take(0, size))
    orders = set()
    for number in range(1, 5):
        start = number * size
        for index, length in enumerate(sizes):
            expected = documents(plain.take(start, length))
            found = documents(shuffled.take(start, length))
            assert sorted(found) == sorted(expected)
            if index:
                assert found[0] == (7000,) * 3
            start += length
        orders.add(shuffled.take(number * size, size).tobytes())
    assert len(orders) == 4 and plain.take(0, size).tobytes() not in orders
    assert ShuffledStream(shards, seed=3).take(size, size).tobytes() in orders
    assert ShuffledStream(shards, seed=4).take(size, size).tobytes() not in orders


def test_any_part_is_that_of_the_whole(shards):
    stream = ShuffledStream(shards, seed=1)
    whole = stream.take(0, 3 * len(stream))
    for start in range(0, 2 * len(stream), 5):
        for count in (1, 4, 40):
            np.testing.assert_array_equal(stream.take(start, count), whole[start : start + count])


def test_batches_of_whole_documents(shards):
    """A take of the second pass lies where that of the first did, in the shuffled text; the first is untouched."""
    order = BatchOrder(run_tokens=7, seq_len=7, num_ranks=1, accumulation=1, take_runs=1)
    plain, shuffled = TokenStream(shards), ShuffledStream(shards, seed=2)
    takes = sum((len(TokenStream([path])) - 3 * index) // 8 for index, path in enumerate(shards))
    second = shuffled.take(len(plain), len(plain))
    starts = [plain.take_start(take, 8) for take in range(takes)]
    for take, start in enumerate(starts):
        np.testing.assert_array_equal(order.batch(shuffled, take).inputs, order.batch(plain, take).inputs)
        batch = order.batch(shuffled, takes + take)
        np.testing.assert_array_equal(batch.inputs.ravel(), second[start : start + 7])
        np.testing.assert_array_equal(batch.targets.ravel(), second[start + 1 : start + 8])
        np.testing.assert_array_equal(order.batch(plain, takes + take).inputs, order.batch(plain, take).inputs)


def test_runs_of_all_seeds_read_alike(shards):
    """So a sweep's runs, which share their batches, are those of each seed alone."""
    config = configs.replace_all(configs.load("best"), {"model.vocab_size": 8192, "data.dir": str(shards[0].parent)})
    passes = [training_stream(configs.replace(config, "train.seed", seed)).take(0, 200) for seed in (1, 2)]
    np.testing.assert_array_equal(*passes)
    plain = training_stream(configs.replace(config, "train.shuffle_documents", False))
    assert not np.array_equal(passes[0], plain.take(0, 200))
