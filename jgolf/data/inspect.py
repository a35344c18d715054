"""Looking into shards: `jgolf data inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from jgolf.data.shards import MAGIC, VERSION, open_shard
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import DataError
from jgolf.progress import plain_console

_BOS_ID = 1  # in the challenge's tokenizers; used where there is no tokenizer to ask
_COUNTED_AT_ONCE = 1 << 22  # tokens


def inspect(
    shards: tyro.conf.Positional[tuple[Path, ...]],
    tokenizer: Path | None = None,
    excerpt_tokens: int = 160,
) -> None:
    """Show what shards hold: header, tokens, documents, bytes a token, and an excerpt.

    Bytes are those of the text as the tokenizer keeps it, which bits per byte counts; it makes one space of several.

    Args:
      shards: Shard files, or folders of them.
      tokenizer: SentencePiece model; by default the one in, or beside, the first shard's folder, if there is one.
      excerpt_tokens: Tokens that are decoded from the start of each shard.
    """
    if not shards:
        raise DataError("no shards given: name at least one .bin file, or a folder of them")
    shards = tuple(shard for path in shards for shard in (sorted(path.glob("*.bin")) if path.is_dir() else [path]))
    if not shards:
        raise DataError("no shards (*.bin) in the folders given")
    if excerpt_tokens < 0:
        raise DataError(f"--excerpt-tokens {excerpt_tokens}: expected 0 or more")
    loaded = _tokenizer(shards[0].parent, tokenizer)
    console = plain_console()
    for path in shards:
        tokens = open_shard(path, loaded.vocab_size if loaded else None)
        table = Table(box=None, show_header=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        table.add_row("header", f"magic {MAGIC}, version {VERSION}, {len(tokens):,} tokens")
        for name, value in _figures(tokens, loaded).items():
            table.add_row(name, value)
        if loaded:
            table.add_row("excerpt", Text(loaded.decode(tokens[:excerpt_tokens])))
        console.print(Text(str(path), style="bold"), soft_wrap=True)
        console.print(table)
    if loaded is None:
        console.print("no tokenizer in the shards' folder: name one with --tokenizer to see bytes and text")


def _tokenizer(folder: Path, explicit: Path | None) -> Tokenizer | None:
    if explicit is None:
        try:
            explicit = find_tokenizer(folder)
        except DataError:
            return None
    return load_tokenizer(explicit)


def _figures(tokens: np.ndarray, tokenizer: Tokenizer | None) -> dict[str, str]:
    """What there is to count, a piece at a time; bytes are those that bits per byte counts."""
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
    figures = {"documents": f"{documents:,}"}
    if len(tokens):
        figures["ids"] = f"{lowest} to {highest}"
        if tokenizer:
            figures["bytes a token"] = f"{text_bytes / len(tokens):.4f}"
    return figures
