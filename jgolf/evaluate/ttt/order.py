"""In which order documents are scored and adapted to, as data: no arrays on devices, nothing of a network.

Documents of like length go together in batches; the batch with the longest comes first. A document is scored in
chunks, each seen with as much of the document before it as the context holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jgolf.config import AdaptedConfig
from jgolf.evaluate.hints import Order


class Documents(NamedTuple):
    """Where documents lie in a stream. One's targets are its tokens after the first, and the first of the next."""

    start: Int[np.ndarray, " documents"]
    num_targets: Int[np.ndarray, " documents"]

    def __getitem__(self, index) -> Documents:
        return Documents(*(field[index] for field in tuple(self)))


def documents_of(starts: Int[np.ndarray, " documents"], num_tokens: int) -> Documents:
    """All documents that have a target.

    Args:
      starts: positions at which one begins, rising, the first 0.
      num_tokens: tokens of the stream; a document that begins with its last one has no target.
    """
    num_targets = np.diff(starts, append=num_tokens - 1)
    return Documents(starts, num_targets)[num_targets > 0]


def batches_of(documents: Documents, size: int) -> list[Int[np.ndarray, " batch"]]:
    """Documents by number, in batches of neighbours in length; the last one, the longest, may be short.

    Within a batch, and from one to the next, lengths rise; equal ones keep the text's order.
    """
    order = np.argsort(documents.num_targets, kind="stable")
    return [order[first : first + size] for first in range(0, len(order), size)]


def queue_of(documents: Documents, batches: list[np.ndarray]) -> list[int]:
    """The batches' numbers, that with the longest document first; equal ones in their order."""
    return sorted(range(len(batches)), key=lambda number: -documents.num_targets[batches[number][-1]])


def by_length(num_targets: np.ndarray, steps: tuple[tuple[int, float], ...], otherwise: float) -> np.ndarray:
    """For each length the value of the first pair (length, value) that it does not exceed, or `otherwise`."""
    values = np.array([value for _, value in steps] + [otherwise])
    return values[np.searchsorted([length for length, _ in steps], num_targets)]


class Rows(NamedTuple):
    """Windows of documents of a batch, one an entry, each with the chunk at its end that is scored."""

    place: Int[np.ndarray, " rows"]
    """Of the document in its batch."""
    start: Int[np.ndarray, " rows"]
    """Position of the window's first input in the stream."""
    first: Int[np.ndarray, " rows"]
    """Position in the window of the chunk's first input."""
    count: Int[np.ndarray, " rows"]
    """Targets of the chunk; with its last input the window ends."""
    trains: Bool[np.ndarray, " rows"]
    """Whether the document goes on, so that there is something to adapt for."""

    def __getitem__(self, index) -> Rows:
        return Rows(*(field[index] for field in tuple(self)))

    @property
    def length(self) -> Int[np.ndarray, " rows"]:
        """Inputs of each window."""
        return self.first + self.count


def num_chunks(num_targets: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Chunks of documents with so many targets, the last one perhaps short."""
    return -(-num_targets // chunk)


def chunk_rows(documents: Documents, chunk: Int[np.ndarray, " batch"], context: int) -> Iterator[Rows]:
    """The windows of a batch, chunk after chunk; documents that have ended have none.

    Args:
      documents: those of the batch.
      chunk: targets of each one's chunks.
      context: longest window. The last one of a document ends with it, and so is as long as the others.
    """
    total = num_chunks(documents.num_targets, chunk)
    for number in range(int(total.max())):
        active = np.flatnonzero(number < total)
        begin = number * chunk[active]
        end = np.minimum(begin + chunk[active], documents.num_targets[active])
        start = np.maximum(end - context, 0)
        trains = number < total[active] - 1
        yield Rows(active, documents.start[active] + start, begin - start, end - begin, trains)


def scoring_order(documents: Documents, batches: list[np.ndarray], queue: list[int]) -> Order:
    """Every target in its batch: it knows its own document so far, and the documents of finished batches."""
    one_by_one = [documents[batches[number]] for number in queue]
    sizes = np.concatenate([batch.num_targets for batch in one_by_one])
    ends = np.cumsum(sizes)
    of_batch = [np.sum(batch.num_targets) for batch in one_by_one]
    first, own = np.concatenate([batch.start for batch in one_by_one]), np.repeat(ends - sizes, sizes)
    shared = np.repeat(np.cumsum(of_batch) - of_batch, of_batch)
    return Order(np.repeat(first, sizes) + np.arange(len(own)) - own, own, shared)


def phase_ends(settings: AdaptedConfig, num_documents: int) -> list[int]:
    """Numbers of scored documents after which all weights are trained on so many of them."""
    limit = min(num_documents, settings.phase_documents)
    ends = [limit * (phase + 1) // settings.phases for phase in range(settings.phases)]
    return [end for end in ends if end]


def phases_of(
    settings: AdaptedConfig, documents: Documents, batches: list[np.ndarray], queue: list[int]
) -> dict[int, Documents]:
    """Place in the queue after whose batch all weights are trained → the documents they are trained on, in order.

    These are, of all documents in the batches so far, the shortest, as many as the phase's end says. There is no phase
    after the last batch: nothing would be scored with what it learnt.
    """
    ends, found, done = phase_ends(settings, len(documents.start)), {}, 0
    for place, number in enumerate(queue[:-1]):
        done += len(batches[number])
        if len(found) < len(ends) and done >= ends[len(found)]:
            scored = np.concatenate([batches[number] for number in sorted(queue[: place + 1])])
            found[place] = documents[scored[: ends[len(found)]]]
    return found


def joined(tokens: np.ndarray, documents: Documents) -> np.ndarray:
    """Documents one after another, each with the next one's BOS at its end, as it was scored with."""
    ends = documents.start + documents.num_targets + 1
    return np.concatenate([tokens[start:end] for start, end in zip(documents.start, ends, strict=True)])
