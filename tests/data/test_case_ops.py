"""The case transform against the PyTorch recipe's own, and against its description, letter by letter."""

import json
import random
import time
from pathlib import Path

import pytest

from jgolf.data import case_ops
from jgolf.data.case_ops import ALLCAPS, CAPNEXT, ESC, OPERATORS, TITLE
from jgolf.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "case_ops"
SMALL = "abcdefghijklmnopqrstuvwxyz"
CAPITALS = SMALL.upper()


def read(name):
    return json.loads((GOLDEN / name).read_text())


def encoded_letter_by_letter(text: str) -> str:
    """The description, read aloud: no pattern, no knowledge of Python's own letters."""
    parts, position = [], 0
    while position < len(text):
        end = position
        while end < len(text) and text[end] in SMALL + CAPITALS:
            end += 1
        word = text[position:end]
        if not word:
            parts.append(ESC * (text[position] in OPERATORS) + text[position])
            end = position + 1
        elif len(word) > 1 and all(letter in CAPITALS for letter in word):
            parts.append(ALLCAPS + word.lower())
        else:
            parts.append(TITLE * (word[0] in CAPITALS) + word[0].lower())
            parts += [CAPNEXT * (letter in CAPITALS) + letter.lower() for letter in word[1:]]
        position = end
    return "".join(parts)


def test_golden_strings():
    for one in read("strings.json"):
        assert case_ops.encode(one["text"]) == one["encoded"]
        assert case_ops.decode(one["encoded"]) == one["text"]


def test_golden_decoding_and_refusals():
    for one in read("decode.json"):
        if one.get("error"):
            with pytest.raises(DataError, match="not a CaseOps text: .* at position"):
                case_ops.decode(one["encoded"])
        else:
            assert case_ops.decode(one["encoded"]) == one["decoded"]


def test_random_strings():
    draw = random.Random(0)
    for _ in range(5000):
        text = "".join(draw.choices("abzABZ é'1İＡ" + OPERATORS, k=draw.randrange(14)))
        assert case_ops.encode(text) == encoded_letter_by_letter(text)
        assert case_ops.decode(case_ops.encode(text)) == text


def test_documents_come_back():
    for text in read("documents.json"):
        assert case_ops.decode(case_ops.encode(text)) == text


@pytest.mark.parametrize("word", ["a", "A", "aA", "Aa", "1a", " A", TITLE])
def test_time_grows_with_the_text_alone(word):
    started = time.process_time()
    case_ops.encode(word * 200_000)
    assert time.process_time() - started < 3  # quadratic would take minutes


def test_what_a_model_wrote_is_shown_as_far_as_it_goes():
    for encoded, shown in (
        (f"{TITLE}the {TITLE}", "The "),  # cut
        (f"{TITLE} a", " a"),
        (f"a{ALLCAPS}bc d", "aBC d"),
        (f"{CAPNEXT}{CAPNEXT}ab{ESC}", "Ab"),
    ):
        with pytest.raises(DataError):
            case_ops.decode(encoded)
        assert case_ops.decode(encoded, strict=False) == shown


def test_refusals_say_what_stands_where():
    with pytest.raises(DataError, match="TITLE with no letter to change, at position 3"):
        case_ops.decode(f"a {TITLE} b")
    with pytest.raises(DataError, match="an operator inside a word, at position 1"):
        case_ops.decode(f"a{ALLCAPS}b")
