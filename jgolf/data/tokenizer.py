"""SentencePiece tokenizers, and how many bytes of text each of their pieces stands for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from jgolf.errors import DataError

SPACE = "▁"  # how SentencePiece writes a space
_MAX_VOCAB_SIZE = 1 << 16  # shards hold 16-bit ids


@dataclass(frozen=True)
class ByteTables:
    """What a target token counts for in bits per byte.

    `base_bytes` int16[vocab]: bytes of the piece's text without its leading space.
    `has_leading_space` bool[vocab]: the piece starts with a space.
    `is_boundary` bool[vocab]: a control, unknown or unused piece, after which a leading space is no text.
    """

    base_bytes: np.ndarray
    has_leading_space: np.ndarray
    is_boundary: np.ndarray

    def target_bytes(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Bytes of text of each target, given the token before it: int32, of the arrays' common shape."""
        spaces = self.has_leading_space[targets] & ~self.is_boundary[previous]
        return self.base_bytes[targets].astype(np.int32) + spaces


class Tokenizer:
    """A SentencePiece model: text to ids and back."""

    def __init__(self, path: str | Path, model_bytes: bytes):
        self.path = Path(path)
        self.model_bytes = model_bytes
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise DataError(
                f"{path}: not a SentencePiece model ({error}); train one with `jgolf data tokenizer`"
            ) from None

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.vocab_size()

    @property
    def bos_id(self) -> int:
        """Id of the piece that stands before every document."""
        return self._processor.bos_id()

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of `text`, without BOS."""
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control pieces have none."""
        return self._processor.decode([int(token) for token in ids])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @functools.cached_property
    def byte_tables(self) -> ByteTables:
        """The byte counts of its pieces."""
        processor = self._processor
        base_bytes = np.zeros(self.vocab_size, np.int16)
        has_leading_space = np.zeros(self.vocab_size, bool)
        is_boundary = np.zeros(self.vocab_size, bool)
        for token in range(self.vocab_size):
            if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
                is_boundary[token] = True
            elif processor.is_byte(token):
                base_bytes[token] = 1
            else:
                piece = processor.id_to_piece(token)
                has_leading_space[token] = piece.startswith(SPACE)
                base_bytes[token] = len(piece.removeprefix(SPACE).encode())
        return ByteTables(base_bytes, has_leading_space, is_boundary)


def load_tokenizer(path: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """Reads a SentencePiece model.

    Args:
      path: the .model file.
      vocab_size: number of pieces that it must have, where one is expected.

    Raises:
      DataError: the file cannot be read, is no SentencePiece model, has another number of pieces, or has no BOS.
    """
    path = Path(path)
    try:
        model_bytes = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror or error}") from None
    if not model_bytes:
        raise DataError(f"{path}: an empty file, expected a SentencePiece model; train one with `jgolf data tokenizer`")
    tokenizer = Tokenizer(path, model_bytes)
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


def find_tokenizer(data_dir: str | Path, explicit: str | Path = "") -> Path:
    """The tokenizer of a data folder.

    Args:
      data_dir: the folder of the shards.
      explicit: a path that the user gave; it wins.

    Returns:
      `explicit`, or the only *.model in `data_dir`, or the only one in its ../../tokenizers.

    Raises:
      DataError: there is none, or more than one to choose from.
    """
    if explicit:
        if not Path(explicit).is_file():
            raise DataError(f"{explicit}: no such tokenizer file")
        return Path(explicit)
    folders = (Path(data_dir), Path(data_dir) / ".." / ".." / "tokenizers")
    for folder in folders:
        models = sorted(folder.glob("*.model"))
        if len(models) == 1:
            return models[0]
        if models:
            names = ", ".join(model.name for model in models)
            raise DataError(f"{folder}: {len(models)} tokenizers ({names}): say which with --tokenizer FILE")
    raise DataError(f"no tokenizer (*.model) in {folders[0]} or {folders[1]}: name it with --tokenizer FILE")
