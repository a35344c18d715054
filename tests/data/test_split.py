"""Texts of one's own: what is read, how it is cut, what is held out, and which tokenizer fits."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from jgolf.cli import main
from jgolf.data.documents import read_documents
from jgolf.data.fitting import first_texts, fitting
from jgolf.data.own_text import cut, documents_of, find_texts
from jgolf.data.split import split_documents
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError, MissingExtraError

WORDS = [first + vowel + last for first in "bdklmt" for vowel in "aeio" for last in ("", "l", "n", "r", "st")]


def prose(seed: int, words: int = 300, line: int = 1 << 30) -> str:
    """So many random words, with a line break after every `line` of them."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return "\n".join(" ".join(chosen[start : start + line]) for start in range(0, words, line))


def documents_in(folder: Path) -> tuple[list[str], list[str]]:
    return tuple(list(read_documents([folder / name])) for name in ("train.jsonl", "val.jsonl"))


def read(path: Path) -> list[str]:
    return ["".join(pieces) for pieces in documents_of(path)]


def test_parts_are_the_text_and_end_where_it_does() -> None:
    paragraphs = "\n\n".join(prose(seed, 40) for seed in range(30))
    parts = list(cut([paragraphs[:777], paragraphs[777:5000], paragraphs[5000:]], 600))
    assert "".join(parts) == paragraphs
    assert max(map(len, parts)) <= 600
    assert all(part.endswith("\n\n") for part in parts[:-1])
    assert list(cut(["one two\nthree four"], 12)) == ["one two\n", "three four"]
    assert list(cut(["one two three"], 9)) == ["one two ", "three"]
    assert list(cut(["x" * 25], 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(cut(["abc\r\n\r\ndef ghi"], 9)) == ["abc\r\n\r\n", "def ghi"]


@pytest.mark.parametrize(("option", "value"), [("--max-mb", "inf"), ("--max-mb", "nan"), ("--held-out-kb", "inf")])
def test_numbers_that_are_none(tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "split", str(tmp_path), "--out", str(tmp_path / "out"), option, value]) == 2
    assert f"{option} {value}: expected a number, more than 0" in capsys.readouterr().err


def test_what_is_written_is_not_read_with_the_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(0))
    for out in (tmp_path, tmp_path / "out"):
        with pytest.raises(DataError, match="lies in .*, of which all texts are read: choose a folder outside it"):
            split_documents([tmp_path], out)
    split_documents([tmp_path / "a.txt"], tmp_path / "out")


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_whole_documents_are_divided_by_the_seed(tmp_path: Path, seed: int) -> None:
    texts = [prose(number, 100 + 10 * number) for number in range(60)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(lines + lines[:5]))
    summary = split_documents([tmp_path / "a.jsonl"], tmp_path / "out", held_out_share=0.2, seed=seed)
    train, held_out = documents_in(tmp_path / "out")
    assert sorted(train + held_out) == sorted(texts)
    assert not set(train) & set(held_out)
    assert (summary.train, summary.validation, summary.copies, summary.part_chars) == (len(train), len(held_out), 5, 0)
    size = sum(map(len, texts))
    assert 0.2 * size <= summary.validation_bytes < 0.2 * size + max(map(len, texts))
    assert summary.train_bytes + summary.validation_bytes == size
    (tmp_path / "b.jsonl").write_text("".join(reversed(lines)))  # the order that they come in does not matter
    split_documents([tmp_path / "b.jsonl"], tmp_path / "again", held_out_share=0.2, seed=seed)
    assert documents_in(tmp_path / "again") == (train, held_out)
    split_documents([tmp_path / "b.jsonl"], tmp_path / "other", held_out_share=0.2, seed=seed + 1)
    assert set(documents_in(tmp_path / "other")[1]) != set(held_out)


def test_a_book_is_cut_into_documents(tmp_path: Path) -> None:
    book = "\n\n".join(prose(number, 60) for number in range(200))
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + book.encode())
    summary = split_documents([tmp_path / "book.txt"], tmp_path / "out")
    train, held_out = documents_in(tmp_path / "out")
    assert summary.part_chars == len(book) // 64
    assert max(map(len, train + held_out)) <= summary.part_chars
    assert sum(map(len, train + held_out)) == len(book)
    assert all(part in book for part in held_out)
    assert (tmp_path / "out" / "held-out.txt").read_text() == "\n\n".join(held_out)[:32_768]
    with pytest.raises(DataError, match="already holds train.jsonl"):
        split_documents([tmp_path / "book.txt"], tmp_path / "out")


