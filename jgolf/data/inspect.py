"""Looking into shards: `jgolf data inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from jgolf.data.shards import BOS_ID, MAGIC, VERSION, open_shard, refuse_sidecar, shards_in, sidecar_of
from jgolf.data.text import sidecar_bytes, table_bytes
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import DataError
from jgolf.progress import plain_console


def inspect(
    shards: tyro.conf.Positional[tuple[Path, ...]],
    tokenizer: Path | None = None,
    excerpt_tokens: int = 160,
) -> None:
    """Show what shards hold: header, tokens, documents, bytes a token, and an excerpt.

    Bytes are those that bits per byte counts: by the shard's sidecar where it has one, and otherwise those of the text
    as the tokenizer keeps it, which makes one space of several.

    Args:
      shards: Shard files, or folders of them.
      tokenizer: Its file; by default the one in, or beside, the first shard's folder, if there is one.
      excerpt_tokens: Tokens that are decoded from the start of each shard.
    """
    if not shards:
        raise DataError("no shards given: name at least one .bin file, or a folder of them")
    shards = tuple(shard for path in shards for shard in (shards_in(path) if path.is_dir() else [path]))
    if not shards:
        raise DataError("no shards (*.bin) in the folders given")
    if excerpt_tokens < 0:
        raise DataError(f"--excerpt-tokens {excerpt_tokens}: expected 0 or more")
    loaded = _tokenizer(shards[0].parent, tokenizer)
    console = plain_console()
    for path in shards:
        refuse_sidecar(path)
        tokens = open_shard(path, loaded.vocab_size if loaded else None)
        table = Table(box=None, show_header=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        table.add_row("header", f"magic {MAGIC}, version {VERSION}, {len(tokens):,} tokens")
        for name, value in _figures(path, tokens, loaded).items():
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


def _figures(path: Path, tokens: np.ndarray, tokenizer: Tokenizer | None) -> dict[str, str]:
    """What there is to count."""
    bos_id = tokenizer.bos_id if tokenizer else BOS_ID
    figures = {"documents": f"{np.count_nonzero(tokens == bos_id):,}"}
    if not len(tokens):
        return figures
    figures["ids"] = f"{tokens.min()} to {tokens.max()}"
    if tokenizer:
        text_bytes = _text_bytes(path, tokens, tokenizer)
        figures["bytes a token"] = text_bytes if isinstance(text_bytes, str) else f"{text_bytes / len(tokens):.4f}"
    return figures


def _text_bytes(path: Path, tokens: np.ndarray, tokenizer: Tokenizer) -> int | str:
    """Bytes that the tokens stand for, or why nobody knows."""
    sidecar = sidecar_of(path)
    if sidecar is not None and sidecar.is_file():
        return int(sidecar_bytes(path, tokenizer.bos_id).sum(dtype=np.int64))
    if tokenizer.table_fault:
        return f"not known without byte counts beside the shard: the tokenizer {tokenizer.table_fault}"
    return int(table_bytes(tokens, tokenizer).sum(dtype=np.int64))
