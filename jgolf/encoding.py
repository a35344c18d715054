"""Text on terminals and in pipes that cannot show all of it."""

from __future__ import annotations

import codecs
import sys

_SIMILAR = {
    **dict.fromkeys("–—−─━╌╴╶╸╺", "-"),
    **dict.fromkeys("│┃╎", "|"),
    **dict.fromkeys("╭╮╯╰┌┐└┘├┤┬┴┼", "+"),
    **{"…": "...", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "→": "->", "·": ".", "•": "*", "▁": "_", "²": "2"},
}


def show_any_text() -> None:
    """From now on no text is an error on stdout or stderr.

    Characters that the encoding lacks, and the bytes of file names that are no text, are shown as similar ones or as
    a question mark.
    """
    codecs.register_error("jgolf", _similar)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where it was replaced by one that takes any text
            stream.reconfigure(errors="jgolf")


def _similar(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SIMILAR.get(character, "?") for character in error.object[error.start : error.end]), error.end
