import gzip
import json
import tracemalloc

import pytest
import zstandard

from jgolf.data.documents import check_files, read_documents
from jgolf.errors import DataError

TEXTS = ["one\nwith a line feed", "zwei — ü", "x" * 300_000, "last"]
JSON_LINES = "".join(json.dumps({"text": text, "source": "s"}) + "\n" for text in TEXTS).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
@pytest.mark.parametrize(
    ("compression", "compress"),
    [("", lambda data: data), (".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_json_lines(tmp_path, suffix, compression, compress):
    path = tmp_path / f"docs{suffix}{compression}"
    path.write_bytes(compress(JSON_LINES))
    read = []
    assert list(read_documents([path], read.append)) == TEXTS
    assert sum(read) == path.stat().st_size


@pytest.mark.parametrize(
    ("compression", "compress"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)]
)
def test_frames_one_after_another(tmp_path, compression, compress):
    path = tmp_path / f"docs.txt{compression}"
    path.write_bytes(compress(b"first\nsec") + compress(b"") + compress(b"ond\nthird"))
    assert list(read_documents([path])) == ["first", "second", "third"]


def test_plain_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b'{"text": "kept"}\r\n\n  \n two \nlast')
    (tmp_path / "b").write_bytes("ü".encode())
    assert list(read_documents([tmp_path / "a.txt", tmp_path / "b"])) == ['{"text": "kept"}', " two ", "last", "ü"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "not JSON: .*; a line of a .jsonl file is"),
        (b"plain text", "not JSON"),
        (b"[" * 100_000, "not JSON that we take: nested more than 64 deep"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "a number of 5,000 characters, .{0,30}, is too long"),
        (b'{"text": "a", "n": NaN}', "not JSON: NaN is not a JSON number"),
        (b"\xff\xfe{\x00", "not UTF-8 text: byte 0xff at position 0; it begins as UTF-16 does: convert it to UTF-8"),
        (b'["text"]', 'expected a JSON object with a string "text", found '),
        (b'{"content": "a"}', 'expected a JSON object with a string "text"'),
        (b'{"text": 5}', 'expected a JSON object with a string "text"'),
        (b'{"text": "\xff"}', "not UTF-8 text"),
        (rb'{"text": "\ud800"}', "not UTF-8 text"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    documents = read_documents([path])
    assert next(documents) == "good"
    with pytest.raises(DataError, match=rf"docs\.jsonl:3: {message}"):
        next(documents)


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.txt"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + (b'{"text": "first"}\r\n' if name == "docs.jsonl" else b"first\r\n"))
    assert list(read_documents([path])) == ["first"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_that_no_document_needs_is_refused_before_it_is_there(tmp_path, suffix):
    path = tmp_path / f"docs.txt{suffix}"
    content = b"short\n" + b"x" * (1 << 26)  # 2 kB of zstd, 64 MB of text
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path.write_bytes(compress(content))
    documents = read_documents([path])
    tracemalloc.start()
    try:
        assert next(documents) == "short"
        with pytest.raises(DataError, match=r"docs\.txt.*: line 2 has more than 16,777,216 bytes.*split it into"):
            next(documents)
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression(tmp_path, suffix):
    compress = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(b"no compressed data at all, but long enough to see")
    with pytest.raises(DataError, match=rf"docs\.jsonl\{suffix}: not a \{suffix} file, or damaged"):
        list(read_documents([path]))
    whole = compress(JSON_LINES)
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=rf"docs\.jsonl\{suffix}: the file is cut off"):
        list(read_documents([path]))


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="no text files given"):
        check_files([])
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match=rf"{path}: no such file"):
            check_files([path])
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        list(read_documents([tmp_path / "none.txt"]))
