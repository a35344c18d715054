"""Packing documents into shards: `jgolf data pack`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from jgolf.data.changes import Changes
from jgolf.data.documents import check_files, parse_document, read_lines
from jgolf.data.shard_folder import MOST_COUNTED, Piece, Split, check_shard_tokens, new_shards, write_shards
from jgolf.data.shards import TOKEN_TYPE
from jgolf.data.text import table_bytes
from jgolf.data.tokenizer import Tokenizer, load_tokenizer
from jgolf.errors import DataError, JgolfError
from jgolf.progress import byte_progress, counted

_TASK_BYTES = 1 << 20  # text handed to a process at a time
_LONG_LINE_BYTES = 1 << 22  # takes seconds


@dataclass(frozen=True)
class PackSummary:
    """What was packed."""

    paths: tuple[Path, ...]
    documents: int
    tokens: int
    text_bytes: int
    elapsed_s: float
    tokenizer: Tokenizer
    changes: Changes

    def __str__(self) -> str:
        packed = (
            f"{self.documents:,} documents, {self.tokens:,} tokens, {self.text_bytes:,} bytes of text, "
            f"{self.text_bytes / self.tokens:.4f} bytes a token, {self.elapsed_s:.1f} s; "
            f"{counted(len(self.paths), 'shard')} in {self.paths[0].parent}"
        )
        return "\n".join([packed, *self.changes.told(self.tokenizer)])


def pack(
    documents: tyro.conf.Positional[tuple[Path, ...]],
    tokenizer: Path,
    out: Path,
    split: Split = "train",
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
    byte_counts: bool | None = None,
) -> None:
    """Pack documents into token shards, and say what of the documents their tokens do not keep.

    Args:
      documents: Text files: .jsonl, with {"text": …} a line, or .txt, with one document a line, of at most 16 MB;
        also as .zst or .gz.
      tokenizer: Its file, a SentencePiece model, over CaseOps or plain, or the JSON of one of bytes.
      out: Folder for the shards; the tokenizer is copied there too.
      split: What the documents are for.
      shard_tokens: Tokens in a shard; the last may hold fewer.
      overwrite: Replace the shards of this split that are already there.
      byte_counts: Write a sidecar beside each shard that counts the bytes of the original text which each token
        stands for, for bits per byte of that; by default for validation only.
    """
    print(pack_documents(documents, tokenizer, out, split, shard_tokens, overwrite, byte_counts))


def pack_documents(
    documents: Sequence[str | Path],
    tokenizer_path: str | Path,
    out_dir: str | Path,
    split: Split = "train",
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
    byte_counts: bool | None = None,
    workers: int | None = None,
) -> PackSummary:
    """Tokenizes text files, on all cores, into the shards `fineweb_{split}_{index:06d}.bin` of `out_dir`.

    Every document becomes BOS and its pieces; documents follow one another, across shards too. Memory
    is bounded by the longest document. The shards, and the sidecars beside them, appear when all of them
    are complete, or not at all.

    Raises:
      DataError: an input cannot be used, or `out_dir` holds such shards or another tokenizer already.
      JgolfError: `out_dir` cannot be written to.
    """
    start_s = time.monotonic()
    out_dir = Path(out_dir)
    check_files(documents)
    tokenizer = load_tokenizer(tokenizer_path)
    check_shard_tokens(shard_tokens)
    if byte_counts is None:
        byte_counts = split == "val"

    totals = _Totals()
    with new_shards(out_dir, [split], tokenizer, overwrite) as staging:
        with byte_progress(f"packing {split}", sum(Path(path).stat().st_size for path in documents)) as advance:
            pieces = _tokenized(documents, tokenizer, byte_counts, workers or _usable_cores(), advance, totals)
            with contextlib.closing(pieces):
                names = write_shards(staging, split, pieces, shard_tokens)
        if not names:
            raise DataError(f"no documents in {', '.join(str(path) for path in documents)}")
    paths = tuple(out_dir / name for name in names)
    elapsed_s, changes = time.monotonic() - start_s, totals.changes
    return PackSummary(paths, changes.documents, totals.tokens, changes.text_bytes, elapsed_s, tokenizer, changes)


def _usable_cores() -> int:
    """Cores that this process may run on, where the system tells; all of them elsewhere."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- tokens ------------------------------------------------------------------------------------


@dataclass
class _Totals:
    tokens: int = 0
    changes: Changes = field(default_factory=Changes)


class _Lines(NamedTuple):
    """Consecutive lines of a file: what a process tokenizes at a time."""

    path: Path
    first_number: int
    lines: list[bytes]
    file_bytes: int  # that were read for them


class _Encoded(NamedTuple):
    piece: Piece
    changes: Changes


