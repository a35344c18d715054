import gzip
import json
import resource
import shutil
import signal

import numpy as np
import pytest
import sentencepiece

from jgolf import files
from jgolf.data import pack as pack_module
from jgolf.data.demo import validation_text
from jgolf.data.pack import pack, pack_documents
from jgolf.data.shards import TokenStream, find_shards, open_shard
from jgolf.data.tokenizer import find_tokenizer
from jgolf.errors import DataError, JgolfError

TEXTS = ["A first document.", "", "ein zweites: naïve — 漢字", "third\nwith lines"]


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def expected(tokenizer):
    """The tokens of TEXTS: BOS and pieces of one document after another, from SentencePiece itself."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    return [token for text in TEXTS for token in [1, *pieces.encode(text)]]


def tokens_of(folder, split="train"):
    return [open_shard(path).tolist() for path in find_shards(folder, split)]


def test_shards_hold_the_documents(tmp_path, documents, tokenizer, expected):
    out = tmp_path / "new" / "out"
    summary = pack_documents([documents], tokenizer.path, out)
    assert tokens_of(out) == [expected]
    assert [path.name for path in summary.paths] == ["fineweb_train_000000.bin"]
    assert (summary.documents, summary.tokens) == (4, len(expected))
    assert summary.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert find_tokenizer(out).read_bytes() == tokenizer.model_bytes
    assert {path.name for path in out.iterdir()} == {"fineweb_train_000000.bin", tokenizer.path.name}


@pytest.mark.parametrize("shard_tokens", [1, 7, 10, 10_000])
def test_shards_are_full_and_documents_run_across_them(tmp_path, documents, tokenizer, expected, shard_tokens):
    pack_documents([documents], tokenizer.path, tmp_path / "out", "val", shard_tokens, workers=1)
    shards = tokens_of(tmp_path / "out", "val")
    assert [token for shard in shards for token in shard] == expected
    assert {len(shard) for shard in shards[:-1]} <= {shard_tokens}
    assert 0 < len(shards[-1]) <= shard_tokens


def test_last_shard_exactly_full(tmp_path, documents, tokenizer, expected):
    summary = pack_documents([documents], tokenizer.path, tmp_path / "out", "val", len(expected))
    assert len(summary.paths) == 1


def test_many_tasks_stay_in_order(tmp_path, monkeypatch, documents, tokenizer, expected):
    """More groups of lines than may be under way at once, over several files and formats."""
    monkeypatch.setattr(pack_module, "_TASK_BYTES", 20)
    again = tmp_path / "docs.jsonl.gz"
    again.write_bytes(gzip.compress(documents.read_bytes()))
    summary = pack_documents([documents, again] * 5, tokenizer.path, tmp_path / "out", shard_tokens=50, workers=2)
    stream = TokenStream(find_shards(tmp_path / "out", "train"), vocab_size=1024)
    assert stream.take(0, len(stream)).tolist() == expected * 10
    assert summary.documents == 40


def test_verb_prints_a_summary(tmp_path, documents, tokenizer, expected, capsys):
    pack((documents,), tokenizer.path, tmp_path / "out", "val")
    printed = capsys.readouterr().out
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert f"4 documents, {len(expected)} tokens, {num_bytes} bytes of text, " in printed
    assert f"{num_bytes / len(expected):.4f} bytes a token" in printed


def test_demo_shards_are_its_text(demo_dir, tokenizer):
    """The whole way at a larger size: the held-out text's lines, each behind a BOS."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    lines = validation_text(demo_dir).decode().splitlines()
    expected = np.concatenate([[1, *pieces.encode(line)] for line in lines])
    np.testing.assert_array_equal(open_shard(find_shards(demo_dir, "val")[0]), expected)


def test_existing_shards_are_kept_unless_told(tmp_path, documents, tokenizer, expected):
    out = tmp_path / "out"
    pack_documents([documents], tokenizer.path, out, shard_tokens=10)
    before = tokens_of(out)
    with pytest.raises(DataError, match=r"already holds \d+ train shards .*--overwrite"):
        pack_documents([documents], tokenizer.path, out)
    assert tokens_of(out) == before
    pack_documents([documents], tokenizer.path, out, "val")
    pack_documents([documents], tokenizer.path, out, overwrite=True)
    assert tokens_of(out) == tokens_of(out, "val") == [expected]


