"""Texts: tokens with the bytes they stand for, by sidecars or by the tokenizer's tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from jgolf.data.documents import read_documents
from jgolf.data.inspect import inspect
from jgolf.data.pack import pack_documents
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.shards import TokenStream, find_shards, open_shard, sidecar_of, write_shard
from jgolf.data.text import Text, read_text
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.data.train_tokenizer import tokenizer as tokenizer_verb
from jgolf.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "case_ops"
MODEL = GOLDEN / "caseops_8192.model"


@pytest.fixture(scope="module")
def golden_documents(tmp_path_factory):
    """The golden excerpts as a file of documents."""
    path = tmp_path_factory.mktemp("documents") / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in json.loads(documents_json())))
    return path


def documents_json():
    return (GOLDEN / "documents.json").read_text()


@pytest.fixture
def case_ops_dir(tmp_path, golden_documents):
    pack_documents([golden_documents], MODEL, tmp_path / "data", "val", shard_tokens=3000, workers=1)
    return tmp_path / "data"


# --- counting ----------------------------------------------------------------------------------


def test_golden_ids_and_bytes():
    tokenizer = load_tokenizer(MODEL, 8192)
    for one in json.loads((GOLDEN / "strings.json").read_text()):
        ids, num_bytes = tokenizer.encode_with_bytes(one["text"])
        assert ids == tokenizer.encode(one["text"]) == one["ids"]
        assert num_bytes == one["bytes"]


def test_packing_writes_the_golden_shard_and_sidecar(case_ops_dir):
    golden = np.load(GOLDEN / "documents.npz")
    shards = find_shards(case_ops_dir, "val")
    assert [path.name for path in shards] == [f"fineweb_val_{index:06d}.bin" for index in range(3)]
    for kind, paths in (("tokens", shards), ("sidecar", [sidecar_of(path) for path in shards])):
        np.testing.assert_array_equal(np.concatenate([open_shard(path) for path in paths]), golden[kind])


def test_what_the_challenge_leaves_out_at_the_ends_of_documents_is_said(tmp_path):
    """Over CaseOps the sidecar is the challenge's, which has no token for it."""
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["Kept.", "  Two before, one after\n", " "]))
    summary = pack_documents([path], MODEL, tmp_path / "out", "val", workers=1)
    assert f"counted for no token: 4 bytes, 2 of 3 documents (66.7%), the first {path}:2" in str(summary)
    text = read_text(summary.paths, load_tokenizer(MODEL))
    assert np.add.reduceat(text.bytes, text.starts, dtype=int).tolist() == [5, 21, 0]


def test_training_shards_have_no_sidecar(tmp_path, golden_documents):
    pack_documents([golden_documents], MODEL, tmp_path, "train", workers=1)
    assert {path.name for path in tmp_path.iterdir()} == {"fineweb_train_000000.bin", MODEL.name}


def test_packing_again_leaves_no_sidecar_of_other_tokens(case_ops_dir, golden_documents):
    pack_documents([golden_documents], MODEL, case_ops_dir, "val", overwrite=True, byte_counts=False, workers=1)
    assert [path.name for path in sorted(case_ops_dir.glob("*.bin"))] == ["fineweb_val_000000.bin"]


def test_read_text_counts_by_the_sidecar(case_ops_dir):
    golden = np.load(GOLDEN / "documents.npz")
    tokenizer = load_tokenizer(find_tokenizer(case_ops_dir))
    text = read_text(find_shards(case_ops_dir, "val"), tokenizer)
    np.testing.assert_array_equal(text.bytes, golden["sidecar"])
    np.testing.assert_array_equal(text.starts, np.flatnonzero(golden["tokens"] == 1))
    first = read_text(find_shards(case_ops_dir, "val"), tokenizer, 3500)
    np.testing.assert_array_equal(first.bytes, golden["sidecar"][:3500])
    assert text.first(3500).starts.tolist() == first.starts.tolist()


def test_a_pattern_that_matches_sidecars_too_means_the_shards(case_ops_dir):
    tokenizer = load_tokenizer(MODEL)
    every = sorted(case_ops_dir.glob("*_val_*.bin"))
    assert len(every) == 6
    np.testing.assert_array_equal(
        read_text(every, tokenizer).tokens, read_text(find_shards(case_ops_dir, "val"), tokenizer).tokens
    )


def test_without_a_sidecar_the_tables_count(demo_dir, tokenizer):
    paths = find_shards(demo_dir, "val")
    text = read_text(paths, tokenizer)
    lines = [line for path in [demo_dir / "val.txt"] for line in read_documents([path])]
    assert text.bytes.sum(dtype=int) == sum(len(line.encode()) for line in lines)
    assert len(text.starts) == len(lines)


def test_a_sidecar_of_ordinary_tokens_is_the_original_s_and_not_the_challenge_s(tmp_path, tokenizer):
    write_shard(tmp_path / "x_val_000000.bin", [1, 300, 301])
    alone = read_text([tmp_path / "x_val_000000.bin"], tokenizer)
    assert alone.original is None and alone.target_original is None
    write_shard(tmp_path / "x_val_bytes_000000.bin", [0, 70, 80])
    text = read_text([tmp_path / "x_val_000000.bin"], tokenizer)
    assert text.target_bytes.tolist() == alone.target_bytes.tolist() != [70, 80]
    assert text.target_original.tolist() == [70, 80]
    assert text.first(2).original.tolist() == [0, 70]


