"""CaseOps: capitals of a text as operators before small letters, so that a tokenizer learns each word once.

    The NASA iPhone  →  ⟨TITLE⟩the ⟨ALLCAPS⟩nasa i⟨CAPNEXT⟩phone

Letters are A–Z and a–z alone; everything else passes as it is. An operator character that the text itself
holds stands behind ESC. `decode(encode(text)) == text` for every text.
"""

from __future__ import annotations

import re

from jgolf.errors import DataError

TITLE, ALLCAPS, CAPNEXT, ESC = OPERATORS = "\ue001\ue002\ue003\ue004"
"""Characters of the private-use area; each is a piece of its own in a CaseOps tokenizer."""
OPERATOR_BYTES = 3
"""Length of an operator in UTF-8."""

_NAMES = dict(zip(OPERATORS, ("TITLE", "ALLCAPS", "CAPNEXT", "ESC"), strict=True))
# A word is entered at its first letter only, so that one without a capital is looked through once.
_CHANGED = re.compile(rf"(?<![A-Za-z])[a-z]*[A-Z][A-Za-z]*|[{OPERATORS}]")
_CAPITAL = re.compile("[A-Z]")


def encode(text: str) -> str:
    """The canonical encoded text."""
    return _CHANGED.sub(_encoded, text)


def _encoded(match: re.Match[str]) -> str:
    """What stands for an operator character, or for a word that has a capital."""
    word = match[0]
    if word in _NAMES:
        return ESC + word
    small = word.lower()
    if len(word) > 1 and word.isupper():
        return ALLCAPS + small
    start = TITLE + small[0] if word[0] != small[0] else word[0]
    if word[1:] == small[1:]:
        return start + small[1:]
    return start + _CAPITAL.sub(lambda capital: CAPNEXT + capital[0].lower(), word[1:])


def decode(encoded: str, strict: bool = True) -> str:
    """The text that `encoded` stands for; a capital in it stays one.

    Args:
      encoded: need not be canonical: several encoded texts may stand for one text.
      strict: refuse operators that say nothing about what follows them; otherwise they are passed over, as
        in a text that was cut anywhere or that a model wrote.

    Raises:
      DataError: an operator stands where it may not; the message names it and its position.
    """
    decoder = _Decoder(strict)
    for position, character in enumerate(encoded):
        decoder.read(position, character)
    decoder.end(len(encoded))
    return "".join(decoder.text)


class _Decoder:
    """Reads an encoded text a character at a time.

    `mode` is the TITLE or ALLCAPS that waits for its word, "" for none; `cap` says that the next letter is a
    capital; `caps_word` that all of this word are; `escaped` that an ESC stood before.
    """

    def __init__(self, strict: bool):
        self.text: list[str] = []
        self._strict = strict
        self._mode = ""
        self._cap = self._in_word = self._caps_word = self._escaped = False

    def read(self, position: int, character: str) -> None:
        is_letter = character.isascii() and character.isalpha()
        if self._escaped:
            self._read_escaped(position, character, is_letter)
        elif is_letter:
            self._read_letter(position, character)
        elif character in _NAMES:
            self._read_operator(position, character)
        else:
            self._refuse_waiting(position, self._mode or self._cap)
            self.text.append(character)
            self._mode, self._cap, self._in_word, self._caps_word = "", False, False, False

    def end(self, position: int) -> None:
        self._refuse_waiting(position, self._escaped or self._mode or self._cap)

    def _read_escaped(self, position: int, character: str, is_letter: bool) -> None:
        self._refuse_waiting(position, self._mode and not is_letter)
        self.text.append(character)
        self._escaped, self._in_word = False, is_letter
        self._caps_word &= is_letter

    def _read_operator(self, position: int, operator: str) -> None:
        if operator == ESC:
            self._escaped = True
        elif operator == CAPNEXT:
            self._refuse_waiting(position, self._cap)
            self._cap = True
        else:
            self._refuse_waiting(position, self._mode or self._cap or self._in_word)
            self._mode, self._in_word = operator, False

    def _read_letter(self, position: int, letter: str) -> None:
        if self._in_word:
            self._refuse_waiting(position, self._mode)
            is_capital = self._caps_word or self._cap
        else:
            is_capital = bool(self._mode) or self._cap
            self._caps_word |= self._mode == ALLCAPS
            self._mode = ""
        self.text.append(letter.upper() if is_capital else letter)
        self._cap, self._in_word = False, True

    def _refuse_waiting(self, position: int, is_wrong: object) -> None:
        """Raises DataError where an operator is wrong, if that is asked for."""
        if not is_wrong or not self._strict:
            return
        waiting = [_NAMES[self._mode]] if self._mode else []
        waiting += ["CAPNEXT"] if self._cap else []
        waiting += ["ESC"] if self._escaped else []
        found = " and ".join(waiting) + " with no letter to change" if waiting else "an operator inside a word"
        raise DataError(f"not a CaseOps text: {found}, at position {position:,}")
