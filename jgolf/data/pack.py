"""Packing documents into shards: `jgolf data pack`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from jgolf import files
from jgolf.data.documents import check_files, parse_document, read_lines
from jgolf.data.shards import TOKEN_TYPE, create_shard
from jgolf.data.tokenizer import Tokenizer, load_tokenizer
from jgolf.errors import DataError, JgolfError
from jgolf.progress import byte_progress, counted

Split = Literal["train", "val"]
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

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens, {self.text_bytes:,} bytes of text, "
            f"{self.text_bytes / self.tokens:.4f} bytes a token, {self.elapsed_s:.1f} s; "
            f"{counted(len(self.paths), 'shard')} in {self.paths[0].parent}"
        )


def pack(
    documents: tyro.conf.Positional[tuple[Path, ...]],
    tokenizer: Path,
    out: Path,
    split: Split = "train",
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
) -> None:
    """Pack documents into token shards.

    Args:
      documents: Text files: .jsonl, with {"text": …} a line, or .txt, with one document a line, of at most 16 MB;
        also as .zst or .gz.
      tokenizer: SentencePiece model.
      out: Folder for the shards; the tokenizer is copied there too.
      split: What the documents are for.
      shard_tokens: Tokens in a shard; the last may hold fewer.
      overwrite: Replace the shards of this split that are already there.
    """
    print(pack_documents(documents, tokenizer, out, split, shard_tokens, overwrite))


def pack_documents(
    documents: Sequence[str | Path],
    tokenizer_path: str | Path,
    out_dir: str | Path,
    split: Split = "train",
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
    workers: int | None = None,
) -> PackSummary:
    """Tokenizes text files, on all cores, into the shards `fineweb_{split}_{index:06d}.bin` of `out_dir`.

    Every document becomes BOS and its pieces; documents follow one another, across shards too. Memory
    is bounded by the longest document. The shards appear when all of them are complete, or not at all.

    Raises:
      DataError: an input cannot be used, or `out_dir` holds such shards or another tokenizer already.
      JgolfError: `out_dir` cannot be written to.
    """
    start_s = time.monotonic()
    out_dir = Path(out_dir)
    check_files(documents)
    tokenizer = load_tokenizer(tokenizer_path)
    if shard_tokens < 1:
        raise DataError(f"--shard-tokens {shard_tokens}: expected at least 1")
    old_shards = sorted(out_dir.glob(f"*_{split}_*.bin"))
    if old_shards and not overwrite:
        raise DataError(
            f"{out_dir}: already holds {len(old_shards)} {split} shards ({old_shards[0].name} …); "
            "choose another --out, or replace them with --overwrite"
        )
    has_tokenizer = _holds_tokenizer(out_dir, tokenizer)

    totals = _Totals()
    staging = out_dir / f".packing-{split}"
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a pack that was killed
        with byte_progress(f"packing {split}", sum(Path(path).stat().st_size for path in documents)) as advance:
            pieces = _tokenized(documents, tokenizer.path, workers or _usable_cores(), advance, totals)
            with contextlib.closing(pieces):
                names = _write_shards(staging, split, pieces, shard_tokens)
        if not names:
            raise DataError(f"no documents in {', '.join(str(path) for path in documents)}")
        _publish(staging, out_dir, names, old_shards)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if not has_tokenizer:
        files.write_bytes(out_dir / tokenizer.path.name, tokenizer.model_bytes)
    paths = tuple(out_dir / name for name in names)
    return PackSummary(paths, totals.documents, totals.tokens, totals.text_bytes, time.monotonic() - start_s)


def _usable_cores() -> int:
    """Cores that this process may run on, where the system tells; all of them elsewhere."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _holds_tokenizer(out_dir: Path, tokenizer: Tokenizer) -> bool:
    """Whether `out_dir` holds this tokenizer already; another one there is an error."""
    models = sorted(out_dir.glob("*.model"))
    for model in models:
        if model.read_bytes() != tokenizer.model_bytes:
            raise DataError(
                f"{out_dir}: holds another tokenizer, {model.name}, for its shards; shards of {tokenizer.path} need "
                "another --out (or remove that file together with the shards that were packed with it)"
            )
    return bool(models)


# --- tokens ------------------------------------------------------------------------------------


@dataclass
class _Totals:
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0