def test_folders_and_kinds_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "in" / ".git").mkdir(parents=True)
    (folder / "in" / "code.py").write_text("a = 1\n\n\nb = 2\n")
    (folder / "in" / ".git" / "config").write_text("hidden")
    (folder / "lines.json").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "package.json").write_text('{\n "name": "x"\n}\n')
    (folder / "notes.md.gz").write_bytes(gzip.compress(b"three"))
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\0\xff")
    (folder / "archive.tar.gz").write_bytes(gzip.compress(b"\0\0"))
    found, left_out = find_texts([folder, folder / "lines.json"])
    assert [path.name for path in found] == ["code.py", "lines.json", "notes.md.gz", "package.json"]
    assert [path.name for path in left_out] == ["archive.tar.gz", "image.png"]
    assert [text for path in found for text in read(path)] == [
        "a = 1\n\n\nb = 2\n",
        "one",
        "two",
        "three",
        '{\n "name": "x"\n}\n',
    ]


def test_only_so_much_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 3000 + "x" * 100_000)
    summary = split_documents([tmp_path / "a.txt"], tmp_path / "out", max_bytes=5999)
    train, held_out = documents_in(tmp_path / "out")
    assert "".join(set(train + held_out)).strip("é") == "" and not summary.is_whole
    assert "--max-mb" in str(summary)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text but white space"),
        (b" \n\n ", "no text but white space"),
        (b"one", "one document in 3 characters, expected two different ones or more"),
        (b"caf\xe9 au lait", "not UTF-8 text: byte 0xe9 at position 3: convert it, for instance with `iconv -f ISO"),
        (b"x" * 70_000 + b"\xe2\x82", "not UTF-8 text: byte 0xe2 at position 70000"),
        (b"x" * 70_000 + b"\xe2\x82x", "not UTF-8 text: byte 0xe2 at position 70000"),
        ("wide".encode("utf-16"), "it begins as UTF-16 does: convert it, for instance with `iconv -f UTF-16"),
        (b"a\0b", "holds NUL characters"),
    ],
)
def test_texts_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match="a.txt: ") as error:
        split_documents([tmp_path / "a.txt"], tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_missing_and_empty_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.txt: no such file or folder"):
        find_texts([tmp_path / "nowhere.txt"])
    with pytest.raises(DataError, match="no text there: name text files"):
        find_texts([tmp_path])
    with pytest.raises(DataError, match="^no text given: name text files"):
        find_texts([])
    with pytest.raises(DataError, match="--held-out-share 0.7"):
        split_documents([tmp_path], tmp_path / "out", held_out_share=0.7)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"id": [1, 2, 3, 4], "text": ["one", None, "", "zwei ü"]}), tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet") == ["one", "zwei ü"]
    parquet.write_table(pyarrow.table({"content": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"expected a column text of strings, found content \(string\)"):
        read(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="c.parquet: not a Parquet file, or damaged"):
        read(tmp_path / "c.parquet")


def test_parquet_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match=r"jgolf\[parquet\]"):
        read(tmp_path / "a.parquet")


# --- tokenizers --------------------------------------------------------------------------------


def sizes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


@pytest.fixture(scope="module")
def varied() -> list[str]:
    """Enough different words for 1,024 pieces."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices("abcdefghijklmnoprstuvwxyz", k=chooser.randrange(2, 9))) for _ in range(3000)]
    return [" ".join(chooser.choices(words, k=250)) for _ in range(120)]


@pytest.mark.parametrize(
    ("text_bytes", "most", "expected"), [(9_000, 8192, 512), (1_500_000, 8192, 1024), (10**9, 512, 512)]
)
def test_a_piece_for_every_thousand_bytes(varied: list[str], text_bytes: int, most: int, expected: int) -> None:
    fit = fitting(varied, text_bytes, most)
    assert (fit.vocab_size, fit.lossless, fit.pure_bytes) == (expected, False, False)


@pytest.mark.parametrize(
    "change", [lambda text: text.replace(" ", "\n", 1), lambda text: text + " ½", lambda text: f"  {text}"]
)
def test_lossless_where_one_document_would_change(varied: list[str], change) -> None:
    fit = fitting([*varied[:-1], change(varied[-1])], 600_000, 1024)
    assert fit.lossless and "the ordinary tokenizer changes the text" in fit.reason
    model = train_tokenizer(varied, fit.vocab_size, cut=True, lossless=True)
    assert model


def test_many_characters_take_more_pieces_and_too_many_bytes() -> None:
    chooser = random.Random(0)
    some = ["".join(chooser.choices([chr(0x4E00 + n) for n in range(1500)], k=900)) for _ in range(40)]
    assert fitting(some, sizes(some), 1024).vocab_size in (2048, 4096)
    many = ["".join(chooser.choices([chr(0x4E00 + n) for n in range(9000)], k=2000)) for _ in range(40)]
    fit = fitting(many, sizes(many), 1024)
    assert fit.pure_bytes and fit.vocab_size == 260 and "too many different characters" in fit.reason
    same = fitting(["la la la"] * 100, 20_000, 1024)
    assert same.pure_bytes and "too little to learn from" in same.reason


def test_a_sample_is_the_first_texts_and_never_none() -> None:
    assert first_texts(["a" * 5000, "b" * 10, "c" * 10], 4_010) == ["a" * 5000, "b" * 10]
    assert first_texts(["a" * 5000, "b"], 10) == ["a" * 5000]
    assert first_texts([], 10) == []
