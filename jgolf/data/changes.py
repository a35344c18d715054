"""What becomes of documents as tokens: characters that do not come back from them, and bytes that are counted wrong."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, field

from jgolf.data.tokenizer import Tokenizer
from jgolf.progress import counted

LINE_BREAKS = "line breaks lost"
WHITE_SPACE = "other white space lost or made spaces"
ADDED_SPACE = "white space added"
COMPATIBILITY = "characters replaced by others (NFKC)"
UNKNOWN = "characters that are unknown"
OTHER = "other characters changed"

_UNKNOWN_MARK = "⁇"  # what SentencePiece makes of an unknown piece
_BREAKS = "\n\r"
_SPACES = "\t\v\f\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def lost(text: str, kept: str) -> dict[str, int]:
    """What a text has lost: kind → UTF-8 bytes of its characters that there are fewer of in what was kept of it."""
    if text == kept:
        return {}
    found: Counter[str] = Counter()
    for kind, characters in ((LINE_BREAKS, _BREAKS), (WHITE_SPACE, _SPACES)):
        for character in characters:
            if (count := text.count(character)) and (fewer := count - kept.count(character)) > 0:
                found[kind] += fewer * len(character.encode())
    words = text.split()
    if " ".join(words) != kept and words != (kept_words := kept.split()):
        found.update(_lost_characters(Counter(words), Counter(kept_words)))
    return dict(+found) or {ADDED_SPACE: max(0, len(kept.encode()) - len(text.encode()))}


def _lost_characters(words: Counter[str], kept_words: Counter[str]) -> Counter[str]:
    """The same for the characters of words, where it is not white space alone that changed."""
    missing = words - kept_words
    found: Counter[str] = Counter()
    normal: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for word, count in missing.items():
        composed = unicodedata.normalize("NFKC", word)
        if composed == word:
            rest.update(word * count)
        else:
            found[COMPATIBILITY] += count * _num_bytes(Counter(word) - Counter(composed))
            normal.update(composed * count)
    gained: Counter[str] = Counter()
    for word, count in (kept_words - words).items():
        gained.update(word * count)
    unknown = gained[_UNKNOWN_MARK] > rest[_UNKNOWN_MARK]
    found[UNKNOWN if unknown else OTHER] += _num_bytes(rest - (gained - normal))
    return found


def _num_bytes(characters: Counter[str]) -> int:
    return sum(count * len(character.encode()) for character, count in characters.items())


@dataclass
class Affected:
    """Documents that something happens to.

    `first` is where the first of them is, FILE:LINE.
    """

    documents: int = 0
    bytes: int = 0
    first: str = ""

    def add(self, more: Affected) -> None:
        """Takes in those of later documents."""
        self.documents += more.documents
        self.bytes += more.bytes
        self.first = self.first or more.first


@dataclass
class Changes:
    """What a tokenizer makes of documents.

    Attributes:
      documents, text_bytes: all that were looked at, and their UTF-8 bytes.
      changed: those that do not come back from their tokens as they were.
      kinds: what is lost of these, of each kind.
      miscounted: those for which the tokenizer's tables count other bytes than they have, and how many more.
      uncounted: those of which a sidecar leaves out what was stripped at their ends.
    """

    documents: int = 0
    text_bytes: int = 0
    changed: Affected = field(default_factory=Affected)
    kinds: dict[str, Affected] = field(default_factory=dict)
    miscounted: Affected = field(default_factory=Affected)
    uncounted: Affected = field(default_factory=Affected)

    def look(self, where: str, text_bytes: int, text: str, kept: str) -> None:
        """Takes in a document: its place, its bytes, the text that was made tokens, and what comes back from them."""
        self.documents += 1
        self.text_bytes += text_bytes
        if text == kept:
            return
        self.changed.add(Affected(1, 0, where))
        for kind, num_bytes in lost(text, kept).items():
            self.kinds.setdefault(kind, Affected()).add(Affected(1, num_bytes, where))

    def count(self, what: str, where: str, num_bytes: int) -> None:
        """Takes in how many bytes of the document just looked at are "miscounted" or "uncounted"."""
        if num_bytes:
            getattr(self, what).add(Affected(1, num_bytes, where))

    def add(self, later: Changes) -> None:
        """Takes in those of later documents."""
        self.documents += later.documents
        self.text_bytes += later.text_bytes
        for name in ("changed", "miscounted", "uncounted"):
            getattr(self, name).add(getattr(later, name))
        for kind, affected in later.kinds.items():
            self.kinds.setdefault(kind, Affected()).add(affected)

    def told(self, tokenizer: Tokenizer) -> list[str]:
        """Lines that say it; none where every document comes back as it was, and is counted right."""
        lines = [] if self.text_bytes else ["all documents are empty: there is nothing to learn from, or to score"]
        if self.changed.documents:
            lines += [f"{tokenizer.path} does not keep every document as it is: {self._differ(self.changed)}"]
            ranked = sorted(self.kinds.items(), key=lambda item: -item[1].bytes)
            lines += [
                f"  {kind}: {counted(affected.bytes, 'byte')}, {self._differ(affected)}" for kind, affected in ranked
            ]
        if self.miscounted.documents:
            fault = f"the tables of {tokenizer.path}, not believed because it {tokenizer.table_fault}, count"
            share = f" ({self.miscounted.bytes / self.text_bytes:+.2%})" if self.text_bytes else ""
            lines.append(
                f"{fault if tokenizer.table_fault else 'val_bpb counts'} "
                f"{counted(self.text_bytes + self.miscounted.bytes, 'byte')} for the {self.text_bytes:,} of the "
                f"documents{share}: {self._differ(self.miscounted)}"
            )
        if self.uncounted.documents:
            lines.append(
                "stripped at the ends of documents, and counted for no token: "
                f"{counted(self.uncounted.bytes, 'byte')}, {self._differ(self.uncounted)}"
            )
        return lines

    def _differ(self, affected: Affected) -> str:
        return (
            f"{affected.documents:,} of {counted(self.documents, 'document')} "
            f"({affected.documents / self.documents:.1%}), the first {affected.first}"
        )
