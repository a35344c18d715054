"""Token shards: the challenge's files of 16-bit tokens, memory-mapped and checked.

A shard is 256 little-endian int32, `[20240520, 1, number of tokens, 0, …]`, then the tokens as
little-endian uint16. Beside the validation shard `NAME_val_000000.bin` may lie its sidecar
`NAME_val_bytes_000000.bin`, of the same form: how many bytes of the original text each of the shard's tokens
stands for.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from jgolf import files
from jgolf.errors import DataError

MAGIC = 20240520
VERSION = 1
BOS_ID = 1
"""The token that begins a document, in every tokenizer of the challenge."""
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
TOKEN_TYPE = np.dtype("<u2")
_SPLIT = re.compile(r"_(train|val)_(?!.*_(?:train|val)_)")  # the last in a shard's name
_CHECKED_AT_ONCE = 1 << 22  # tokens; bounds the memory that a check touches at a time


def open_shard(path: str | Path, vocab_size: int | None = None) -> np.ndarray:
    """The tokens of a shard, memory-mapped: `uint16[tokens]`, read only.

    Args:
      path: the shard.
      vocab_size: when given, every id is checked to be below it.

    Raises:
      DataError: the file is missing, is no shard, is cut off, or holds an id past the vocabulary.
    """
    path = Path(path)
    if files.settle(path.parent):
        raise DataError(
            f"{path.parent}: its shards were being replaced when that was interrupted; they are complete now, but "
            "perhaps others than were named: run the command again"
        )
    try:
        file_bytes = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    num_tokens = _checked_num_tokens(path, header, file_bytes)
    if num_tokens == 0:
        return np.empty(0, TOKEN_TYPE)
    tokens = np.memmap(path, dtype=TOKEN_TYPE, mode="r", offset=HEADER_BYTES, shape=(num_tokens,))
    if vocab_size is not None:
        check_ids(path, tokens, vocab_size)
    return tokens


def _checked_num_tokens(path: Path, header: np.ndarray, file_bytes: int) -> int:
    if len(header) < HEADER_INTS:
        raise DataError(f"{path}: {file_bytes:,} bytes, shorter than a shard's header of {HEADER_BYTES:,}: not a shard")
    magic, version, num_tokens = (int(value) for value in header[:3])
    if magic != MAGIC:
        raise DataError(f"{path}: starts with {magic}, expected the magic number {MAGIC}: not a token shard")
    if version != VERSION:
        raise DataError(
            f"{path}: shard version {version}, expected {VERSION}: packed by another program; pack it again"
        )
    expected_bytes = HEADER_BYTES + TOKEN_TYPE.itemsize * num_tokens
    if num_tokens < 0 or file_bytes != expected_bytes:
        found = "cut off" if file_bytes < expected_bytes else "damaged"
        raise DataError(
            f"{path}: the header says {num_tokens:,} tokens, a file of {expected_bytes:,} bytes, but it has "
            f"{file_bytes:,}: the shard is {found}; pack or download it again"
        )
    return num_tokens


def check_ids(path: str | Path, tokens: np.ndarray, vocab_size: int) -> None:
    """Raises DataError, naming position and id, unless all `tokens` of the shard `path` are below `vocab_size`."""
    for start in range(0, len(tokens), _CHECKED_AT_ONCE):
        chunk = tokens[start : start + _CHECKED_AT_ONCE]
        if chunk.max() >= vocab_size:
            offset = int(np.argmax(chunk >= vocab_size))
            raise DataError(
                f"{path}: token {start + offset:,} has the id {int(chunk[offset])}, expected ids below {vocab_size}, "
                "the size of the vocabulary: the shard was packed with another tokenizer, or it is damaged"
            )


def write_shard(path: str | Path, tokens: np.ndarray | Sequence[int]) -> None:
    """Writes `tokens` [n], ids from 0 to 65,535, as a shard, all or nothing."""
    values = np.asarray(tokens)
    if values.ndim != 1 or (
        values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535)
    ):
        raise DataError(f"{path}: a shard holds one row of ids from 0 to 65535, found {values.dtype} {values.shape}")
    with create_shard(path) as writer:
        writer.write(values.astype(TOKEN_TYPE))


class ShardWriter:
    """Appends tokens to a shard that is being written; see `create_shard`."""

    def __init__(self, file: IO[bytes]):
        self.num_tokens = 0
        self._file = file
        self._write_header()

    def _write_header(self) -> None:
        header = np.zeros(HEADER_INTS, dtype="<i4")
        header[:3] = MAGIC, VERSION, self.num_tokens
        self._file.write(header.tobytes())

    def write(self, tokens: np.ndarray) -> None:
        """Appends `uint16[n]`."""
        self._file.write(tokens.astype(TOKEN_TYPE, copy=False).tobytes())
        self.num_tokens += len(tokens)

    def finish(self) -> None:
        """Puts the number of tokens into the header."""
        self._file.seek(0)
        self._write_header()


@contextlib.contextmanager
def create_shard(path: str | Path) -> Iterator[ShardWriter]:
    """Yields a writer; the shard appears at `path`, complete, when the block ends without an error."""
    with files.atomic_write(path) as file:
        writer = ShardWriter(file)
        yield writer
        writer.finish()


def is_sidecar(path: str | Path) -> bool:
    """Whether a file is called as the sidecars of shards are."""
    return re.search(r"_(train|val)_bytes_", Path(path).name) is not None


def refuse_sidecar(path: str | Path) -> None:
    """Raises DataError for a sidecar, whose numbers would pass for tokens."""
    if is_sidecar(path):
        raise DataError(
            f"{path}: not a token shard: it counts the bytes of the tokens in the shard beside it, whose name has no "
            "_bytes_; give that one, and the counts are found"
        )


def sidecar_of(path: str | Path) -> Path | None:
    """Where the sidecar of a shard would lie; None for a name that tells no split, and for a sidecar's."""
    path = Path(path)
    if is_sidecar(path) or not _SPLIT.search(path.name):
        return None
    return path.with_name(_SPLIT.sub(r"_\1_bytes_", path.name))


