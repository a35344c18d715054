import re
import threading

import numpy as np
import pytest

from jgolf.data.batches import BatchOrder, Prefetcher
from jgolf.data.shards import TokenStream, find_shards, write_shard
from jgolf.errors import DataError
from tests.conftest import RECIPE

GOLDEN_ORDERS = [
    "ws1_acc1_tok512_seq64",
    "ws8_acc1_tok1024_seq64",
    "ws2_acc4_tok1024_seq128",
    "ws8_acc1_tok4096_seq128",
]


def golden_order(name: str) -> BatchOrder:
    ranks, accumulation, tokens, seq_len = map(int, re.findall(r"\d+", name))
    return BatchOrder(tokens // (ranks * accumulation), seq_len, ranks, accumulation)


@pytest.mark.parametrize("name", GOLDEN_ORDERS)
def test_batches_are_the_reference_loaders(golden_loader, name):
    golden = np.load(golden_loader / "batches.npz")
    stream = TokenStream(find_shards(golden_loader, "train"), vocab_size=1024)
    order = golden_order(name)
    takes = len([key for key in golden if key.startswith(f"{name}/")]) // 2
    assert takes == 6
    for take in range(takes):
        batch = order.batch(stream, take // order.accumulation)
        micro_step = take % order.accumulation
        np.testing.assert_array_equal(batch.inputs[micro_step], golden[f"{name}/take{take}_x"])
        np.testing.assert_array_equal(batch.targets[micro_step], golden[f"{name}/take{take}_y"])


def test_golden_batches_pass_the_wrap_around(golden_loader):
    stream = TokenStream(find_shards(golden_loader, "train"))
    assert any(golden_order(name).tokens_per_step * 6 > len(stream) for name in GOLDEN_ORDERS)


@pytest.mark.parametrize(("ranks", "accumulation", "rows"), [(1, 1, 1), (3, 2, 2), (2, 5, 1), (4, 1, 3)])
def test_batch_is_consecutive_runs(tmp_path, ranks, accumulation, rows):
    seq_len = 7
    tokens = np.arange(1000, dtype=np.uint16)
    write_shard(tmp_path / "a.bin", tokens)
    order = BatchOrder(rows * seq_len, seq_len, ranks, accumulation)
    for step in (0, 1, 9):
        batch = order.batch(TokenStream([tmp_path / "a.bin"]), step)
        assert batch.inputs.shape == batch.targets.shape == (accumulation, ranks, rows, seq_len)
        run = step * accumulation * ranks
        for micro_step in range(accumulation):
            for rank in range(ranks):
                first = run * (rows * seq_len + 1)
                expected = np.take(tokens, range(first, first + rows * seq_len + 1), mode="wrap")
                np.testing.assert_array_equal(batch.inputs[micro_step, rank].ravel(), expected[:-1])
                np.testing.assert_array_equal(batch.targets[micro_step, rank].ravel(), expected[1:])
                run += 1


def test_rows_are_a_part_of_the_batch_and_read_no_more(golden_loader):
    class Counting(TokenStream):
        taken = 0

        def take(self, start, count):
            self.taken += count
            return super().take(start, count)

    order = BatchOrder(run_tokens=6 * 16, seq_len=16, num_ranks=4, accumulation=2)
    stream = Counting(find_shards(golden_loader, "train"))
    whole = order.batch(stream, 5)
    for rows in (slice(0, 6), slice(5, 13), slice(8, 9), slice(None), slice(20, None), slice(3, 3)):
        stream.taken = 0
        part = order.rows(stream, 5, rows)
        for name in ("inputs", "targets"):
            expected = getattr(whole, name).reshape(2, 24, 16)[:, rows]
            np.testing.assert_array_equal(getattr(part, name), expected)
        num_rows = len(range(24)[rows])
        assert stream.taken <= 2 * (num_rows * 16 + 4)
    with pytest.raises(ValueError, match="consecutive rows"):
        order.rows(stream, 0, slice(0, 8, 2))


def test_order_of_a_config():
    order = BatchOrder.from_config(RECIPE.train)
    assert order == BatchOrder(run_tokens=98_304, seq_len=2048, num_ranks=8, accumulation=1)
    assert (order.rows_per_run, order.micro_batch_rows, order.tokens_per_step) == (48, 384, 8 * 98_305)


def test_prefetcher_yields_in_order_from_any_step():
    with Prefetcher(lambda step: step * step, first_step=3) as squares:
        assert [next(squares) for _ in range(50)] == [step * step for step in range(3, 53)]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetcher_is_bounded(depth):
    made: list[int] = []
    enough = threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if len(made) == depth + 1:
            enough.set()
        return step

    with Prefetcher(make, 0, depth) as steps:
        assert next(steps) == 0
        assert enough.wait(60)
        assert len(made) <= depth + 1
    assert len(made) <= depth + 1


def test_prefetcher_raises_where_the_result_would_be():
    def make(step: int) -> int:
        if step == 2:
            raise DataError("shard 2 is bad")
        return step

    with Prefetcher(make, 0) as steps:
        assert (next(steps), next(steps)) == (0, 1)
        for _ in range(2):
            with pytest.raises(DataError, match="shard 2 is bad"):
                next(steps)


def test_prefetcher_closes_whatever_its_thread_does():
    release = threading.Event()
    waiting = Prefetcher(lambda step: step, 0)
    next(waiting)
    waiting.close()
    waiting.close()
    with pytest.raises(StopIteration):
        next(waiting)

    busy = Prefetcher(lambda step: release.wait(120), 0)
    closing = threading.Thread(target=busy.close)
    closing.start()
    release.set()
    closing.join(60)
    assert not closing.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetcher_close_wakes_a_consumer():
    release = threading.Event()
    prefetcher = Prefetcher(lambda step: release.wait(120), 0)
    got: list[bool] = []
    consumer = threading.Thread(target=lambda: got.extend(prefetcher))
    consumer.start()
    release_later = threading.Timer(0.2, release.set)
    release_later.start()
    prefetcher.close()
    consumer.join(60)
    assert not consumer.is_alive()
