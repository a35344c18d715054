import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from jgolf.data.demo import validation_text
from jgolf.data.sentence_piece import ByteTables
from jgolf.data.shards import find_shards, open_shard
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.errors import DataError

GOLDEN_TABLES = Path(__file__).parents[1] / "golden" / "small" / "byte_luts.npz"


def test_tables_follow_the_golden_ones_on_the_shared_pieces(tokenizer):
    """Special and byte pieces come first and are the same in every tokenizer of these settings."""
    golden = np.load(GOLDEN_TABLES)
    tables = tokenizer.byte_tables
    for name in ("base_bytes", "has_leading_space", "is_boundary"):
        ours = getattr(tables, name)
        assert ours.dtype == golden[name].dtype
        assert ours.shape == golden[name].shape
        np.testing.assert_array_equal(ours[:260], golden[name][:260])


def test_tables_by_piece(tokenizer):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    tables = tokenizer.byte_tables
    for token in range(260, tokenizer.vocab_size):
        piece = pieces.id_to_piece(token)
        text = piece.replace("▁", " ")
        assert tables.base_bytes[token] + tables.has_leading_space[token] == len(text.encode())
        assert tables.has_leading_space[token] == (text[0] == " ")
    assert tables.is_boundary.nonzero()[0].tolist() == [0, 1, 2, 3]


def test_target_bytes():
    tables = ByteTables(
        base_bytes=np.array([0, 3, 2, 1], np.int16),
        has_leading_space=np.array([False, True, False, False]),
        is_boundary=np.array([True, False, False, False]),
    )
    previous = np.array([[0, 1, 2], [3, 0, 1]], np.uint16)
    targets = np.array([[1, 1, 1], [2, 3, 0]], np.uint16)
    assert tables.target_bytes(previous, targets).tolist() == [[3, 4, 4], [2, 1, 0]]


def test_bytes_of_a_shard_are_the_bytes_of_its_text(demo_dir, tokenizer):
    tokens = open_shard(find_shards(demo_dir, "val")[0], tokenizer.vocab_size)
    counted = tokenizer.byte_tables.target_bytes(tokens[:-1], tokens[1:]).sum()
    text = validation_text(demo_dir)
    assert counted == len(text) - text.count(b"\n")


def test_encode_and_decode(tokenizer):
    ids = tokenizer.encode("naïve — 漢字 and 123")
    assert tokenizer.decode(np.array([tokenizer.bos_id, *ids], np.uint16)) == "naïve — 漢字 and 123"
    assert max(ids) < tokenizer.vocab_size == 1024
    assert tokenizer.bos_id == 1


def test_fingerprint(tokenizer):
    assert tokenizer.fingerprint == hashlib.sha256(tokenizer.path.read_bytes()).hexdigest()


def test_bad_files(tmp_path, tokenizer):
    bad = tmp_path / "bad.model"
    for content, message in (
        (b"", r"bad\.model: an empty file, expected a SentencePiece model"),
        (b"not a model" * 50, r"bad\.model: not a SentencePiece model"),
        (tokenizer.model_bytes[:100_000], r"bad\.model: not a SentencePiece model"),
    ):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_tokenizer(bad)
    with pytest.raises(DataError, match=r"none\.model: the tokenizer cannot be read: No such file"):
        load_tokenizer(tmp_path / "none.model")


def test_wrong_size(tokenizer):
    assert load_tokenizer(tokenizer.path, 1024).vocab_size == 1024
    with pytest.raises(DataError, match=r"has 1024 pieces, expected 512: take the tokenizer that the shards"):
        load_tokenizer(tokenizer.path, 512)


def test_no_bos(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words here"]),
        model_writer=model,
        vocab_size=280,
        byte_fallback=True,
        model_type="bpe",
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "t.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match="has no BOS piece"):
        load_tokenizer(tmp_path / "t.model")


def test_find_tokenizer(tmp_path, tokenizer):
    shards = tmp_path / "datasets" / "fineweb10B_sp1024"
    shards.mkdir(parents=True)
    with pytest.raises(DataError, match=r"no tokenizer \(\*\.model\) in .*--tokenizer FILE"):
        find_tokenizer(shards)
    (tmp_path / "tokenizers").mkdir()
    beside = shutil.copy(tokenizer.path, tmp_path / "tokenizers" / "a.model")
    assert find_tokenizer(shards).resolve() == beside
    inside = shutil.copy(tokenizer.path, shards / "b.model")
    assert find_tokenizer(shards) == inside
    assert find_tokenizer(shards, str(beside)) == beside
    shutil.copy(tokenizer.path, shards / "c.model")
    with pytest.raises(DataError, match=r"2 tokenizers \(b\.model, c\.model\): say which with --tokenizer FILE"):
        find_tokenizer(shards)
    with pytest.raises(DataError, match=r"x\.model: no such tokenizer file"):
        find_tokenizer(shards, "x.model")