class _Lines(NamedTuple):
    """Consecutive lines of a file: what a process tokenizes at a time."""

    path: Path
    first_number: int
    lines: list[bytes]
    file_bytes: int  # that were read for them


class _Encoded(NamedTuple):
    tokens: np.ndarray  # uint16
    documents: int
    text_bytes: int


def _line_groups(paths: Sequence[str | Path]) -> Iterator[_Lines]:
    for path in map(Path, paths):
        first_number, lines, num_bytes = 1, [], 0
        read: list[int] = []
        for line in read_lines(path, read.append):
            lines.append(line)
            num_bytes += len(line) + 1  # empty lines take room, too
            if num_bytes >= _TASK_BYTES:
                yield _Lines(path, first_number, lines, sum(read))
                first_number, lines, num_bytes = first_number + len(lines), [], 0
                read.clear()
        if lines or read:
            yield _Lines(path, first_number, lines, sum(read))


def _encode(tokenizer_path: Path, group: _Lines) -> _Encoded:
    """Runs in a worker process."""
    tokenizer = _worker_tokenizer(tokenizer_path)
    ids: list[int] = []
    documents = text_bytes = 0
    for number, line in enumerate(group.lines, start=group.first_number):
        text = parse_document(line, group.path, number)
        if text is not None:
            ids.append(tokenizer.bos_id)
            ids.extend(tokenizer.encode(text))
            documents += 1
            text_bytes += len(text.encode())
    return _Encoded(np.array(ids, TOKEN_TYPE), documents, text_bytes)


_worker_tokenizer = functools.lru_cache(maxsize=1)(load_tokenizer)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers


def _tokenized(
    paths: Sequence[str | Path], tokenizer_path: Path, workers: int, advance: Callable[[int], None], totals: _Totals
) -> Iterator[np.ndarray]:
    """The tokens of all documents in order, in pieces; a few more than `workers` groups are under way at a time.

    `advance` is told of the bytes of a file once they are tokenized, which takes longer than reading them.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)
    groups = _line_groups(paths)
    pending: deque = deque()
    try:
        while True:
            for group in itertools.islice(groups, 2 * workers + 1 - len(pending)):
                _tell_of_long_line(group)
                pending.append((group.file_bytes, pool.submit(_encode, tokenizer_path, group)))
            if not pending:
                return
            file_bytes, encoding = pending.popleft()
            encoded = encoding.result()
            advance(file_bytes)
            totals.documents += encoded.documents
            totals.tokens += len(encoded.tokens)
            totals.text_bytes += encoded.text_bytes
            yield encoded.tokens
    except BrokenProcessPool:
        raise JgolfError("a tokenizing process was killed, probably for lack of memory; nothing was packed") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _tell_of_long_line(group: _Lines) -> None:
    """A line is one document and one piece of work, during which no progress can be shown."""
    size = max(map(len, group.lines), default=0)
    if size >= _LONG_LINE_BYTES:
        number = group.first_number + [len(line) for line in group.lines].index(size)
        print(f"{group.path}:{number}: a document of {size / 1e6:.1f} MB, tokenized in one piece", file=sys.stderr)


# --- shards ------------------------------------------------------------------------------------


def _write_shards(folder: Path, split: Split, pieces: Iterator[np.ndarray], shard_tokens: int) -> list[str]:
    """Cuts the tokens into shards of `shard_tokens`; their names."""
    names: list[str] = []
    rest = _next_tokens(pieces)
    while len(rest):
        names.append(f"fineweb_{split}_{len(names):06d}.bin")
        with create_shard(folder / names[-1]) as shard:
            while len(rest) and shard.num_tokens < shard_tokens:
                room = shard_tokens - shard.num_tokens
                shard.write(rest[:room])
                rest = rest[room:] if len(rest) > room else _next_tokens(pieces)
    return names


def _next_tokens(pieces: Iterator[np.ndarray]) -> np.ndarray:
    """The next piece that holds tokens; an empty one at the end."""
    return next((piece for piece in pieces if len(piece)), np.empty(0, TOKEN_TYPE))


def _publish(staging: Path, out_dir: Path, names: list[str], old_shards: list[Path]) -> None:
    try:
        for path in old_shards:
            path.unlink()
        for name in names:
            os.replace(staging / name, out_dir / name)
    except OSError as error:
        raise files.writing_error(out_dir, error) from error
