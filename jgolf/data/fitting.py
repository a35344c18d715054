"""Which tokenizer fits a text: its size, and whether the challenge's ordinary one would change the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from jgolf.data.changes import Changes
from jgolf.data.sentence_piece import SentencePieceTokenizer
from jgolf.data.text import table_bytes
from jgolf.data.train_tokenizer import COVERAGE, LEARNT_CHARS, train_tokenizer
from jgolf.errors import DataError

SIZES = (512, 1024, 2048, 4096, 8192)
"""Numbers of pieces to choose from; the challenge's published tokenizers have the second and the last."""
BYTES_FOR_A_PIECE = 1000
SAMPLE_BYTES = 2_000_000
_OWN_PIECES = 260  # 256 bytes, BOS and its like
_ROOM = 1.25  # pieces for each that a character takes


@dataclass(frozen=True)
class Fit:
    """A tokenizer that fits.

    Attributes:
      vocab_size: number of pieces.
      lossless: whether it has to keep what the ordinary one changes.
      pure_bytes: whether bytes fit best: the text has too many different characters, or too little to learn.
      reason: why, in words.
    """

    vocab_size: int
    lossless: bool
    pure_bytes: bool
    reason: str


def first_texts(texts: Iterable[str], most_bytes: int) -> list[str]:
    """The first texts, up to so many UTF-8 bytes of what is learnt of each; one at least where there is one."""
    found, size = [], 0
    for text in texts:
        size += len(text[:LEARNT_CHARS].encode())
        if found and size > most_bytes:
            break
        found.append(text)
    return found


def fitting(sample: Sequence[str], text_bytes: int, most_pieces: int) -> Fit:
    """Chooses by trial on a sample, learning as `jgolf data tokenizer` does.

    As many pieces as the text has thousands of bytes, a power of two; more where the different characters need
    them. Lossless where the ordinary tokenizer changes a single byte of the sample, or counts it wrong.

    Args:
      sample: documents, as `first_texts` takes them.
      text_bytes: UTF-8 bytes of the whole text.
      most_pieces: what is the use of more depends on the network.
    """
    wanted = max([size for size in SIZES if size <= min(text_bytes / BYTES_FOR_A_PIECE, most_pieces)], default=SIZES[0])
    needed = _ROOM * (_OWN_PIECES + _different_characters(sample))
    enough = [size for size in SIZES if size >= needed]
    upward = [size for size in enough if size >= wanted][:1]
    for size in [*upward, *reversed([size for size in enough if size < wanted])]:
        try:
            changed = _changed(sample, size)
            if changed:
                train_tokenizer(_learnt(sample), size, cut=True, lossless=True)
        except DataError:
            continue  # too little text for so many pieces
        kept = "the ordinary tokenizer keeps every byte of the sample"
        return Fit(size, bool(changed), False, f"lossless, since {changed}" if changed else kept)
    why = "too many different characters" if not enough else "too little to learn from"
    return Fit(_OWN_PIECES, False, True, f"plain bytes: the text has {why} for pieces")


def _learnt(sample: Iterable[str]) -> Iterable[str]:
    return (text[:LEARNT_CHARS] for text in sample)


def _different_characters(sample: Iterable[str]) -> int:
    """How many characters, the most frequent, make up what a tokenizer has to cover of a text."""
    counts = sorted(Counter("".join(sample)).values(), reverse=True)
    enough = COVERAGE * sum(counts)
    return sum(before < enough for before in accumulate([0, *counts[:-1]]))


def _changed(sample: Sequence[str], size: int) -> str:
    """What an ordinary tokenizer of so many pieces would change of the sample, in words; empty for nothing.

    Raises:
      DataError: there is too little text for it.
    """
    tokenizer = SentencePieceTokenizer("an ordinary tokenizer", train_tokenizer(_learnt(sample), size))
    changes = Changes()
    for number, text in enumerate(sample):
        ids, num_bytes = tokenizer.encode(text), len(text.encode())
        changes.look(str(number), num_bytes, *tokenizer.written_and_kept(text, ids))
        counted = table_bytes(np.array([tokenizer.bos_id, *ids], np.uint16), tokenizer).sum(dtype=np.int64)
        changes.count("miscounted", str(number), int(counted) - num_bytes)
    if not changes.changed.documents and not changes.miscounted.documents:
        return ""
    kinds = sorted(changes.kinds.items(), key=lambda item: -item[1].bytes)
    listed = "; ".join(f"{kind}: {affected.bytes / changes.text_bytes:.2%} of the bytes" for kind, affected in kinds)
    return f"the ordinary tokenizer changes the text ({listed or 'it counts other bytes than there are'})"
