"""Filling a folder with shards, all or nothing; the tokenizer of its shards lies beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jgolf import files
from jgolf.data.shards import TOKEN_TYPE, create_shard, sidecar_of
from jgolf.data.tokenizer import Tokenizer, tokenizers_in
from jgolf.errors import DataError

Split = Literal["train", "val"]
MOST_COUNTED = 65_535
"""Bytes that a sidecar can count for a token: its numbers have 16 bits."""


class Piece(NamedTuple):
    """Tokens that follow one another, and the bytes of each where they are counted: uint16."""

    tokens: np.ndarray
    num_bytes: np.ndarray | None

    def __getitem__(self, index: slice) -> Piece:
        return Piece(*(None if part is None else part[index] for part in tuple(self)))


@contextlib.contextmanager
def new_shards(out_dir: Path, splits: Sequence[Split], tokenizer: Tokenizer, overwrite: bool) -> Iterator[Path]:
    """Yields a folder for the shards of these splits; they and the tokenizer are in `out_dir` when the block ends.

    Raises:
      DataError: `out_dir` holds such shards already, and `overwrite` is not given, or another tokenizer.
      JgolfError: `out_dir` cannot be written to.
    """
    files.settle(out_dir)
    old_shards = sorted(path for split in splits for path in out_dir.glob(f"*_{split}_*.bin"))  # and their sidecars
    if old_shards and not overwrite:
        raise DataError(
            f"{out_dir}: already holds {len(old_shards)} {' and '.join(splits)} shards ({old_shards[0].name} …); "
            "choose another --out, or replace them with --overwrite"
        )
    has_tokenizer = _holds_tokenizer(out_dir, tokenizer)
    with files.all_or_nothing(out_dir, "-".join(splits), gone=[path.name for path in old_shards]) as staging:
        yield staging
        if not has_tokenizer:
            files.write_bytes(staging / tokenizer.path.name, tokenizer.model_bytes)


def _holds_tokenizer(out_dir: Path, tokenizer: Tokenizer) -> bool:
    """Whether `out_dir` holds this tokenizer already; another one there is an error."""
    models = tokenizers_in(out_dir)
    for model in models:
        if model.read_bytes() != tokenizer.model_bytes:
            raise DataError(
                f"{out_dir}: holds another tokenizer, {model.name}, for its shards; shards of {tokenizer.path} need "
                "another --out (or remove that file together with the shards that were packed with it)"
            )
    return bool(models)


def check_shard_tokens(shard_tokens: int) -> None:
    """Raises DataError for a number of tokens that no shard can have."""
    if shard_tokens < 1:
        raise DataError(f"--shard-tokens {shard_tokens}: expected at least 1")


def write_shards(folder: Path, split: Split, pieces: Iterator[Piece], shard_tokens: int) -> list[str]:
    """Cuts the tokens into shards of `shard_tokens`, with sidecars where bytes were counted; the shards' names."""
    shards: list[str] = []
    rest = _next_tokens(pieces)
    while len(rest.tokens):
        paths = [folder / f"fineweb_{split}_{len(shards):06d}.bin"]
        shards.append(paths[0].name)
        if rest.num_bytes is not None:
            paths.append(sidecar_of(paths[0]))
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(create_shard(path)) for path in paths]
            while len(rest.tokens) and writers[0].num_tokens < shard_tokens:
                room = shard_tokens - writers[0].num_tokens
                for writer, part in zip(writers, rest, strict=False):
                    writer.write(part[:room])
                rest = rest[room:] if len(rest.tokens) > room else _next_tokens(pieces)
    return shards


def _next_tokens(pieces: Iterator[Piece]) -> Piece:
    """The next piece that holds tokens; an empty one at the end."""
    return next((piece for piece in pieces if len(piece.tokens)), Piece(np.empty(0, TOKEN_TYPE), None))
