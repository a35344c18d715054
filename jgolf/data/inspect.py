"""Looking into shards: `jgolf data inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jgolf.data.shards import HEADER_BYTES, VERSION, open_shard
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import DataError

_BOS_ID = 1  # in the challenge's tokenizers; used where there is no tokenizer to ask
_COUNTED_AT_ONCE = 1 << 22  # tokens


def inspect(
    shards: tyro.conf.Positional[tuple[Path, ...]],
    tokenizer: Path | None = None,
    excerpt_tokens: int = 160,
) -> None:
    """Show what shards hold: header, tokens, documents, bytes a token, and an excerpt.

    Args:
      shards: Shard files.
      tokenizer: SentencePiece model; by default the one in, or beside, the first shard's folder, if there is one.
      excerpt_tokens: Tokens that are decoded from the start of each shard.
    """
    if not shards:
        raise DataError("no shards given: name at least one .bin file")
    loaded = _tokenizer(shards[0].parent, tokenizer)
    console = Console()
    table = Table("shard", box=None, header_style="bold")
    for column in ("version", "bytes", "tokens", "documents", "bytes a token", "lowest id", "highest id"):
        table.add_column(column, justify="right")
    excerpts = []
    for path in shards:
        tokens = open_shard(path, loaded.vocab_size if loaded else None)
        table.add_row(path.name, str(VERSION), f"{HEADER_BYTES + tokens.nbytes:,}", *_figures(tokens, loaded))
        if loaded:
            excerpts.append((path.name, loaded.decode(tokens[:excerpt_tokens])))
    console.print(table)
    if loaded is None:
        console.print("no tokenizer in the shards' folder: name one with --tokenizer to see bytes and text")
    for name, excerpt in excerpts:
        console.print(f"\n[bold]{name}[/bold]")
        console.print(excerpt, markup=False, highlight=False)


def _tokenizer(folder: Path, explicit: Path | None) -> Tokenizer | None:
    if explicit is None:
        try:
            explicit = find_tokenizer(folder)
        except DataError:
            return None
    return load_tokenizer(explicit)


def _figures(tokens: np.ndarray, tokenizer: Tokenizer | None) -> list[str]:
    """Tokens, documents, bytes a token, lowest and highest id, counted a piece at a time."""
    bos_id = tokenizer.bos_id if tokenizer else _BOS_ID
    documents = text_bytes = 0
    lowest, highest = 65535, 0
    previous = np.full(1, bos_id, tokens.dtype)
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        piece = tokens[start : start + _COUNTED_AT_ONCE]
        documents += np.count_nonzero(piece == bos_id)
        lowest, highest = min(lowest, int(piece.min())), max(highest, int(piece.max()))
        if tokenizer:
            before = np.concatenate([previous, piece[:-1]])
            text_bytes += int(tokenizer.byte_tables.target_bytes(before, piece).sum())
            previous = piece[-1:]
    if not len(tokens):
        return ["0", "0", "–", "–", "–"]
    bytes_a_token = f"{text_bytes / len(tokens):.4f}" if tokenizer else "–"
    return [f"{len(tokens):,}", f"{documents:,}", bytes_a_token, str(lowest), str(highest)]
