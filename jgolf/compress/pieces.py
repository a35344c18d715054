"""Bytes as the tokens of a text, and what these leave out: any bytes in, the same bytes out, whatever the tokenizer.

Blocks of the bytes are texts that their tokens give back; or texts whose words the tokens give back, with patches for
words and spaces that were others (normalised characters, line feeds); or bytes as they are. What is not tokens is
called the rest: numbers that say what becomes of each block, and literal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jgolf.compress.rans import Damaged
from jgolf.data.tokenizer import Tokenizer
from jgolf.errors import DataError

_BLOCK_BYTES = 1 << 16
_SMALLEST_BLOCK_BYTES = 64  # smaller ones are not halved: they stay bytes
_EXACT, _PATCHED, _BYTES = range(3)
_SPACES = re.compile(r"(\s+)")
_PATCHED_SHARE = 0.25  # of a block's characters, in words; with more the block is better left as bytes


class Pieces(NamedTuple):
    """Bytes in two parts."""

    tokens: Int[np.ndarray, " tokens"]
    rest: bytes


def split(data: bytes, tokenizer: Tokenizer) -> Pieces:
    """Bytes as tokens, as far as these can hold them, and the rest."""
    splitter, start = _Splitter(tokenizer), 0
    while start < len(data):
        end = start + _cut(data[start : start + _BLOCK_BYTES + 1], _BLOCK_BYTES)
        splitter.add(data[start:end])
        start = end
    return splitter.finish()


def join(pieces: Pieces, num_bytes: int, tokenizer: Tokenizer) -> bytes:
    """The inverse of `split`, for so many bytes.

    Raises:
      Damaged: the pieces are not what `split` returned for so many bytes.
    """
    blocks, found = [], 0
    for block in _Joiner(pieces, tokenizer).blocks():
        found += len(block)
        if found > num_bytes:
            break
        blocks.append(block)
    if found != num_bytes:
        raise Damaged(f"text of {found:,} bytes, expected {num_bytes:,}")
    return b"".join(blocks)


class _Splitter:
    """Takes blocks in order."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._tokens: list[np.ndarray] = []
        self._numbers, self._literals = bytearray(), bytearray()
        self._unheld = b""  # bytes that no tokens hold, since the last block that has some
        self._known: dict[str, int] = {}

    def add(self, block: bytes) -> None:
        if self._add_as_tokens(block):
            return
        if len(block) <= _SMALLEST_BLOCK_BYTES:
            self._unheld += block
            return
        middle = _cut(block, len(block) // 2)
        self.add(block[:middle])
        self.add(block[middle:])

    def finish(self) -> Pieces:
        self._add_unheld()
        rest = _as_bytes(len(self._numbers)) + self._numbers + self._literals if self._numbers else b""
        return Pieces(np.concatenate([np.empty(0, np.int32), *self._tokens]), bytes(rest))

    def _add_as_tokens(self, block: bytes) -> bool:
        """Adds a block as tokens; whether that is possible, and makes sense."""
        try:
            text = block.decode()
            ids = self._tokenizer.encode(text)
        except (UnicodeDecodeError, DataError):  # no text, or a byte that the tokenizer has no id for
            return False
        if self._tokenizer.decode(ids) == text:
            self._begin(_EXACT, ids)
            return True
        core = text.strip()
        ids = self._tokenizer.encode(core)
        own, given = _SPACES.split(core), _SPACES.split(self._tokenizer.decode(ids))
        if len(own) != len(given):
            return False
        different = [place for place, run in enumerate(own) if run != given[place]]
        if sum(len(own[place]) for place in different if place % 2 == 0) > _PATCHED_SHARE * len(core):
            return False
        self._begin(_PATCHED, ids)
        before = len(text) - len(text.lstrip())
        self._add_run(text[:before])
        self._add_run(text[before + len(core) :])
        self._add_number(len(different))
        for earlier, place in zip([-1, *different], different, strict=False):
            self._add_number(place - earlier - 1)
            self._add_run(own[place])
        return True

    def _begin(self, kind: int, ids: list[int]) -> None:
        self._add_unheld()
        self._add_number(kind)
        self._add_number(len(ids))
        self._tokens.append(np.array(ids, np.int32))

    def _add_unheld(self) -> None:
        if self._unheld:
            self._add_number(_BYTES)
            self._add_number(len(self._unheld))
            self._literals += self._unheld
            self._unheld = b""

    def _add_run(self, run: str) -> None:
        """A word or spaces, by number; behind that of a new one are its bytes."""
        is_new, number = run not in self._known, self._known.setdefault(run, len(self._known))
        self._add_number(number)
        if is_new:
            self._add_number(len(run.encode()))
            self._literals += run.encode()

    def _add_number(self, number: int) -> None:
        self._numbers += _as_bytes(number)


class _Joiner:
    """Gives back what a splitter took."""

    def __init__(self, pieces: Pieces, tokenizer: Tokenizer):
        self._tokenizer, self._tokens, self._rest = tokenizer, pieces.tokens, pieces.rest
        self._next_token = self._place = 0
        self._end = len(pieces.rest)
        size = self._number() if pieces.rest else 0
        self._end = self._literal = self._place + size
        if self._end > len(pieces.rest):
            raise Damaged(f"{size:,} bytes of numbers in a rest of {len(pieces.rest):,}")
        self._known: list[str] = []

    def blocks(self) -> Iterator[bytes]:
        while self._place < self._end:
            kind, size = self._number(), self._number()
            if kind == _BYTES:
                yield self._literals(size)
            elif kind in (_EXACT, _PATCHED):
                text = self._text(size)
                yield (text if kind == _EXACT else self._patched(text)).encode(errors="replace")
            else:
                raise Damaged(f"a block of kind {kind}")
        if self._next_token < len(self._tokens) or self._literal < len(self._rest):
            raise Damaged("more tokens or literals than its blocks have")

    def _text(self, count: int) -> str:
        ids = self._tokens[self._next_token : self._next_token + count]
        if len(ids) < count:
            raise Damaged("fewer tokens than its blocks have")
        self._next_token += count
        return self._tokenizer.decode(ids)

    def _patched(self, text: str) -> str:
        before, after = self._run(), self._run()
        runs, place = _SPACES.split(text), -1
        for _ in range(self._number()):
            place += 1 + self._number()
            if place >= len(runs):
                raise Damaged("a patch behind the text's end")
            runs[place] = self._run()
        return before + "".join(runs) + after

    def _run(self) -> str:
        number = self._number()
        if number > len(self._known):
            raise Damaged("a patch that no text was given for")
        if number == len(self._known):
            self._known.append(self._literals(self._number()).decode(errors="replace"))
        return self._known[number]

    def _literals(self, size: int) -> bytes:
        found = self._rest[self._literal : self._literal + size]
        if len(found) < size:
            raise Damaged("fewer literal bytes than its blocks have")
        self._literal += size
        return found

    def _number(self) -> int:
        number, shift = 0, 0
        while self._place < self._end and shift < 35:
            byte = self._rest[self._place]
            self._place += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
        raise Damaged("a number that has no end")


def _as_bytes(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _cut(data: bytes, most: int) -> int:
    """Where to cut data, after `most` bytes or before: at the last space in their second half, and in no character."""
    if len(data) <= most:
        return len(data)
    space = max(data.rfind(byte, most // 2 + 1, most + 1) for byte in (b"\n", b" "))
    if space > 0:
        return space
    starts = (place for place in range(most, max(0, most - 4), -1) if data[place] & 0xC0 != 0x80)
    return next(starts, most)
