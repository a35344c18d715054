"""SentencePiece tokenizers, plain, over CaseOps, and fused; how many bytes of text each of their pieces stands for."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece

from jgolf.data import case_ops
from jgolf.errors import DataError

SPACE = "▁"  # how SentencePiece writes a space
FUSED_MARKS = ("TITLE", "ALLCAPS", "CAPNEXT")
"""The operators, the first ones of `case_ops.OPERATORS`, that may be one token with the space before them."""
_FUSED_FIELD = b"\xc2\x0c\x11jgolf fused"  # field 200, of 17 bytes: this name, and for each mark an id of 16 bits
_FUSED_BYTES = 6  # of the ids


@dataclass(frozen=True)
class ByteTables:
    """What a target token counts for in the challenge's bits per byte: bytes of the text as it is normalised.

    The challenge counts three bytes for a space that is not a piece's first character, these tables the one it has.

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


class SentencePieceTokenizer:
    """A SentencePiece model; see `jgolf.data.tokenizer.Tokenizer`."""

    counts_ends = True

    def __init__(self, path: str | Path, model_bytes: bytes):
        self.path = Path(path)
        self.model_bytes = model_bytes
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
            self._pieces = [self._processor.id_to_piece(token) for token in range(self.vocab_size)]
        except (RuntimeError, UnicodeError) as error:
            raise DataError(
                f"{path}: not a SentencePiece model ({error}); train one with `jgolf data tokenizer`"
            ) from None

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @property
    def bos_id(self) -> int:
        return self._processor.bos_id()

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model_bytes).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_with_bytes(self, text: str) -> tuple[list[int], list[int]]:
        ids, stretches = self._stretches(text)
        ends = [end for _, end in stretches]
        if ends:
            ends[-1] = len(text.encode())  # what was stripped at the end
        return ids, [end - start for start, end in pairwise([0, *ends])]

    def _stretches(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and where in the text's UTF-8 bytes what each stands for begins and ends.

        White space that is dropped or joined lies in some piece's stretch; at the text's ends in none. A character
        of several pieces lies in that of the last.
        """
        found = self._processor.encode(text, out_type="offset_mapping", return_bytes=True)
        return found["ids"], found["offsets"]

    def written_and_kept(self, text: str, ids: list[int]) -> tuple[str, str]:
        return text, self._decoded(ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self._decoded([int(token) for token in ids])

    def _decoded(self, ids: list[int]) -> str:
        text = self._processor.decode(ids)
        return text.replace(SPACE, " ") if self._marks_spaces else text  # bytes may spell the mark

    def target_bytes(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.byte_tables.target_bytes(previous, targets)

    @functools.cached_property
    def table_fault(self) -> str:
        if self._marks_spaces and self.space_id is None:
            return f"has no piece {SPACE} for a space, which it writes as other bytes or as unknown"
        if self._processor.normalize("a").endswith(SPACE):
            return "adds a space to the end of every text, which is counted"
        return ""

    @functools.cached_property
    def _marks_spaces(self) -> bool:
        """Whether it writes a space as ▁, which then stands for nothing else."""
        return SPACE in self._processor.normalize("a a")

    @functools.cached_property
    def space_id(self) -> int | None:
        """The piece that is a space and no more; None where there is none."""
        token = self._processor.piece_to_id(SPACE if self._marks_spaces else " ")
        return token if self._is_text(token) else None

    @property
    def byte_ids(self) -> list[int]:
        """The byte pieces."""
        return [token for token in range(self.vocab_size) if self._processor.is_byte(token)]

    def free_byte_ids(self) -> list[int]:
        """The byte pieces that no character needs; NUL, which hardly is one, is not asked."""
        points = (point for point in range(1, sys.maxunicode + 1) if not 0xD800 <= point < 0xE000)  # no surrogates
        needed = set(self._processor.encode("".join(map(chr, points))))
        return [token for token in self.byte_ids if token not in needed]

    def _is_text(self, token: int) -> bool:
        """Whether an id stands for the text of its piece."""
        processor = self._processor
        is_other = processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token)
        return not is_other and not processor.is_byte(token)

    @functools.cached_property
    def byte_tables(self) -> ByteTables:
        """The challenge's byte counts of its pieces."""
        base_bytes = np.zeros(self.vocab_size, np.int16)
        has_leading_space = np.zeros(self.vocab_size, bool)
        is_boundary = np.zeros(self.vocab_size, bool)
        for token, piece in enumerate(self._pieces):
            if self._processor.is_byte(token):
                base_bytes[token] = 1
            elif not self._is_text(token):
                is_boundary[token] = True
            elif self._marks_spaces:
                has_leading_space[token] = piece.startswith(SPACE)
                base_bytes[token] = len(piece.removeprefix(SPACE).replace(SPACE, " ").encode())
            else:
                base_bytes[token] = len(piece.encode())
        return ByteTables(base_bytes, has_leading_space, is_boundary)


_written = functools.lru_cache(maxsize=1)(case_ops.encode)  # one text is asked for several times in a row


class CaseOpsTokenizer(SentencePieceTokenizer):
    """A SentencePiece model over CaseOps texts: each operator is a piece of its own."""

    table_fault = "writes capitals as operators, which stand for no text but have three bytes each"
    counts_ends = False

    @functools.cached_property
    def _operators(self) -> dict[int, str]:
        return {self._pieces.index(operator): operator for operator in case_ops.OPERATORS}

    def encode(self, text: str) -> list[int]:
        return super().encode(_written(text))

    def encode_with_bytes(self, text: str) -> tuple[list[int], list[int]]:
        ids, stretches = self._stretches(_written(text))
        num_bytes = [end - start for start, end in stretches]
        is_escaped = False
        for index, token in enumerate(ids):
            operator = self._operators.get(token)
            if operator is None or is_escaped:
                is_escaped = False  # an escaped operator is text, and has the bytes of its character
            else:
                num_bytes[index] -= case_ops.OPERATOR_BYTES
                is_escaped = operator == case_ops.ESC
        return ids, num_bytes

    def written_and_kept(self, text: str, ids: list[int]) -> tuple[str, str]:
        return super().written_and_kept(_written(text), ids)

    def decode(self, ids: Iterable[int]) -> str:
        return case_ops.decode(super().decode(ids), strict=False)


class FusedTokenizer(CaseOpsTokenizer):
    """A CaseOps tokenizer in which a space and the case mark after it are one token, and the word behind them another.

        ▁ ⟨TITLE⟩ the ▁ ⟨ALLCAPS⟩ nasa  →  ▁⟨TITLE⟩ the ▁⟨ALLCAPS⟩ nasa

    Byte pieces that no text needs give their ids for it, so that the vocabulary keeps its size. The file is the model
    with one more field, which SentencePiece passes over: to it this is the tokenizer that does not fuse.

    Attributes:
      fused: id of each fused token → id of its mark, in the order of `FUSED_MARKS`.
    """

    def __init__(self, path: str | Path, model_bytes: bytes):
        super().__init__(path, model_bytes)
        ids = np.frombuffer(model_bytes[-_FUSED_BYTES:], "<u2").tolist()
        self.fused = dict(zip(ids, self._operators, strict=False))
        if self.space_id is None or len({*self.byte_ids} & {*ids}) < len(ids):
            raise DataError(
                f"{path}: a damaged tokenizer: fuses on ids {ids}, expected those of three byte pieces; make it again"
            )

    def encode(self, text: str) -> list[int]:
        return self.fuse(self._checked(super().encode(text)))[0].tolist()

    def encode_with_bytes(self, text: str) -> tuple[list[int], list[int]]:
        ids, num_bytes = super().encode_with_bytes(text)
        fused, starts = self.fuse(self._checked(ids))
        return fused.tolist(), np.add.reduceat(np.array(num_bytes, np.int64), starts).tolist()

    def _checked(self, ids: list[int]) -> np.ndarray:
        """Raises DataError for a text with a byte whose id is a fused token's."""
        found = np.array(ids, np.int64)
        if (place := self.find_fused(found)) is not None:
            raise DataError(
                f"the text holds the byte {self._pieces[ids[place]]}, whose id is a fused token's in {self.path}: take "
                "the byte out, or a tokenizer that does not fuse"
            )
        return found

    def find_fused(self, ids: np.ndarray) -> int | None:
        """Where the first fused token is; None where there is none, as has to be before `fuse`."""
        places = np.flatnonzero(np.isin(ids, [*self.fused]))
        return int(places[0]) if len(places) else None

    def fuse(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of pieces [n] → with one id for each pair [m], and where in [n] each of them begins."""
        fused, kept = ids.copy(), np.ones(len(ids), bool)
        for one, mark in self.fused.items():
            found = np.flatnonzero((ids[:-1] == self.space_id) & (ids[1:] == mark))
            fused[found], kept[found + 1] = one, False
        starts = np.flatnonzero(kept)
        return fused[starts], starts

    def _decoded(self, ids: list[int]) -> str:
        pairs = {one: (self.space_id, mark) for one, mark in self.fused.items()}
        return super()._decoded([piece for token in ids for piece in pairs.get(token, (token,))])

    @functools.cached_property
    def byte_tables(self) -> ByteTables:
        tables = super().byte_tables
        for table in (tables.base_bytes, tables.has_leading_space):
            table[[*self.fused]] = table[self.space_id] + table[[*self.fused.values()]]
        return tables


def sentence_piece_tokenizer(path: str | Path, model_bytes: bytes) -> SentencePieceTokenizer:
    """The tokenizer of a model file; one whose pieces include all four operators is over CaseOps, and may be fused.

    Raises:
      DataError: the bytes are no SentencePiece model.
    """
    plain = SentencePieceTokenizer(path, model_bytes)
    if not set(case_ops.OPERATORS) <= set(plain._pieces):
        return plain
    is_fused = model_bytes[:-_FUSED_BYTES].endswith(_FUSED_FIELD)
    return (FusedTokenizer if is_fused else CaseOpsTokenizer)(path, model_bytes)


def fused_tokenizer(tokenizer: SentencePieceTokenizer, path: str | Path) -> FusedTokenizer:
    """A tokenizer that fuses, as it would be in the file `path`; its ids are the lowest that no text needs.

    Raises:
      DataError: the tokenizer is not over CaseOps, fuses already, or has no piece for a space or no bytes to spare.
    """
    if not isinstance(tokenizer, CaseOpsTokenizer):
        raise DataError(
            f"{tokenizer.path}: has no case marks to fuse with the spaces before them: expected a tokenizer over "
            "CaseOps, as `jgolf data tokenizer --case-ops` trains one"
        )
    if isinstance(tokenizer, FusedTokenizer):
        raise DataError(f"{tokenizer.path}: fuses already; expected the tokenizer that it was made from")
    free = tokenizer.free_byte_ids()[: len(FUSED_MARKS)]
    if tokenizer.space_id is None or len(free) < len(FUSED_MARKS):
        lacks = "no piece for a space" if tokenizer.space_id is None else f"{len(free)} byte pieces that no text needs"
        raise DataError(
            f"{tokenizer.path}: has {lacks}, expected one for a space, and {len(FUSED_MARKS)} byte pieces to spare, as "
            "in a tokenizer that `jgolf data tokenizer --case-ops` trains"
        )
    return FusedTokenizer(path, tokenizer.model_bytes + _FUSED_FIELD + np.array(free, "<u2").tobytes())
