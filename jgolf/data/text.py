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
      bytes: what each token stands for, BOS for 0; None for training text, whose bytes nobody counts.
    """

    tokens: UInt16[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " documents"]
    bytes: UInt16[np.ndarray, " tokens"] | None = None

    @classmethod
    def of(cls, tokens: np.ndarray, bos_id: int, num_bytes: np.ndarray | None = None) -> Text:
        """The text of a stream of tokens, whose documents begin with BOS."""
        starts = np.flatnonzero(tokens == bos_id)
        if not len(starts) or starts[0]:
            starts = np.concatenate([[0], starts])
        return cls(tokens, starts, num_bytes)

    @property
    def target_bytes(self) -> UInt16[np.ndarray, " targets"]:
        """Bytes of each of the N − 1 targets."""
        if self.bytes is None:
            raise ValueError("the bytes of this text were not counted")
        return self.bytes[1:]

    def first(self, count: int) -> Text:
        """Its first tokens, or all if it has fewer."""
        starts = self.starts[: np.searchsorted(self.starts, count)]
        return Text(self.tokens[:count], starts, None if self.bytes is None else self.bytes[:count])


def read_text(paths: Sequence[str | Path], tokenizer: Tokenizer, max_tokens: int = 0) -> Text:
    """Reads shards, and the sidecars beside them that count the bytes of each token.

    Without sidecars the tokenizer's tables count, as the challenge does.

    Args:
      paths: the shards, in order. A sidecar among them goes with its shard.
      tokenizer: what they were packed with.
      max_tokens: read no more than this many; 0 for all.

    Raises:
      DataError: a shard or a sidecar cannot be used or does not belong to the other; some shards have sidecars
        and some have not; none has, and the tokenizer's tables cannot be believed.
    """
    shards = without_sidecars(paths)
    stream = TokenStream(shards, tokenizer.vocab_size)
    tokens = stream.take(0, min(len(stream), max_tokens) if max_tokens else len(stream))
    if not counted_beside(shards, tokenizer):
        return Text.of(tokens, tokenizer.bos_id, table_bytes(tokens, tokenizer))
    counts = [sidecar_bytes(path, tokenizer.bos_id) for path in shards]
    return Text.of(tokens, tokenizer.bos_id, np.concatenate(counts)[: len(tokens)])


def counted_beside(shards: Sequence[Path], tokenizer: Tokenizer) -> bool:
    """Whether the bytes of the shards' tokens are counted in sidecars beside them, rather than by the tokenizer.

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
        wrong = np.flatnonzero((tokens[piece] == bos_id) & (counts[piece] > 0))
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
