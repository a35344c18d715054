"""What is read of others' JSON, numbers and lines, and what is refused; the standard library is the oracle."""

import json

import pytest

from jgolf import reading
from jgolf.reading import Unreadable, excerpt, parse_integer, parse_json, parse_number, read_lines, split_lines


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, -2.5e-3, true, null, "ü\\n\\ud83d\\ude00"], "b": {}}',
        "3",
        " [1e308, 12345678901234567890123]\n",
    ],
)
def test_json_is_what_the_standard_library_reads(text):
    assert parse_json(text) == json.loads(text) == parse_json(b"\xef\xbb\xbf" + text.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1,\n "b" 2}', "not JSON: expecting ':' delimiter: line 2, column 6"),
        ("{", "not JSON: expecting property name enclosed in double quotes: column 2"),
        ("", "not JSON: expecting value: column 1"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("9" * 5000, "a number of 5,000 characters, '999"),
        ("1" + "0" * 400, "a number of 401 characters, '1000"),
        ("[1e999]", "the number 1e999 is too large"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("-Infinity", "-Infinity is not a JSON number"),
        (b'{"a": "\xff"}', "not UTF-8 text: byte 0xff at position 7"),
        ("{}".encode("utf-16"), "it begins as UTF-16 does"),
    ],
)
def test_other_json_is_refused_in_words(content, message):
    with pytest.raises(Unreadable) as error:
        parse_json(content)
    assert message in str(error.value) and len(str(error.value)) < 200


def test_depth_counts_lists_not_brackets_in_texts():
    assert parse_json("[" * 64 + '"' + "[" * 500 + '"' + "]" * 64)
    assert parse_json("[" + "[]," * 500 + "[]]") == [[]] * 501


def test_nan_where_it_is_expected():
    assert [str(value) for value in parse_json("[NaN, -Infinity]", allow_nan=True)] == ["nan", "-inf"]
    with pytest.raises(Unreadable):
        parse_json("[1e999]", allow_nan=True)


def test_numbers():
    assert parse_number("-2.5e-3") == -0.0025 and parse_number("inf") == float("inf") and parse_integer("12") == 12
    for parse, text in ((parse_number, "1.2.3"), (parse_number, "1e999"), (parse_integer, "1.0"), (parse_integer, "²")):
        with pytest.raises(Unreadable, match=r"is no number|is no integer|is too large"):
            parse(text)


def test_lines_of_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one\n\ntwo\r\nthree")
    assert [tuple(line) for line in read_lines(path)] == [
        (1, b"one", True), (2, b"", True), (3, b"two\r", True), (4, b"three", False)
    ]  # fmt: skip
    assert list(split_lines([b"o", b"ne\n\ntwo\r\nth", b"", b"ree"])) == list(read_lines(path))
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 4)
    with pytest.raises(Unreadable, match="line 4 has more than 4 bytes"):
        list(split_lines([b"o", b"ne\n\ntwo\r\nth", b"", b"ree"]))
    monkeypatch.setattr(reading, "MAX_LINES_BYTES", 9)
    with pytest.raises(Unreadable, match="more than 9 bytes"):
        list(read_lines(path))


def test_excerpts_are_short():
    assert excerpt({"a": [1]}) == "{'a': [1]}"
    for value in ("x" * 9000, ["x" * 9000], b"\xff" * 9000, {"x" * 9000: 1}, 10**300):
        assert len(excerpt(value)) <= 80 and excerpt(value).endswith("…")