def test_text_that_begins_inside_a_document():
    text = Text.of(np.array([5, 6, 1, 7, 1, 1], np.uint16), bos_id=1)
    assert text.starts.tolist() == [0, 2, 4, 5]
    with pytest.raises(ValueError, match="not counted"):
        text.target_bytes  # noqa: B018


# --- refusals ----------------------------------------------------------------------------------


def test_sidecars_that_do_not_belong(case_ops_dir):
    shards, tokenizer = find_shards(case_ops_dir, "val"), load_tokenizer(MODEL)
    second = sidecar_of(shards[1])
    good = second.read_bytes()
    write_shard(second, open_shard(second)[:-1])
    with pytest.raises(DataError, match=r"val_bytes_000001\.bin: counts the bytes of 2,999 tokens, expected 3,000"):
        read_text(shards, tokenizer)
    second.write_bytes(shards[1].read_bytes())  # the tokens in its place
    with pytest.raises(
        DataError, match=r"val_bytes_000001\.bin: token [\d,]+ of .* begins a document, expected 0 byte"
    ):
        read_text(shards, tokenizer)
    second.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"val_bytes_000001\.bin: .*the shard is cut off"):
        read_text(shards, tokenizer)
    second.unlink()
    with pytest.raises(DataError, match=r"val_000001\.bin: no byte counts are beside it, which other shards"):
        read_text(shards, tokenizer)
    for path in shards:
        sidecar_of(path).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"cannot be counted without fineweb_val_bytes_000000\.bin .* as operators"):
        read_text(shards, tokenizer)


def test_sidecars_given_as_tokens(case_ops_dir):
    sidecar = sidecar_of(find_shards(case_ops_dir, "val")[0])
    for take in (lambda: read_text([sidecar], load_tokenizer(MODEL)), lambda: TokenStream([sidecar])):
        with pytest.raises(DataError, match=r"fineweb_val_bytes_000000\.bin: not a token shard"):
            take()
    with pytest.raises(DataError, match="not a token shard"):
        inspect((sidecar,))


def test_a_folder_of_sidecars_alone_has_no_shards(tmp_path):
    write_shard(tmp_path / "fineweb_val_bytes_000000.bin", [0, 1])
    with pytest.raises(DataError, match="no val shards"):
        find_shards(tmp_path, "val")


def test_more_bytes_than_a_sidecar_can_count(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text(json.dumps({"text": "short"}) + "\n" + json.dumps({"text": "a" + 70_000 * " " + "b"}) + "\n")
    with pytest.raises(DataError, match=r"docs\.jsonl:2: one token stands for 70,00\d bytes"):
        pack_documents([path], MODEL, tmp_path / "out", "val", workers=1)


# --- bytes -------------------------------------------------------------------------------------


def test_bytes_as_tokens(tmp_path, golden_documents, capsys):
    tokenizer_verb((), tmp_path / "fineweb_pure_byte_260.json", pure_bytes=True)
    tokenizer = load_tokenizer(tmp_path / "fineweb_pure_byte_260.json", 260)
    pack_documents([golden_documents], tokenizer.path, tmp_path / "out", "val", workers=1)
    assert find_tokenizer(tmp_path / "out").read_bytes() == byte_tokenizer_file()
    text = read_text(find_shards(tmp_path / "out", "val"), tokenizer)
    documents = json.loads(documents_json())
    assert text.bytes.sum(dtype=int) == sum(len(one.encode()) for one in documents)
    assert len(text.starts) == len(documents)
    own = text.tokens[: text.starts[1]]
    assert own[0] == tokenizer.bos_id == 1
    assert bytes((own[1:] - 4).astype(np.uint8)).decode() == documents[0] == tokenizer.decode(own)


def test_byte_tokenizers_of_other_files(tmp_path):
    path = tmp_path / "b.json"
    for content, message in (
        ({"config": {"byte_count": 255}}, "expected 256 bytes"),
        ({"config": {"bos_id": 4}}, "expected 256 bytes"),
        ({"config": {"byte_offset": "4"}}, "expected 256 bytes"),
        ({"config": 7}, "expected 256 bytes"),
        ({"tokenizer_type": "another"}, "not a SentencePiece model"),
    ):
        path.write_text(json.dumps({"tokenizer_type": "pure_byte", **content}))
        with pytest.raises(DataError, match=rf"b\.json: .*{message}"):
            load_tokenizer(path)
    path.write_text(json.dumps({"tokenizer_type": "pure_byte", "config": {"byte_offset": 3, "bos_id": 0}}))
    assert load_tokenizer(path).encode("a") == [ord("a") + 3]


def test_a_tokenizer_over_case_ops_is_trained_and_found_out(tmp_path, demo_dir, capsys):
    out = tmp_path / "t.model"
    tokenizer_verb((demo_dir / "val.txt",), out, vocab_size=600, max_documents=60, case_ops=True)
    tokenizer = load_tokenizer(out, 600)
    assert [tokenizer.decode([token, *tokenizer.encode("ab")]) for token in (4, 5, 6)] == ["Ab", "AB", "Ab"]
    for text in ("The NASA iPhone, U.S.A.", "operators \ue001\ue004 of the text"):
        ids, num_bytes = tokenizer.encode_with_bytes(text)
        assert tokenizer.decode(ids) == text
        assert sum(num_bytes) == len(text.encode())
        assert max(num_bytes) < 20
