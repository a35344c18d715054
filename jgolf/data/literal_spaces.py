"""A SentencePiece model file in which a space is a space, and ▁ a character like any other.

SentencePiece marks a space as ▁ and can then not tell the two apart. A model can be told not to, but not be trained so:
here it is changed after its training. The file is a protocol buffer, `ModelProto` of sentencepiece_model.proto, of
which no more is read than has to be.
"""

from __future__ import annotations

from collections.abc import Iterator

from jgolf.data.sentence_piece import SPACE

_PIECE, _NORMALIZER = 1, 3  # fields of ModelProto
_TEXT = 1  # field of a piece
_NO_MARKS = bytes([5 << 3, 0])  # escape_whitespaces = false; of a field that stands twice the last counts
_VARINT, _FIXED_64, _MESSAGE, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED_64: 8, _FIXED_32: 4}


def with_literal_spaces(model: bytes) -> bytes:
    """The model file with spaces for the marks in its pieces, which leaves texts' own spaces as they are."""
    changed = bytearray()
    for number, content, field in _fields(model):
        if number == _PIECE:
            changed += _message(_PIECE, b"".join(_with_spaces(*part) for part in _fields(content)))
        elif number == _NORMALIZER:
            changed += _message(_NORMALIZER, content + _NO_MARKS)
        else:
            changed += field
    return bytes(changed)


def _with_spaces(number: int, content: bytes, field: bytes) -> bytes:
    return _message(_TEXT, content.replace(SPACE.encode(), b" ")) if number == _TEXT else field


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Of each field its number, its content if it is a message or text, and all its bytes."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        content = b""
        if key & 7 == _VARINT:
            _, position = _read_varint(message, position)
        elif key & 7 == _MESSAGE:
            size, position = _read_varint(message, position)
            content = message[position : position + size]
            position += size
        else:
            position += _FIXED_BYTES[key & 7]
        yield key >> 3, content, message[start:position]


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _MESSAGE) + _varint(len(content)) + content


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, seven bits a byte, and the position after it."""
    number = shift = 0
    while True:
        byte = message[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])