def test_one_folder_one_tokenizer(tmp_path, documents, tokenizer):
    other = tmp_path / "other.model"
    other.write_bytes(tokenizer.model_bytes + b"\x50\x01")  # the same pieces under another fingerprint
    pack_documents([documents], other, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds another tokenizer, other\.model, for its shards"):
        pack_documents([documents], tokenizer.path, tmp_path / "out", "val")
    same = shutil.copy(other, tmp_path / "renamed.model")
    pack_documents([documents], same, tmp_path / "out", "val")
    assert find_tokenizer(tmp_path / "out").name == "other.model"


@pytest.mark.parametrize("good_lines", [2, 3000])
def test_bad_line_leaves_nothing(tmp_path, tokenizer, good_lines, monkeypatch):
    monkeypatch.setattr(pack_module, "_TASK_BYTES", 10_000)
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "good line of text"}\n' * good_lines + '{"text": "cut\n' + '{"text": "good"}\n' * 3)
    with pytest.raises(DataError, match=rf"docs\.jsonl:{good_lines + 1}: not JSON"):
        pack_documents([path], tokenizer.path, tmp_path / "out", shard_tokens=100)
    assert not list((tmp_path / "out").glob("**/*.bin"))
    assert not list((tmp_path / "out").glob(".packing*"))


def test_failed_overwrite_keeps_the_old_shards(tmp_path, documents, tokenizer, expected):
    out = tmp_path / "out"
    pack_documents([documents], tokenizer.path, out)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("[]\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        pack_documents([documents, bad], tokenizer.path, out, shard_tokens=5, overwrite=True)
    assert tokens_of(out) == [expected]


def test_interrupt_leaves_nothing(tmp_path, documents, tokenizer, monkeypatch):
    def interrupted(pieces):
        next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr("jgolf.data.shard_folder._next_tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack_documents([documents], tokenizer.path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [] if (tmp_path / "out").exists() else True


def test_bad_arguments(tmp_path, documents, tokenizer):
    out = tmp_path / "out"
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for arguments, message in (
        (([tmp_path / "none.jsonl"], tokenizer.path, out), r"none\.jsonl: no such file"),
        (([], tokenizer.path, out), "no text files given"),
        (([empty], tokenizer.path, out), r"no documents in .*empty\.txt"),
        (([documents], documents, out), r"docs\.jsonl: not a SentencePiece model"),
        (([documents], tokenizer.path, out, "train", 0), "--shard-tokens 0: expected at least 1"),
    ):
        with pytest.raises(DataError, match=message):
            pack_documents(*arguments)
    assert not out.exists() or not list(out.iterdir())


def test_unwritable_folder(tmp_path, documents, tokenizer):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JgolfError, match=r"cannot be written: .*file is a file, expected a folder"):
        pack_documents([documents], tokenizer.path, tmp_path / "file" / "out")


@pytest.fixture
def small_file_limit():
    """No file of this process can grow past 64 kB: writing fails halfway, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_file_limit")
def test_write_that_fails_halfway(tmp_path, demo_dir, tokenizer):
    with pytest.raises(JgolfError, match=r"fineweb_train_000000\.bin: cannot be written: File too large"):
        pack_documents([demo_dir / "train.txt"], tokenizer.path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_full_disk_is_called_so(tmp_path, documents, tokenizer, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(JgolfError, match=r"the disk is full \([\d.]+ MB left\)"):
        pack_documents([documents], tokenizer.path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_progress_is_what_is_tokenized_and_long_documents_are_told(tmp_path, monkeypatch, tokenizer, capsys):
    """Reading is quick: a bar that follows it stands at its end while everything is still to be done."""
    monkeypatch.setattr(pack_module, "_TASK_BYTES", 60_000)
    monkeypatch.setattr(pack_module, "_LONG_LINE_BYTES", 60_000)
    path = tmp_path / "docs.txt"
    path.write_bytes(b"\n".join([b"short", b"a b " * 16_000, b"c d " * 16_000, b"e f " * 16_000]))
    advanced = []
    pieces = pack_module._tokenized([path], tokenizer, False, 1, advanced.append, pack_module._Totals())
    seen = [sum(advanced) for _ in pieces]
    assert seen[0] <= 1 << 16 < seen[2] <= sum(advanced) == path.stat().st_size
    assert capsys.readouterr().err.splitlines() == [
        f"{path}:{number}: a document of 0.1 MB, tokenized in one piece" for number in (2, 3, 4)
    ]
