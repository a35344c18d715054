"""Shards of CaseOps text with each space and the case mark after it as one token: `jgolf data fuse`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import tyro

from jgolf import files
from jgolf.data.sentence_piece import FUSED_MARKS, SPACE, FusedTokenizer, fused_tokenizer
from jgolf.data.shard_folder import MOST_COUNTED, Piece, Split, check_shard_tokens, new_shards, write_shards
from jgolf.data.shards import TOKEN_TYPE, find_shards, open_shard, shards_in, sidecar_of
from jgolf.data.text import counted_beside, sidecar_bytes
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import DataError
from jgolf.progress import byte_progress, counted

_FUSED_AT_ONCE = 1 << 20  # tokens; bounds the memory


@dataclass
class Fused:
    """What became of a split.

    Attributes:
      before, after: tokens.
      pairs: name of the mark → how many of it became one token with the space before them.
      num_bytes: those of all tokens, which stay; None where nobody counted them.
      shards: that were written.
    """

    before: int = 0
    after: int = 0
    pairs: Counter[str] = field(default_factory=Counter)
    num_bytes: int | None = None
    shards: int = 0

    def __str__(self) -> str:
        pairs = ", ".join(f"{self.pairs[name]:,} of {SPACE}⟨{name}⟩" for name in FUSED_MARKS)
        held = "" if self.num_bytes is None else f"; {self.num_bytes:,} bytes, as before"
        return (
            f"{self.before:,} tokens became {self.after:,} ({self.after / self.before - 1:+.2%}): {pairs}{held}; "
            f"{counted(self.shards, 'shard')}"
        )


def fuse(
    data: tyro.conf.Positional[Path],
    out: Path,
    tokenizer: Path | None = None,
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
) -> None:
    """Make of CaseOps shards such as have each space and the case mark after it as one token.

    The fused tokenizer is put beside them, so that all else works as with any other. What comes out is what
    `jgolf data pack` makes of the same documents with that tokenizer.

    Args:
      data: Folder of the shards, with their sidecars; both splits are taken, in the order of their names.
      out: Folder for the shards, and for the tokenizer.
      tokenizer: That of the shards; by default the one in, or beside, their folder.
      shard_tokens: Tokens in a shard; the last may hold fewer.
      overwrite: Replace shards of these splits that are already there.
    """
    for split, found in fuse_shards(data, out, tokenizer, shard_tokens, overwrite).items():
        print(f"{split}: {found}")
    print(f"{out}: complete; train on it with --data {out}")


def fuse_shards(
    data_dir: str | Path,
    out_dir: str | Path,
    tokenizer_path: str | Path | None = None,
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
) -> dict[Split, Fused]:
    """Fuses all shards of a folder; a pair may be cut by the end of a shard, as the shards of a split are one stream.

    Memory is bounded whatever their size. All shards and the tokenizer appear when they are complete, or none does.

    Returns:
      What became of each split that is there.

    Raises:
      DataError: the shards cannot be used, hold ids of fused tokens already, or have no sidecars where they should;
        their tokenizer cannot be fused; or `out_dir` holds such shards or another tokenizer already.
      JgolfError: `out_dir` cannot be written to.
    """
    data_dir, out_dir = Path(data_dir), Path(out_dir)
    check_shard_tokens(shard_tokens)
    files.settle(data_dir)
    shards = {split: found for split in get_args(Split) if (found := shards_in(data_dir, split))}
    if not shards:
        find_shards(data_dir, "train")  # raises, and says how to make them
    if out_dir.resolve() == data_dir.resolve():
        raise DataError(f"--out {out_dir}: holds the shards that are to be read: choose another folder")
    plain = load_tokenizer(find_tokenizer(data_dir, tokenizer_path or ""))
    tokenizer = fused_tokenizer(plain, out_dir / f"{plain.path.stem}_fused.model")
    told: dict[Split, Fused] = {}
    with new_shards(out_dir, list(shards), tokenizer, overwrite) as staging:
        for split, paths in shards.items():
            told[split] = found = Fused(num_bytes=0 if _have_sidecars(paths, split, plain) else None)
            with byte_progress(f"fusing {split}", sum(path.stat().st_size for path in paths)) as advance:
                found.shards = len(write_shards(staging, split, _fused(paths, tokenizer, found, advance), shard_tokens))
            if not found.shards:
                raise DataError(f"{data_dir}: its {split} shards hold no tokens; pack or download them again")
    return told


def _have_sidecars(shards: Sequence[Path], split: Split, tokenizer: Tokenizer) -> bool:
    """Whether bytes are counted beside the shards, as they have to be for validation; DataError if only beside some."""
    are_there = any((sidecar := sidecar_of(path)) and sidecar.is_file() for path in shards)
    return (are_there or split == "val") and counted_beside(shards, tokenizer)


def _fused(
    shards: Sequence[Path], tokenizer: FusedTokenizer, found: Fused, advance: Callable[[int], None]
) -> Iterator[Piece]:
    """The fused tokens of all shards; `found` learns of them, `advance` how many bytes of the shards are done."""
    has_counts = found.num_bytes is not None
    rest = Piece(np.empty(0, TOKEN_TYPE), np.empty(0, np.int64) if has_counts else None)
    for path in shards:
        tokens = open_shard(path, tokenizer.vocab_size)
        counts = sidecar_bytes(path, tokenizer.bos_id) if has_counts else None
        found.before += len(tokens)
        for start in range(0, len(tokens), _FUSED_AT_ONCE):
            piece = Piece(tokens, counts)[start : start + _FUSED_AT_ONCE]
            if (taken := tokenizer.find_fused(piece.tokens)) is not None:
                raise DataError(
                    f"{path}: token {start + taken:,} has the id {piece.tokens[taken]}, which is to be that of a fused "
                    "token: the shards are fused already, or their text holds that byte, and then they cannot be"
                )
            piece = Piece(*(None if new is None else np.append(old, new) for old, new in zip(rest, piece, strict=True)))
            end = len(piece.tokens) - (piece.tokens[-1] == tokenizer.space_id)  # a mark may follow
            whole, rest = piece[:end], piece[end:]
            ids, starts = tokenizer.fuse(whole.tokens)
            sums = np.add.reduceat(whole.num_bytes, starts) if has_counts else None
            yield _counted(path, Piece(ids, sums), tokenizer, found)
            advance(whole.tokens.nbytes)
    yield _counted(path, rest, tokenizer, found)


def _counted(path: Path, piece: Piece, tokenizer: FusedTokenizer, found: Fused) -> Piece:
    """The piece, as it is to be written, of which `found` has learnt."""
    found.after += len(piece.tokens)
    for name, one in zip(FUSED_MARKS, tokenizer.fused, strict=True):
        found.pairs[name] += np.count_nonzero(piece.tokens == one)
    if piece.num_bytes is None:
        return piece
    if (most := piece.num_bytes.max(initial=0)) > MOST_COUNTED:
        raise DataError(
            f"{sidecar_of(path)}: a fused token would stand for {most:,} bytes, but a sidecar counts up to "
            f"{MOST_COUNTED:,}: shorten the white space in that document, and pack it again"
        )
    found.num_bytes += int(piece.num_bytes.sum())
    return Piece(piece.tokens, piece.num_bytes.astype(TOKEN_TYPE))
