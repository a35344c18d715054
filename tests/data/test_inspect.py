import numpy as np
import pytest

from jgolf.data.demo import validation_text
from jgolf.data.inspect import inspect
from jgolf.data.shards import find_shards, write_shard
from jgolf.errors import DataError


def shown(capsys, *arguments) -> list[dict[str, str]]:
    """Row name → value, of each shard that `inspect` shows."""
    inspect(*arguments)
    tables = []
    for line in capsys.readouterr().out.splitlines():
        if line.rstrip().endswith(".bin"):
            tables.append({"shard": line.strip()})
        else:
            name, _, value = line.strip().partition("  ")
            tables[-1][name] = value.strip()
    return tables


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")


def test_figures_and_excerpt(demo_dir, capsys):
    path = find_shards(demo_dir, "val")[0]
    text = validation_text(demo_dir)
    num_tokens = (path.stat().st_size - 1024) // 2
    documents = text.count(b"\n")
    (table,) = shown(capsys, (path,))
    assert table in shown(capsys, (demo_dir,))
    assert table["shard"] == str(path)
    assert table["header"] == f"magic 20240520, version 1, {num_tokens:,} tokens"
    assert table["documents"] == str(documents)
    assert table["bytes a token"] == f"{(len(text) - documents) / num_tokens:.4f}"
    assert len(table["excerpt"]) > 200
    assert text.decode().startswith(table["excerpt"])


def test_without_a_tokenizer(tmp_path, capsys):
    write_shard(tmp_path / "a.bin", np.array([1, 7, 900, 1, 5], np.uint16))
    write_shard(tmp_path / "empty.bin", [])
    first, empty = shown(capsys, (tmp_path / "a.bin", tmp_path / "empty.bin"))
    assert (first["documents"], first["ids"]) == ("2", "1 to 900")
    assert "excerpt" not in first
    assert empty["header"] == "magic 20240520, version 1, 0 tokens"
    assert empty["documents"] == "0"
    assert any("name one with --tokenizer" in name for name in empty)


def test_bytes_counted_over_pieces(demo_dir, monkeypatch, capsys):
    shards = (find_shards(demo_dir, "val")[0],)
    whole = shown(capsys, shards)
    monkeypatch.setattr("jgolf.data.text._COUNTED_AT_ONCE", 1000)
    assert shown(capsys, shards) == whole


def test_bad_input(tmp_path, tokenizer):
    write_shard(tmp_path / "a.bin", [1, 2000])
    for arguments, message in (
        (((),), "no shards given"),
        (((tmp_path / "none.bin",),), r"none\.bin: cannot be read"),
        (((tmp_path / "a.bin",), None, -3), "--excerpt-tokens -3: expected 0 or more"),
        (((tmp_path / "a.bin",), tokenizer.path), r"a\.bin: token 1 has the id 2000"),
        (((tmp_path / "a.bin",), tmp_path / "a.bin"), r"a\.bin: not a SentencePiece model"),
    ):
        with pytest.raises(DataError, match=message):
            inspect(*arguments)
