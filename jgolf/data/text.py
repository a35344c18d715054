"""A text that is scored: its tokens, where its documents begin, and how many bytes each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt16

from jgolf.data.shards import TokenStream, open_shard, refuse_sidecar, sidecar_of
from jgolf.data.tokenizer import Tokenizer
from jgolf.errors import DataError

_COUNTED_AT_ONCE = 1 << 22  # tokens; bounds the memory that the tables' look-ups take


@dataclass(frozen=True)
class Text:
    """N tokens, of which all but the first are predicted.

    Attributes:
      tokens: their ids.
      starts: positions at which a document begins, rising; the first is 0, also where a text begins in the
        middle of a document.
      bytes: what each token stands for as the challenge counts it, BOS for 0: what `val_bpb` is over. None for
        training text, whose bytes nobody counts.
      original: what each token stands for of the documents as they were before a tokenizer changed them; None where
        nobody counted that when the text was packed.
    """

    tokens: UInt16[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " documents"]
    bytes: UInt16[np.ndarray, " tokens"] | None = None
    original: UInt16[np.ndarray, " tokens"] | None = None

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        bos_id: int,
        num_bytes: np.ndarray | None = None,
        original: np.ndarray | None = None,
    ) -> Text:
        """The text of a stream of tokens, whose documents begin with BOS."""
        starts = np.flatnonzero(tokens == bos_id)
        if not len(starts) or starts[0]:
            starts = np.concatenate([[0], starts])
        return cls(tokens, starts, num_bytes, original)

    @property
    def target_bytes(self) -> UInt16[np.ndarray, " targets"]:
        """Bytes of each of the N − 1 targets, as the challenge counts them."""
        if self.bytes is None:
            raise ValueError("the bytes of this text were not counted")
        return self.bytes[1:]

    @property
    def target_original(self) -> UInt16[np.ndarray, " targets"] | None:
        """Bytes of the documents as they were that each of the N − 1 targets stands for, where that is known."""
        return None if self.original is None else self.original[1:]

    def first(self, count: int) -> Text:
        """Its first tokens, or all if it has fewer."""
        starts = self.starts[: np.searchsorted(self.starts, count)]
        counts = (None if counts is None else counts[:count] for counts in (self.bytes, self.original))
        return Text(self.tokens[:count], starts, *counts)


def read_text(paths: Sequence[str | Path], tokenizer: Tokenizer, max_tokens: int = 0) -> Text:
    """Reads shards, and the sidecars beside them that count the original's bytes of each token.

    The challenge counts by the tokenizer's tables, whether there are sidecars or not; where these cannot be believed,
    as over CaseOps, it counts by the sidecars.

    Args:
      paths: the shards, in order. A sidecar among them goes with its shard.
      tokenizer: what they were packed with.
      max_tokens: read no more than this many; 0 for all.

    Raises:
      DataError: a shard or a sidecar cannot be used or does not belong to the other; some shards have sidecars
        and some have not; none has, and the tokenizer's tables cannot be believed; the tokens stand for no text.
    """
    shards = without_sidecars(paths)
    stream = TokenStream(shards, tokenizer.vocab_size)
    tokens = stream.take(0, min(len(stream), max_tokens) if max_tokens else len(stream))
    original = None
    if counted_beside(shards, tokenizer):
        original = np.concatenate([sidecar_bytes(path, tokenizer.bos_id) for path in shards])[: len(tokens)]
    counted = original if tokenizer.table_fault else table_bytes(tokens, tokenizer)
    if len(tokens) > 1 and not counted[1:].any():
        raise DataError(
            f"{shards[0]}: its {len(tokens):,} tokens stand for no byte of text, so they cannot be scored: pack "
            "documents that hold text"
        )
    return Text.of(tokens, tokenizer.bos_id, counted, original)


def counted_beside(shards: Sequence[Path], tokenizer: Tokenizer) -> bool:
    """Whether the original's bytes of the shards' tokens are counted in sidecars beside them.

    Raises:
      DataError: only some have sidecars; or none has, and the tokenizer's tables cannot be believed.
    """
    expected = [sidecar_of(path) for path in shards]
    missing = [path for path, sidecar in zip(shards, expected, strict=True) if sidecar is None or not sidecar.is_file()]
    if missing and len(missing) < len(shards):
        raise DataError(
            f"{missing[0]}: no byte counts are beside it, which other shards of the same text have: download or pack "
            "the set again"
        )
    if missing and tokenizer.table_fault:
        name = (sidecar_of(missing[0]) or Path("NAME_val_bytes_000000.bin")).name
        raise DataError(
            f"{missing[0]}: its bytes cannot be counted without {name} beside it, because the tokenizer "
            f"{tokenizer.path} {tokenizer.table_fault}; download the set with its byte counts, or pack the documents "
            "again with --split val"
        )
    return not missing


def without_sidecars(paths: Sequence[str | Path]) -> list[Path]:
    """The shards among `paths`: a pattern such as *_val_*.bin matches the sidecars beside them, too.

    Raises:
      DataError: there is a sidecar without its shard, so it was taken for one.
    """
    shards = [Path(path) for path in paths]
    sidecars = {sidecar_of(path) for path in shards}
    rest = [path for path in shards if path not in sidecars]
    for path in rest:
        refuse_sidecar(path)
    return rest


def sidecar_bytes(path: Path, bos_id: int) -> np.ndarray:
    """Bytes of each token of a shard, by the sidecar beside it: uint16, memory-mapped.

    Raises:
      DataError: the sidecar cannot be read, or does not belong to the shard.
    """
    sidecar = sidecar_of(path)
    tokens, counts = open_shard(path), open_shard(sidecar)
    if len(tokens) != len(counts):
        raise DataError(
            f"{sidecar}: counts the bytes of {len(counts):,} tokens, expected {len(tokens):,}, those of {path}: the "
            "two do not belong together; download or pack them again"
        )
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        piece = slice(start, start + _COUNTED_AT_ONCE)
        following = np.append(tokens[start + 1 : start + _COUNTED_AT_ONCE + 1], bos_id)[: len(tokens[piece])]
        # BOS stands for a whole document that has no piece, being white space: then another BOS or the end follows.
        wrong = np.flatnonzero((tokens[piece] == bos_id) & (following != bos_id) & (counts[piece] > 0))
        if len(wrong):
            raise DataError(
                f"{sidecar}: token {start + wrong[0]:,} of {path} begins a document, expected 0 bytes for it, found "
                f"{counts[start + wrong[0]]}: these are no byte counts of that shard; download or pack them again"
            )
    return counts


def table_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of each token as the tokenizer's tables count them, the first as if BOS stood before it: uint16."""
    counted = np.empty(len(tokens), np.uint16)
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        piece = tokens[start : start + _COUNTED_AT_ONCE]
        before = tokenizer.bos_id if start == 0 else tokens[start - 1]
        previous = np.concatenate([[before], piece[:-1]]).astype(tokens.dtype)
        counted[start : start + len(piece)] = tokenizer.target_bytes(previous, piece)
    return counted
