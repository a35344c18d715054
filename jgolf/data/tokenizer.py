"""What a tokenizer is, and finding and reading one: SentencePiece, the same over CaseOps, fused or not, or bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from jgolf.data.pure_bytes import MOST_BYTES, ByteTokenizer, described
from jgolf.data.sentence_piece import sentence_piece_tokenizer
from jgolf.errors import DataError

_MAX_VOCAB_SIZE = 1 << 16  # shards hold 16-bit ids
_DATASET = "fineweb10B_"  # how folders of published shards begin; the variant follows


class Tokenizer(Protocol):
    """Text to ids and back, and the bytes of text that ids stand for.

    Attributes:
      path: its file.
      model_bytes: what is in it; a folder of shards holds a copy.
      fingerprint: SHA-256 of these, in hexadecimal.
      vocab_size: number of ids.
      bos_id: the id that stands before every document.
      table_fault: why `target_bytes` cannot be believed, to go on from the tokenizer's name ("has no piece …");
        empty where it can. Text of such a tokenizer is scored only with its bytes counted when it was packed.
      counts_ends: whether `encode_with_bytes` counts what is stripped at a text's ends, too. The challenge's counts
        of CaseOps texts leave it out.
    """

    path: Path
    model_bytes: bytes

    @property
    def fingerprint(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def table_fault(self) -> str: ...

    @property
    def counts_ends(self) -> bool: ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS.

        Raises:
          DataError: the text has a byte whose id stands for something else in this tokenizer.
        """

    def encode_with_bytes(self, text: str) -> tuple[list[int], list[int]]:
        """`encode`'s ids, and how many bytes of `text` itself each stands for, what got lost of it included."""

    def written_and_kept(self, text: str, ids: list[int]) -> tuple[str, str]:
        """`text` as it is written to be cut into pieces, and that as its ids tell it: equal where nothing is lost."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids, as far as they tell it; BOS and its like have none."""

    def target_bytes(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Bytes of each target as the challenge counts them, from the token before it: int32, of the common shape."""


def load_tokenizer(path: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """Reads a tokenizer; its kind is told by what the file holds.

    Args:
      path: a SentencePiece .model file, or a byte tokenizer's .json.
      vocab_size: number of pieces that it must have, where one is expected.

    Raises:
      DataError: the file cannot be read, is no tokenizer, has another number of pieces, or has no BOS.
    """
    path = Path(path)
    try:
        model_bytes = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror or error}") from None
    if not model_bytes:
        raise DataError(f"{path}: an empty file, expected a SentencePiece model; train one with `jgolf data tokenizer`")
    is_bytes = described(model_bytes) is not None
    tokenizer = ByteTokenizer(path, model_bytes) if is_bytes else sentence_piece_tokenizer(path, model_bytes)
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, expected {vocab_size}: take the tokenizer that "
            "the shards were packed with, or set model.vocab_size to its size, or to 0, which means that"
        )
    if tokenizer.vocab_size > _MAX_VOCAB_SIZE:
        raise DataError(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} pieces; shards hold up to {_MAX_VOCAB_SIZE:,}"
        )
    if tokenizer.bos_id < 0:
        raise DataError(f"{path}: the tokenizer has no BOS piece, which stands before every document in a shard")
    return tokenizer


def tokenizers_in(folder: Path) -> list[Path]:
    """The tokenizer files of a folder, sorted: every `*.model`, and every `*.json` that is a byte tokenizer."""
    return sorted([*folder.glob("*.model"), *(path for path in folder.glob("*.json") if _is_byte_tokenizer(path))])


def _is_byte_tokenizer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return described(file.read(MOST_BYTES + 1)) is not None
    except OSError:
        return False


def published_name(variant: str) -> str | None:
    """The file name of the tokenizer of a published variant, such as sp1024; None where the variant tells none."""
    if variant == "byte260":
        return "fineweb_pure_byte_260.json"
    match = re.fullmatch(r"sp(\d+)((?:_\w+)?)", variant)
    return f"fineweb_{match[1]}_bpe{match[2]}.model" if match else None


def find_tokenizer(data_dir: str | Path, explicit: str | Path = "") -> Path:
    """The tokenizer of a data folder.

    Args:
      data_dir: the folder of the shards.
      explicit: a path that the user gave; it wins.

    Returns:
      `explicit`, or the only tokenizer in `data_dir`, or in its ../../tokenizers the only one or that of the
      variant which the folder's name tells.

    Raises:
      DataError: there is none, or more than one to choose from.
    """
    if explicit:
        if not Path(explicit).is_file():
            raise DataError(f"{explicit}: no such tokenizer file")
        return Path(explicit)
    folders = (Path(data_dir), Path(data_dir) / ".." / ".." / "tokenizers")
    for folder in folders:
        found = tokenizers_in(folder)
        if folder is folders[1] and len(found) > 1:
            own = published_name(Path(data_dir).resolve().name.removeprefix(_DATASET))
            found = [path for path in found if path.name == own] or found
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise DataError(f"{folder}: {len(found)} tokenizers ({names}): say which with --tokenizer FILE")
    raise DataError(f"no tokenizer (*.model) in {folders[0]} or {folders[1]}: name it with --tokenizer FILE")
