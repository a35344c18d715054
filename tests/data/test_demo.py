import json
import shutil
import sysconfig

import pytest

from jgolf.data import demo as demo_module
from jgolf.data.demo import build_demo, demo, validation_text
from jgolf.data.documents import read_documents
from jgolf.data.shards import TokenStream, find_shards, write_shard
from jgolf.data.tokenizer import find_tokenizer
from jgolf.errors import DataError

FILES = {
    "demo.json",
    "train.txt",
    "val.txt",
    "demo_1024_bpe.model",
    "fineweb_train_000000.bin",
    "fineweb_val_000000.bin",
}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_built(demo_dir):
    assert set(contents(demo_dir)) == FILES
    assert find_tokenizer(demo_dir).name == "demo_1024_bpe.model"
    assert 1_500_000 < (demo_dir / "train.txt").stat().st_size < 4_100_000
    assert 150_000 < len(validation_text(demo_dir)) < 200_000
    assert len(TokenStream(find_shards(demo_dir, "train"), vocab_size=1024)) > 500_000
    assert len(TokenStream(find_shards(demo_dir, "val"), vocab_size=1024)) > 50_000


def test_held_out_documents_are_not_trained_on(demo_dir):
    train = (demo_dir / "train.txt").read_text()
    held_out = list(read_documents([demo_dir / "val.txt"]))
    assert len(held_out) > 20
    for document in held_out:
        for start in range(0, len(document) - 200, 50):
            assert document[start : start + 200] not in train


def test_same_python_same_files(demo_dir, tmp_path):
    build_demo(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(demo_dir)


def test_complete_is_kept_and_partial_is_rebuilt(demo_dir, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "demo"
    shutil.copytree(demo_dir, folder)
    train, validation = ((demo_dir / f"{split}.txt").read_text().splitlines() for split in ("train", "val"))
    monkeypatch.setattr(demo_module, "_split", lambda documents: (train, validation))  # spares the search for text
    monkeypatch.setattr(demo_module, "_documents", lambda library: {})
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_demo(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    demo(folder)
    assert "fineweb_train_000000.bin" in capsys.readouterr().out
    (folder / "fineweb_train_000000.bin").write_bytes(b"cut off")
    (folder / "demo_1024_bpe.model").unlink()
    build_demo(folder)
    assert contents(folder) == contents(demo_dir)


def test_interrupted_build_is_not_complete(tmp_path, monkeypatch, demo_dir):
    def interrupted(documents):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "_split", interrupted)
    monkeypatch.setattr(demo_module, "_documents", lambda library: {})
    with pytest.raises(KeyboardInterrupt):
        build_demo(tmp_path)
    assert json.loads((tmp_path / "demo.json").read_text())["files"] == {}
    with pytest.raises(KeyboardInterrupt):
        build_demo(tmp_path)


def test_other_peoples_shards_are_left_alone(tmp_path):
    write_shard(tmp_path / "fineweb_train_000000.bin", [1, 2])
    before = contents(tmp_path)
    with pytest.raises(DataError, match="holds shards that are not the demo's"):
        build_demo(tmp_path)
    assert contents(tmp_path) == before


def test_python_without_sources(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "one.py").write_text(
        '"""A module with one rather short documentation string, and no more text."""\n'
    )
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    with pytest.raises(DataError, match=r"lib\) holds only 70 bytes of text, expected 1,000,000 or more"):
        build_demo(tmp_path / "out")


def test_passages(tmp_path):
    source = tmp_path / "m.py"
    source.write_text(
        '"""First: a documentation string,\n   over two lines, that is long enough to be kept here."""\n'
        "#!short\n"
        "# Second: a block of comment lines that\n"
        "# together are long enough to be kept too.\n"
        'x = "short"\n'
        'table = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"\n'
        'def f():\n    """Third:\n    # not a comment, but a line of a string long enough\n    """\n'
    )
    assert list(demo_module._passages(source)) == [
        "First: a documentation string, over two lines, that is long enough to be kept here.",
        "!short Second: a block of comment lines that together are long enough to be kept too.",
    ]
    source.write_text("def broken(:\n")
    assert list(demo_module._passages(source)) == []


def test_missing_validation_text(tmp_path):
    with pytest.raises(DataError, match=r"val\.txt: cannot be read: .*`jgolf data demo`"):
        validation_text(tmp_path)
