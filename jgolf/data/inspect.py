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

    Bytes are those that the challenge counts, of the text as the tokenizer keeps it, and, where a sidecar counts them,
    those of the original text, too.

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
        figures |= _bytes_a_token(path, tokens, tokenizer)
    return figures


def _bytes_a_token(path: Path, tokens: np.ndarray, tokenizer: Tokenizer) -> dict[str, str]:
    """Bytes that a token stands for, as the challenge counts them and of the original text, where they are known."""
    sidecar, fault = sidecar_of(path), tokenizer.table_fault
    has_sidecar = sidecar is not None and sidecar.is_file()
    original = _mean(sidecar_bytes(path, tokenizer.bos_id)) if has_sidecar else ""
    if fault:
        unknown = f"not known without byte counts beside the shard: the tokenizer {fault}"
        return {"bytes a token": original or unknown}
    counted = {"bytes a token": _mean(table_bytes(tokens, tokenizer))}
    return counted | ({"original bytes a token": original} if has_sidecar else {})


def _mean(counts: np.ndarray) -> str:
    return f"{counts.sum(dtype=np.int64) / len(counts):.4f}"
