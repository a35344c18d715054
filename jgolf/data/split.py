"""Dividing a text of one's own into documents to train on and documents that are held out: `jgolf data split`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jgolf import files
from jgolf.data.own_text import check_outside, cut, documents_of, find_texts
from jgolf.data.train_tokenizer import LEARNT_CHARS
from jgolf.errors import DataError
from jgolf.progress import byte_progress, counted

TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "val.jsonl"
EXCERPT_FILE = "held-out.txt"
"""The beginning of the held-out documents, as plain text."""
FEW_DOCUMENTS = 20
"""Where there are fewer, they are cut into parts, which are the documents then."""
PART_CHARS = range(500, LEARNT_CHARS + 1)
"""Of such a part, by how much text there is: a sixty-fourth of it. The longest is what tokenizers learn from."""
PARTS = 64
MOST_CHARS = 1 << 20
"""Longer documents are cut in any case."""
LEAST_HELD_OUT_BYTES = 4_000
_EXCERPT_BYTES = 32_768


@dataclass(frozen=True)
class SplitSummary:
    """What a text was divided into.

    Attributes:
      train, validation: numbers of documents.
      train_bytes, validation_bytes: UTF-8 bytes of these.
      part_chars: most characters of a part, where documents were cut into parts; else 0.
      copies: documents that were left out, since they are the same as others.
      left_out: files in folders that are no text.
      is_whole: whether the text was read to its end.
    """

    train: int
    validation: int
    train_bytes: int
    validation_bytes: int
    part_chars: int
    copies: int
    left_out: tuple[Path, ...]
    is_whole: bool

    def __str__(self) -> str:
        lines = [
            f"{counted(self.train, 'document')}, {self.train_bytes:,} bytes, to train on; "
            f"{counted(self.validation, 'document')}, {self.validation_bytes:,} bytes, held out"
        ]
        if self.part_chars:
            lines.append(
                f"fewer than {FEW_DOCUMENTS} documents: cut into parts of up to {self.part_chars:,} characters, at "
                "blank lines, else at line breaks or spaces; each part is a document now"
            )
        if self.copies:
            lines.append(f"{counted(self.copies, 'document')} left out, the same as others")
        if self.left_out:
            lines.append(f"no text, and left out: {counted(len(self.left_out), 'file')}, the first {self.left_out[0]}")
        if not self.is_whole:
            lines.append("the rest of the text was not read: --max-mb says how much of it is")
        return "\n".join(lines)


def split(
    texts: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    held_out_share: float = 0.05,
    held_out_kb: float = 250.0,
    max_mb: float = 300.0,
    seed: int = 1337,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Divide a text into whole documents to train on and others that are held out, for validation.

    A text file, a line of a .jsonl file ({"text": …}) and a row of a .parquet file (its column text) are a document
    each. Fewer than 20 are cut, at blank lines where there are any, into parts that are the documents then. Documents
    are shuffled, by a hash of the seed and their text; the first are held out. The same text twice counts once.

    Args:
      texts: Text files, .jsonl or .parquet files, or folders of such; .zst and .gz are read too.
      out: Folder for train.jsonl, val.jsonl, and held-out.txt, the beginning of the latter as plain text.
      held_out_share: Part of the text that is held out, at least 4,000 bytes of it.
      held_out_kb: Most that is held out, but for the last document, in kilobytes.
      max_mb: Read this many megabytes of text at most, the first ones; it is held in memory.
      seed: Of the shuffle.
      overwrite: Replace these files where they are there already.
    """
    for option, value in (("--held-out-kb", held_out_kb), ("--max-mb", max_mb)):
        if not math.isfinite(value):
            raise DataError(f"{option} {value}: expected a number, more than 0")
    print(
        split_documents(texts, out, held_out_share, int(held_out_kb * 1000), int(max_mb * 1e6), seed, overwrite),
    )


