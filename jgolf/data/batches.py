"""Batches as a pure function of the step, in the PyTorch reference's order, and a thread that makes them ahead."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from jgolf.config import TrainConfig
from jgolf.data.shards import TokenStream

T = TypeVar("T")


class Batch(NamedTuple):
    """Inputs and their targets, the next token at every position: `uint16`, of one shape."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class BatchOrder:
    """Which tokens of the stream each step trains on.

    A micro-step takes `(run_tokens + 1) × num_ranks` consecutive tokens. Rank r owns the r-th run of
    `run_tokens + 1`: its inputs are the run's first `run_tokens`, its targets the last, both cut into
    rows of `seq_len`. The runs of a step's micro-steps follow one another, and steps do too.

    Where documents are kept apart, a row is a whole run, and every `take_runs` runs are a take that lies within a
    shard, from its first BOS on: what is left at a shard's end is too short for a take and is never used.
    """

    run_tokens: int
    seq_len: int
    num_ranks: int
    accumulation: int
    take_runs: int = 0
    """Runs of a take; 0 where runs follow one another regardless of shards and documents."""

    @classmethod
    def from_config(cls, train: TrainConfig) -> BatchOrder:
        """The order of a (validated) config."""
        if train.documents:
            return cls(train.run_tokens, train.run_tokens, train.num_ranks, train.accumulation, train.num_ranks)
        return cls(train.run_tokens, train.seq_len, train.num_ranks, train.accumulation)

    def for_devices(self, num_devices: int) -> BatchOrder | None:
        """The same tokens in the same order, laid out for so many devices; None if they cannot share them evenly.

        With fewer devices than ranks, each device takes more micro-steps. With more, the devices of a rank split its
        rows or, where these cannot be split, its micro-steps.
        """
        runs = self.num_ranks * self.accumulation
        if self.micro_batch_rows % num_devices == 0 and num_devices >= self.num_ranks:
            return self
        if runs % num_devices == 0:
            return dataclasses.replace(self, num_ranks=num_devices, accumulation=runs // num_devices)
        return None

    @property
    def rows_per_run(self) -> int:
        """Rows of one rank in one micro-step."""
        return self.run_tokens // self.seq_len

    @property
    def micro_batch_rows(self) -> int:
        """Rows of all ranks in one micro-step."""
        return self.num_ranks * self.rows_per_run

    @property
    def tokens_per_step(self) -> int:
        """Positions by which the stream moves on in a step: a run's inputs and its last target."""
        return (self.run_tokens + 1) * self.num_ranks * self.accumulation

    def batch(self, stream: TokenStream, step: int) -> Batch:
        """The batch of `step` (from 0): arrays [accumulation, num_ranks, rows_per_run, seq_len]."""
        shape = (self.accumulation, self.num_ranks, self.rows_per_run, self.seq_len)
        inputs, targets = self.rows(stream, step, slice(None))
        return Batch(inputs.reshape(shape), targets.reshape(shape))

    def rows(self, stream: TokenStream, step: int, rows: slice) -> Batch:
        """A part of the batch of `step`; only its tokens are read.

        Args:
          stream: the training tokens.
          step: from 0.
          rows: consecutive rows, of the `num_ranks × rows_per_run` that every micro-step has.

        Returns:
          Arrays [accumulation, number of rows, seq_len].
        """
        start, stop, stride = rows.indices(self.micro_batch_rows)
        if stride != 1:
            raise ValueError(f"rows {rows}: expected consecutive rows, a slice without a step")
        shape = (self.accumulation, max(0, stop - start), self.seq_len)
        batch = Batch(np.empty(shape, np.uint16), np.empty(shape, np.uint16))
        for micro_step in range(self.accumulation):
            row = start
            while row < stop:
                rank, row_in_run = divmod(row, self.rows_per_run)
                count = min(stop, (rank + 1) * self.rows_per_run) - row
                run = step * self.accumulation * self.num_ranks + micro_step * self.num_ranks + rank
                first = self._run_start(stream, run) + row_in_run * self.seq_len
                tokens = stream.take(first, count * self.seq_len + 1)
                into = slice(row - start, row - start + count)
                batch.inputs[micro_step, into] = tokens[:-1].reshape(count, self.seq_len)
                batch.targets[micro_step, into] = tokens[1:].reshape(count, self.seq_len)
                row += count
        return batch

    def _run_start(self, stream: TokenStream, run: int) -> int:
        """Where a run, of all there ever are, begins in the stream."""
        if not self.take_runs:
            return run * (self.run_tokens + 1)
        take, run_in_take = divmod(run, self.take_runs)
        return stream.take_start(take, self.take_runs * (self.run_tokens + 1)) + run_in_take * (self.run_tokens + 1)


class Prefetcher(Generic[T]):
    """Yields `make(first_step)`, `make(first_step + 1)`, … without end, made ahead in a background thread.

    At most `depth` finished results wait. An exception in `make` is raised where its result would have
    been yielded, and again by every later `next`. Use it as a context manager, or call `close`.
    """

    def __init__(self, make: Callable[[int], T], first_step: int, depth: int = 2):
        self._make = make
        self._depth = depth
        self._results: deque[T] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(first_step,), name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, step: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._results) < self._depth)
                if self._closed:
                    return
            try:
                result = self._make(step)
            except BaseException as error:  # noqa: BLE001 – whatever it is, it belongs to the consumer
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if self._closed:
                    return
                self._results.append(result)
                self._changed.notify_all()
            step += 1

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._error or self._closed)
            if self._closed:
                raise StopIteration
            if self._results:
                self._changed.notify_all()
                return self._results.popleft()
            raise self._error

    def close(self) -> None:
        """Stops the thread and drops what it made; a `make` that is still running is not waited for long."""
        with self._changed:
            self._closed = True
            self._results.clear()
            self._changed.notify_all()
        self._thread.join(timeout=5.0)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