def shards_in(folder: Path, split: str = "") -> list[Path]:
    """The shards of a folder, of one split or all, sorted by name, without sidecars."""
    pattern = f"*_{split}_*.bin" if split else "*.bin"
    return sorted(path for path in folder.glob(pattern) if not is_sidecar(path))


def find_shards(data_dir: str | Path, split: str) -> list[Path]:
    """The shards `*_{split}_*.bin` of a folder, sorted by name, without sidecars.

    Raises:
      DataError: there is no such folder, or no such shard in it.
    """
    data_dir = Path(data_dir)
    files.settle(data_dir)
    option = "" if split == "train" else f" --split {split}"
    commands = (
        "make it with `jgolf data demo` (from this machine's Python), `jgolf data download sp1024` (the challenge's "
        f"text) or `jgolf data pack DOCS.jsonl --tokenizer T.model --out {data_dir}{option}` (your own)"
    )
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such data folder; {commands}")
    paths = shards_in(data_dir, split)
    if not paths:
        raise DataError(f"{data_dir}: no {split} shards (*_{split}_*.bin) in this folder; {commands}")
    return paths


def _first_bos(tokens: np.ndarray) -> int:
    """Position of the first BOS; past the end where there is none."""
    return int(next(_bos_positions(tokens), np.array([len(tokens)]))[0])


def bos_positions(tokens: np.ndarray) -> np.ndarray:
    """Positions of all BOS, where documents begin: `int64[documents]`."""
    return np.concatenate([np.empty(0, np.int64), *_bos_positions(tokens)])


def _bos_positions(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """The same, a part of the tokens at a time, without the parts that have none."""
    for start in range(0, len(tokens), _CHECKED_AT_ONCE):
        found = np.flatnonzero(tokens[start : start + _CHECKED_AT_ONCE] == BOS_ID)
        if len(found):
            yield start + found


class TokenStream:
    """The tokens of several shards as one endless stream: after the last comes the first again."""

    def __init__(self, paths: Sequence[str | Path], vocab_size: int | None = None):
        """Opens the shards, in the order given.

        Args:
          paths: the shards; their headers and lengths are checked here.
          vocab_size: when given, a shard's ids are checked against it before its first token is handed out.

        Raises:
          DataError: a shard cannot be used, is a sidecar, or there is no token at all.
        """
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            refuse_sidecar(path)
        self.vocab_size = vocab_size
        self._shards = [open_shard(path) for path in self.paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self._unchecked = set(range(len(self._shards))) if vocab_size is not None else set()
        self._takes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if len(self) == 0:
            names = ", ".join(str(path) for path in self.paths) or "no shard"
            raise DataError(f"{names}: no tokens; pack some text with `jgolf data pack`")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, start: int, count: int) -> np.ndarray:
        """The `count` tokens from position `start` ≥ 0 of the endless stream on: `uint16[count]`, a copy.

        Raises:
          DataError: a shard holds an id past the vocabulary; it names the shard, the position and the id.
        """
        taken = np.empty(count, np.uint16)
        filled = 0
        while filled < count:
            pass_number, position = divmod(start + filled, len(self))
            index = int(np.searchsorted(self._ends, position, side="right"))
            offset = position - (int(self._ends[index]) - len(self._shards[index]))
            piece = self._from_shard(index, pass_number, offset, count - filled)
            taken[filled : filled + len(piece)] = piece
            filled += len(piece)
        return taken

    def take_start(self, take: int, span: int) -> int:
        """Where the take-th run of `span` tokens that lies within a shard begins, the shard's first BOS on.

        After the last such run of the last shard comes the first again, in the next pass over the text.

        Raises:
          DataError: no shard holds so many tokens after its first BOS.
        """
        if span not in self._takes:
            self._takes[span] = self._takes_within_shards(span)
        firsts, ends = self._takes[span]
        pass_number, take = divmod(take, int(ends[-1]))
        shard = int(np.searchsorted(ends, take, side="right"))
        before = int(ends[shard - 1]) if shard else 0
        return pass_number * len(self) + int(firsts[shard]) + (take - before) * span

    def _takes_within_shards(self, span: int) -> tuple[np.ndarray, np.ndarray]:
        """Position of every shard's first BOS, and how many takes there are up to the end of each shard."""
        begins = self._ends - [len(shard) for shard in self._shards]
        offsets = np.array([_first_bos(shard) for shard in self._shards], np.int64)
        ends = np.cumsum((self._ends - begins - offsets) // span)
        if not ends[-1]:
            more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
            raise DataError(
                f"{self.paths[0]}{more}: no shard holds {span:,} tokens after its first "
                "BOS, which a batch of whole documents takes from one shard: pack larger shards, or make "
                "train.batch-tokens smaller"
            )
        return begins + offsets, ends

    def _from_shard(self, index: int, pass_number: int, offset: int, count: int) -> np.ndarray:
        """Tokens of a shard, from `offset` on, in its order in a pass over the text: one at least, at most `count`."""
        del pass_number  # all are alike here
        return self._checked_shard(index)[offset : offset + count]

    def _checked_shard(self, index: int) -> np.ndarray:
        shard = self._shards[index]
        if index in self._unchecked:
            check_ids(self.paths[index], shard, self.vocab_size)
            self._unchecked.discard(index)
        return shard