def split_documents(
    texts: Sequence[Path],
    out_dir: Path,
    held_out_share: float = 0.05,
    held_out_bytes: int = 250_000,
    max_bytes: int = 300_000_000,
    seed: int = 1337,
    overwrite: bool = False,
) -> SplitSummary:
    """Writes `train.jsonl`, `val.jsonl` and `held-out.txt` into `out_dir`, all of them or none; see `split`.

    Raises:
      DataError: a text cannot be used, `out_dir` lies in a folder of them, there are not two different documents, or
        the files are there already.
      MissingExtraError: Parquet, and pyarrow is not installed.
      JgolfError: `out_dir` cannot be written to.
    """
    if not 0 < held_out_share <= 0.5 or held_out_bytes < 1 or max_bytes < 1:
        raise DataError(
            f"--held-out-share {held_out_share} --held-out-kb {held_out_bytes / 1000} --max-mb {max_bytes / 1e6}: "
            "expected more than 0 each, and a share of at most 0.5"
        )
    check_outside(texts, out_dir)
    files.settle(out_dir)
    there = [name for name in (TRAIN_FILE, VALIDATION_FILE, EXCERPT_FILE) if (out_dir / name).exists()]
    if there and not overwrite:
        raise DataError(f"{out_dir}: already holds {there[0]}; choose another --out, or replace it with --overwrite")
    found, left_out = find_texts(texts)
    read, is_whole = _read(found, max_bytes)
    documents, part_chars = _cut_where_few(read)
    ordered = _shuffled(documents, seed)
    if len(ordered) < 2:
        what = "one document" if ordered else "no text but white space"
        raise DataError(
            f"{', '.join(map(str, texts))}: {what} in {counted(sum(map(len, documents)), 'character')}, expected two "
            "different ones or more, to train on one and to validate on the other: give more text"
        )
    total = sum(len(text.encode()) for text in ordered)
    target = min(held_out_bytes, max(held_out_share * total, LEAST_HELD_OUT_BYTES), total / 2)
    held_out, train = _divided(ordered, target)
    with files.all_or_nothing(out_dir, "texts") as staging:
        for name, part in ((TRAIN_FILE, train), (VALIDATION_FILE, held_out)):
            with files.atomic_write(staging / name) as file:
                file.writelines(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in part)
        files.write_text(staging / EXCERPT_FILE, _first_bytes("\n\n".join(held_out), _EXCERPT_BYTES))
    held_out_size = sum(len(text.encode()) for text in held_out)
    return SplitSummary(
        train=len(train),
        validation=len(held_out),
        train_bytes=total - held_out_size,
        validation_bytes=held_out_size,
        part_chars=part_chars,
        copies=len(documents) - len(ordered),
        left_out=tuple(left_out),
        is_whole=is_whole,
    )


def _read(paths: Sequence[Path], max_bytes: int) -> tuple[list[str], bool]:
    """The documents of the files, up to so many bytes of text, and whether that is all."""
    documents, left = [], max_bytes
    with byte_progress("reading", sum(path.stat().st_size for path in paths)) as advance:
        for path in paths:
            for pieces in documents_of(path, advance):
                taken = []
                for piece in pieces:
                    taken.append(piece)
                    left -= len(piece.encode())
                    if left < 0:
                        break
                text = "".join(taken)
                if left < 0:
                    size = len(text.encode()) + left
                    return [*documents, _first_bytes(text, size)] if size else documents, False
                if text.strip():
                    documents.append(text)
    return documents, True


def _first_bytes(text: str, count: int) -> str:
    """Its beginning of at most so many UTF-8 bytes."""
    return text.encode()[:count].decode(errors="ignore")


def _cut_where_few(documents: list[str]) -> tuple[list[str], int]:
    """The documents, or where they are few their parts; and the most characters of a part then, else 0."""
    few = len(documents) < FEW_DOCUMENTS
    size = sum(map(len, documents)) // PARTS
    most = min(max(size, PART_CHARS.start), PART_CHARS.stop - 1) if few else MOST_CHARS
    parts = [part for text in documents for part in cut([text], most) if part.strip()]
    return parts, most if few and len(parts) > len(documents) else 0


def _shuffled(documents: Iterable[str], seed: int) -> list[str]:
    """Each different document once, in an order that is the seed's and its own, whatever the others are."""
    by_digest = {hashlib.sha256(f"{seed}:{text}".encode()).digest(): text for text in documents}
    return [by_digest[digest] for digest in sorted(by_digest)]


def _divided(documents: Sequence[str], target: float) -> tuple[list[str], list[str]]:
    """Those that are held out, the first ones until they have `target` bytes, at most half of all; and the others.

    One with which they would have twice as many is passed over; where all are as long, the shortest is held out.
    """
    held_out, others, size = [], [], 0
    for text in documents:
        num_bytes = len(text.encode())
        if size < target and size + num_bytes < 2 * target:
            held_out.append(text)
            size += num_bytes
        else:
            others.append(text)
    if not held_out:
        shortest = min(others, key=len)
        held_out.append(shortest)
        others.remove(shortest)
    return held_out, others
