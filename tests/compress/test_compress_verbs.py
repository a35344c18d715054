"""`jgolf compress` and `jgolf decompress`, as a person calls them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jgolf.artifact import container
from jgolf.artifact.scoring import Artifact
from jgolf.cli import main
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.tokenizer import load_tokenizer
from jgolf.quantize.stored import StoredTensor
from tests.compress.examples import letters, letters_model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of a tokenizer and artifacts of two models."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "t.json").write_bytes(byte_tokenizer_file())
    tokenizer = load_tokenizer(folder / "t.json")
    for seed in range(2):
        config, params = letters_model(tokenizer, seed)
        stored = {path: StoredTensor.floats("fp32", value) for path, value in params.items()}
        artifact = Artifact.of_run(config, stored, tokenizer.fingerprint)
        container.write(folder / f"{seed}.jgolf", container.pack(stored, artifact.metadata()))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models) -> Path:
    """An empty folder to work in, with the models beside it."""
    (tmp_path / "models").symlink_to(models)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMPRESS = ("compress", "--model", "models/0.jgolf", "--tokenizer", "models/t.json", "--streams", "8")
DECOMPRESS = ("decompress", "--tokenizer", "models/t.json")


def test_files_there_and_back(here, capsys):
    contents = {"a.txt": letters(2000).encode(), "nothing": b"", "b\udcff": b"\0\xff" * 50}
    for name, content in contents.items():
        (here / name).write_bytes(content)
    assert main([*COMPRESS, *contents, "--against"]) == 0
    out = capsys.readouterr().out
    size = (here / "a.txt.jgz").stat().st_size
    assert f"a.txt.jgz: 2,000 → {size:,} bytes, {8 * size / 2000:.4f} bits per byte" in out
    assert "2,000 tokens: " in out and "8 streams" in out and "100 bytes without the model" in out
    assert out.count("xz -9") == out.count("zstd -19") == 3
    for name in contents:
        assert (here / name).exists()
        (here / name).unlink()
    assert main([*DECOMPRESS, *(f"{name}.jgz" for name in contents)]) == 0
    assert {name: (here / name).read_bytes() for name in contents} == contents
    assert not list(here.glob("**/.*"))  # temporary files


def test_names(here, capsys):
    (here / "a.txt").write_bytes(b"abc")
    (here / "there").mkdir()
    assert main([*COMPRESS, "a.txt", "--out", "x"]) == main([*COMPRESS, "a.txt", "--out", "there"]) == 0
    assert (here / "x").read_bytes() == (here / "there" / "a.txt.jgz").read_bytes()
    assert main([*COMPRESS, "a.txt", "--out", "x"]) == 2
    assert "x: exists already; choose another place with --out, or add --overwrite" in capsys.readouterr().err
    assert main([*COMPRESS, "a.txt", "--out", "x", "--overwrite"]) == 0
    assert main([*DECOMPRESS, "x"]) == 2 and "a.txt: exists already" in capsys.readouterr().err
    assert main([*DECOMPRESS, "x", "--out", "there"]) == 0  # by its own name
    assert (here / "there" / "a.txt").read_bytes() == b"abc"
    assert main([*DECOMPRESS, "x", "--out", "x", "--overwrite"]) == 2
    assert main([*DECOMPRESS, "x", "there/a.txt.jgz", "--out", "new"]) == 2
    assert "a.txt: two of the files would be written there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*COMPRESS, "nothing-there"], "nothing-there: cannot be read: No such file or directory"),
        ([*COMPRESS, "models"], "models: cannot be read: Is a directory"),
        ([*COMPRESS, "/dev/null"], "/dev/null: not a file that has an end"),
        ([*COMPRESS, "pipe"], "pipe: not a file that has an end"),
        ([*DECOMPRESS, "pipe"], "pipe: not a file that has an end"),
        ([*COMPRESS[:1], "models/t.json", "--model", "pipe"], "pipe: not a file, expected one that holds a model"),
        ([*COMPRESS, "models/t.json", "--context", "-1"], "--context -1: expected from 0 to 65536"),
        ([*COMPRESS, "models/t.json", "--streams", "5000"], "--streams 5000: expected from 0 to 4096"),
        ([*COMPRESS[:3], "models/t.json"], "give --tokenizer"),
        ([*DECOMPRESS, "models/t.json"], "models/t.json: not compressed by jgolf: starts with b'{"),
    ],
)
def test_bad_input(words, expected, here, capsys):
    os.mkfifo("pipe")  # that nobody writes to
    assert main(list(words)) == 2
    assert expected in capsys.readouterr().err


def test_what_cannot_be_decompressed_is_not_written(here, capsys):
    (here / "a.txt").write_bytes(letters(800).encode())
    assert main([*COMPRESS, "a.txt"]) == 0
    (here / "a.txt").unlink()
    whole = (here / "a.txt.jgz").read_bytes()
    (here / "models").rename("elsewhere")
    assert main(["decompress", "a.txt.jgz"]) == 2
    assert "a.txt.jgz: its model, letters, cannot be used: models/0.jgolf: cannot be" in capsys.readouterr().err
    (here / "elsewhere").rename("models")
    assert main([*DECOMPRESS, "a.txt.jgz", "--model", "models/1.jgolf"]) == 2
    assert "compressed by the model letters (models/0.jgolf, " in capsys.readouterr().err
    for bad in (whole[:-1], whole[:50], whole[:99] + bytes([whole[99] ^ 4]) + whole[100:]):
        (here / "a.txt.jgz").write_bytes(bad)
        assert main([*DECOMPRESS, "a.txt.jgz"]) == 2
        assert "a.txt.jgz: damaged or cut off" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["a.txt.jgz", "models"]