def _line_groups(paths: Sequence[str | Path]) -> Iterator[_Lines]:
    for path in map(Path, paths):
        first_number, lines, num_bytes = 1, [], 0
        read: list[int] = []
        for line in read_lines(path, read.append):
            lines.append(line)
            num_bytes += len(line) + 1  # empty lines take room, too
            if num_bytes >= _TASK_BYTES:
                yield _told(_Lines(path, first_number, lines, sum(read)))
                first_number, lines, num_bytes = first_number + len(lines), [], 0
                read.clear()
        if lines or read:
            yield _told(_Lines(path, first_number, lines, sum(read)))


def _encode(tokenizer: Tokenizer, byte_counts: bool, group: _Lines) -> _Encoded:
    changes = Changes()
    pieces: list[Piece] = []
    for number, line in enumerate(group.lines, start=group.first_number):
        text = parse_document(line, group.path, number)
        if text is not None:
            pieces.append(_document(tokenizer, text, f"{group.path}:{number}", byte_counts, changes))
    if not pieces:
        return _Encoded(Piece(np.empty(0, TOKEN_TYPE), None), changes)
    tokens, counts = zip(*pieces, strict=True)
    return _Encoded(Piece(np.concatenate(tokens), np.concatenate(counts) if byte_counts else None), changes)


def _document(tokenizer: Tokenizer, text: str, where: str, byte_counts: bool, changes: Changes) -> Piece:
    """The tokens of a document, and their bytes if they are to be counted; `changes` learns what becomes of it."""
    text_bytes = len(text.encode())
    try:
        ids, counts = tokenizer.encode_with_bytes(text) if byte_counts else (tokenizer.encode(text), [])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    tokens = np.array([tokenizer.bos_id, *ids], TOKEN_TYPE)
    changes.look(where, text_bytes, *tokenizer.written_and_kept(text, ids))
    changes.count("miscounted", where, int(table_bytes(tokens, tokenizer).sum(dtype=np.int64)) - text_bytes)
    if not byte_counts:
        return Piece(tokens, None)
    uncounted = text_bytes - sum(counts)
    if tokenizer.counts_ends:
        counts = [uncounted, *counts]  # of a document without a piece, which BOS alone stands for
    else:
        changes.count("uncounted", where, uncounted)
        counts = [0, *counts]
    if max(counts) > MOST_COUNTED:
        raise DataError(
            f"{where}: one token stands for {max(counts):,} bytes, mostly white space, but a sidecar counts up to "
            f"{MOST_COUNTED:,}: shorten that white space, or leave the counts out with --byte-counts False"
        )
    return Piece(tokens, np.array(counts, TOKEN_TYPE))


def _tokenized(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    byte_counts: bool,
    workers: int,
    advance: Callable[[int], None],
    totals: _Totals,
) -> Iterator[Piece]:
    """The tokens of all documents in order, in pieces.

    `advance` is told of the bytes of a file once they are tokenized, which takes longer than reading them.
    """
    groups = _line_groups(paths)
    first = list(itertools.islice(groups, 2))
    if len(first) < 2:  # which is done before a process has started
        encodings = ((group.file_bytes, _encode(tokenizer, byte_counts, group)) for group in first)
    else:
        encodings = _in_processes(itertools.chain(first, groups), tokenizer.path, byte_counts, workers)
    with contextlib.closing(encodings):
        for file_bytes, encoded in encodings:
            advance(file_bytes)
            totals.tokens += len(encoded.piece.tokens)
            totals.changes.add(encoded.changes)
            yield encoded.piece


def _in_processes(
    groups: Iterator[_Lines], tokenizer_path: Path, byte_counts: bool, workers: int
) -> Iterator[tuple[int, _Encoded]]:
    """In the order of the groups, of which a few more than `workers` are under way at a time."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)
    encode = functools.partial(_encode_there, tokenizer_path, byte_counts)
    pending: deque = deque()
    try:
        while True:
            for group in itertools.islice(groups, 2 * workers + 1 - len(pending)):
                pending.append((group.file_bytes, pool.submit(encode, group)))
            if not pending:
                return
            file_bytes, encoding = pending.popleft()
            yield file_bytes, encoding.result()
    except BrokenProcessPool:
        raise JgolfError("a tokenizing process was killed, probably for lack of memory; nothing was packed") from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker_tokenizer = functools.lru_cache(maxsize=1)(load_tokenizer)


def _encode_there(tokenizer_path: Path, byte_counts: bool, group: _Lines) -> _Encoded:
    """`_encode` in a worker process."""
    return _encode(_worker_tokenizer(tokenizer_path), byte_counts, group)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers


def _told(group: _Lines) -> _Lines:
    """The group, its longest line told of: that is one document and one piece of work, without progress to show."""
    size = max(map(len, group.lines), default=0)
    if size >= _LONG_LINE_BYTES:
        number = group.first_number + [len(line) for line in group.lines].index(size)
        print(f"{group.path}:{number}: a document of {size / 1e6:.1f} MB, tokenized in one piece", file=sys.stderr)
    return group
