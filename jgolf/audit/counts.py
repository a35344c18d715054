"""Targets, and the bytes of text that they stand for, counted once more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jgolf.audit.checks import Check
from jgolf.audit.scorer import Audited, Run, largest_change
from jgolf.data.documents import read_documents
from jgolf.data.text import Text
from jgolf.data.tokenizer import Tokenizer
from jgolf.errors import DataError

CUT_BYTES = 4
"""A character that is cut at the text's end has up to so many bytes, some of which may be counted."""


def one_pass(audited: Audited, run: Run) -> list[Check]:
    """Every target was scored once, in the windows as they were run, and that is the score."""
    times, num_targets = run.heard.times, len(run.nats)
    rest = num_targets % audited.row
    expected = np.arange(num_targets) < num_targets - rest
    wrong = np.count_nonzero(times != expected)
    note = f"a rest of {rest:,} at the text's end fills no row of {audited.row:,}" if rest else ""
    if wrong:
        first = int(np.flatnonzero(times != expected)[0])
        note = f"target {first:,} was scored {times[first]} times, expected {int(expected[first])}"
    return [
        Check("one pass", f"{num_targets:,} targets: how many were not scored once", wrong, 0, note),
        Check(
            "one pass",
            "scores as they were made and as they are counted: largest difference, nats",
            largest_change(run.heard.nats, run.nats),
            0,
        ),
    ]


def text_bytes(text: Text, tokenizer: Tokenizer, documents: Sequence[Path]) -> list[Check]:
    """The bytes by which scores are divided: not more than the documents have, which would make them better.

    Args:
      text: that is scored, with its counts.
      tokenizer: the text's.
      documents: files that the text was packed from; without them the tokenizer decodes the text.

    Raises:
      DataError: the files cannot be read, or the text is not theirs.
    """
    by_files = _bytes_of_files(text, tokenizer, documents) if documents else None
    found = decoded_bytes(text, tokenizer) if by_files is None else by_files
    whose = "decoded documents" if by_files is None else f"{len(by_files):,} documents packed"
    beside, checks = bool(tokenizer.table_fault), []
    accounts = [(text.bytes, "counted beside the shards" if beside else "by the tokenizer's tables", beside)]
    if text.original is not None and not beside:
        accounts.append((text.original, "counted beside the shards as the original's", True))
    for counts, how, when_packed in accounts:
        counted = int(_by_document(counts, text.starts)[: len(found)].sum())
        told = f"{counted:,} bytes of text, {how}: how many more than the {whose} have"
        excess, note = counted - int(found.sum()), ""
        room = CUT_BYTES if by_files is None else 0
        if excess < 0:
            note = f"{-excess:,} fewer are counted, which makes no score better"
        if excess > room and by_files is None and when_packed:
            note = (
                f"{excess:,} bytes are in no token; where a tokenizer drops some of a text, as white space, only the "
                "documents tell whether they were there: give --documents FILE…, what the text was packed from"
            )
        checks.append(Check("bytes", told, max(excess, 0), room, note))
    return checks


def decoded_bytes(text: Text, tokenizer: Tokenizer) -> Int[np.ndarray, " documents"]:
    """Bytes of each document's targets, by the tokenizer's own text of them."""
    return np.array([_decoded(ids, tokenizer) for ids in np.split(text.tokens, text.starts[1:])])


def _decoded(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """Of a document's tokens but for the first where that is text: it is no target."""
    whole = len(tokenizer.decode(ids).encode())
    return whole if ids[0] == tokenizer.bos_id else whole - len(tokenizer.decode(ids[:1]).encode())


def _by_document(counts: np.ndarray, starts: np.ndarray) -> Int[np.ndarray, " documents"]:
    """Bytes as they are counted for the score; the text's first token is no target."""
    counts = np.array(counts, np.int64)
    counts[0] = 0
    return np.add.reduceat(counts, starts)


def _bytes_of_files(text: Text, tokenizer: Tokenizer, files: Sequence[Path]) -> Int[np.ndarray, " documents"]:
    """Bytes of the documents in the files, as many as the text has whole; each is encoded, and compared with the text.

    Raises:
      DataError: a file cannot be read, or the text is not theirs.
    """
    found, ends = [], [*text.starts[1:], len(text.tokens)]
    names = ", ".join(path.name for path in files)
    for number, document in enumerate(islice(read_documents(files), len(text.starts))):
        start, end = int(text.starts[number]), int(ends[number])
        try:
            ids, own = np.array([tokenizer.bos_id, *tokenizer.encode(document)]), text.tokens[start:end]
        except DataError as error:
            raise DataError(f"{names}: document {number + 1:,}: {error}") from None
        is_cut = number == len(text.starts) - 1 and len(own) < len(ids)  # the text ends in it
        if not np.array_equal(ids[: len(own)] if is_cut else ids, own):
            raise DataError(
                f"{names}: document {number + 1:,} is not that of the text: {len(ids):,} tokens, found {len(own):,} at "
                f"token {start:,}: give the files that the shards were packed from, in their order"
            )
        found += [] if is_cut else [len(document.encode())]
    if len(found) < len(text.starts) - 1:
        raise DataError(f"{names}: {len(found):,} documents, expected at least {len(text.starts) - 1:,}, the text's")
    return np.array(found, np.int64)
