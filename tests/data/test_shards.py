import struct
from pathlib import Path

import numpy as np
import pytest

from jgolf.data.shards import TokenStream, create_shard, find_shards, open_shard, write_shard
from jgolf.errors import DataError


def raw_shard(path: Path, magic: int = 20240520, version: int = 1, count: int = 3, tokens: tuple = (1, 5, 9)) -> Path:
    """A shard written field by field."""
    path.write_bytes(struct.pack("<256i", magic, version, count, *[0] * 253) + struct.pack(f"<{len(tokens)}H", *tokens))
    return path


def test_format_byte_for_byte(tmp_path):
    written, expected = tmp_path / "a.bin", raw_shard(tmp_path / "b.bin", tokens=(1, 65535, 258))
    write_shard(written, [1, 65535, 258])
    assert written.read_bytes() == expected.read_bytes()
    tokens = open_shard(written)
    assert tokens.tolist() == [1, 65535, 258]
    assert tokens.dtype == np.dtype("<u2")
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable


def test_pieces_make_the_same_file(tmp_path):
    with create_shard(tmp_path / "a.bin") as shard:
        shard.write(np.array([1, 2, 3], np.uint16))
        shard.write(np.array([4], np.uint16))
        assert shard.num_tokens == 4
    write_shard(tmp_path / "b.bin", [1, 2, 3, 4])
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_failed_write_leaves_nothing(tmp_path):
    write_shard(tmp_path / "a.bin", [7])
    with pytest.raises(RuntimeError, match="stop"), create_shard(tmp_path / "a.bin") as shard:
        shard.write(np.array([1, 2], np.uint16))
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert open_shard(tmp_path / "a.bin").tolist() == [7]


@pytest.mark.parametrize("tokens", [[65536], [-1], [0.5], [[1, 2]]])
def test_write_refuses_what_is_no_token(tmp_path, tokens):
    with pytest.raises(DataError, match=r"a\.bin: a shard holds one row of ids from 0 to 65535"):
        write_shard(tmp_path / "a.bin", tokens)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": 5}, "starts with 5, expected the magic number 20240520: not a token shard"),
        ({"version": 2}, "shard version 2, expected 1"),
        ({"count": 4}, r"4 tokens, a file of 1,032 bytes, but it has 1,030: the shard is cut off"),
        ({"count": 2}, r"2 tokens, a file of 1,028 bytes, but it has 1,030: the shard is damaged"),
        ({"count": -1}, "the shard is damaged"),
    ],
)
def test_wrong_headers(tmp_path, change, message):
    path = raw_shard(tmp_path / "bad.bin", **change)
    with pytest.raises(DataError, match=rf"bad\.bin: .*{message}"):
        open_shard(path)
    with pytest.raises(DataError, match=r"bad\.bin"):
        TokenStream([path])


def test_short_missing_and_odd_files(tmp_path):
    (tmp_path / "short.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"short\.bin: 3 bytes, shorter than a shard's header of 1,024"):
        open_shard(tmp_path / "short.bin")
    with pytest.raises(DataError, match=r"none\.bin: cannot be read: No such file"):
        open_shard(tmp_path / "none.bin")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_shard(tmp_path)


def test_ids_are_checked(tmp_path):
    tokens = np.full(10_000_000, 1023, np.uint16)
    write_shard(tmp_path / "a.bin", tokens)
    assert len(open_shard(tmp_path / "a.bin", vocab_size=1024)) == 10_000_000
    tokens[9_876_543] = 1024
    write_shard(tmp_path / "a.bin", tokens)
    with pytest.raises(DataError, match=r"a\.bin: token 9,876,543 has the id 1024, expected ids below 1024"):
        open_shard(tmp_path / "a.bin", vocab_size=1024)


def test_find_shards_sorts_and_tells_splits_apart(tmp_path):
    for name in ("fineweb_train_000010.bin", "fineweb_train_000009.bin", "fineweb_val_000000.bin", "train.bin"):
        write_shard(tmp_path / name, [1])
    assert [path.name for path in find_shards(tmp_path, "train")] == [
        "fineweb_train_000009.bin",
        "fineweb_train_000010.bin",
    ]
    assert [path.name for path in find_shards(str(tmp_path), "val")] == ["fineweb_val_000000.bin"]


def test_find_shards_names_the_commands(tmp_path):
    for folder, message in ((tmp_path / "none", "no such data folder"), (tmp_path, "no val shards")):
        with pytest.raises(DataError, match=message) as error:
            find_shards(folder, "val")
        for command in ("`jgolf data demo`", "`jgolf data download sp1024`", f"--out {folder} --split val`"):
            assert command in str(error.value)


def test_take_spans_shards_and_wraps(tmp_path):
    paths = [tmp_path / f"{name}.bin" for name in "abcd"]
    for path, values in zip(paths, ([0, 1, 2], [], [3], [4, 5, 6, 7]), strict=True):
        write_shard(path, values)
    stream = TokenStream(paths)
    endless = list(range(8)) * 6
    assert len(stream) == 8
    for start in range(17):
        for count in (0, 1, 3, 8, 9, 25):
            assert stream.take(start, count).tolist() == endless[start : start + count]
    assert stream.take(8 * 10**15 + 3, 2).tolist() == [3, 4]
    assert stream.take(0, 2).dtype == np.uint16


def test_take_checks_a_shard_before_its_first_token(tmp_path):
    write_shard(tmp_path / "a.bin", [1, 2, 3])
    write_shard(tmp_path / "b.bin", [1, 2, 3, 99])
    stream = TokenStream([tmp_path / "a.bin", tmp_path / "b.bin"], vocab_size=64)
    assert stream.take(0, 3).tolist() == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(DataError, match=r"b\.bin: token 3 has the id 99, expected ids below 64"):
            stream.take(2, 2)


def test_stream_without_tokens(tmp_path):
    write_shard(tmp_path / "a.bin", [])
    assert open_shard(tmp_path / "a.bin").shape == (0,)
    with pytest.raises(DataError, match=r"a\.bin: no tokens"):
        TokenStream([tmp_path / "a.bin"])
    with pytest.raises(DataError, match="no shard: no tokens"):
        TokenStream([])
