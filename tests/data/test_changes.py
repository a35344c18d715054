"""What packing says that a tokenizer changes, and the bytes of tokens that do not tell them by their pieces."""

import json
import random
import unicodedata

import numpy as np
import pytest
import sentencepiece

from jgolf.data.changes import (
    ADDED_SPACE,
    COMPATIBILITY,
    LINE_BREAKS,
    OTHER,
    UNKNOWN,
    WHITE_SPACE,
    lost,
)
from jgolf.data.inspect import inspect
from jgolf.data.pack import pack, pack_documents
from jgolf.data.shards import open_shard, sidecar_of, write_shard
from jgolf.data.text import read_text, table_bytes
from jgolf.data.tokenizer import load_tokenizer
from jgolf.errors import DataError
from jgolf.evaluate.score import summarize

SYLLABLES = ["ba", "ren", "sal", "hu", "gor", "to", "mi", "ku", "lan", "ver", "di", "no", "wes", "ly", "pe", "ta"]
COMPATIBLE = ["The oﬃce ﬁle ﬂew.", "ＦＵＬＬ　ＷＩＤＴＨ　１２３", "㍿ ㌀ ½ ™ ² Ⅷ", "e\u0301 and é", "ﷺ"]  # noqa: RUF001


def sentences(count: int) -> list[str]:
    draw = random.Random(0)
    return [
        " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(40)) + "." for _ in range(count)
    ]


def trained(path, texts, **settings):
    """A tokenizer by SentencePiece itself, with settings that the challenge does not have."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=path.open("wb"),
        minloglevel=2,
        **{
            "model_type": "bpe",
            "vocab_size": 330,
            "byte_fallback": True,
            "add_dummy_prefix": False,
            "hard_vocab_limit": False,
            **settings,
        },
    )
    return load_tokenizer(path)


def packed(folder, texts, tokenizer, split="val", **how):
    docs = folder / "docs.jsonl"
    docs.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return pack_documents([docs], tokenizer.path, folder / "out", split, workers=1, **how)


def bytes_of_documents(text, counts):
    return np.add.reduceat(counts, text.starts, dtype=int).tolist()


# --- pieces that tell other bytes than there are -----------------------------------------------


def test_a_space_that_is_no_piece_is_counted_beside_the_tokens_or_not_at_all(tmp_path, capsys):
    """Learnt from single words, a tokenizer writes each space as the three bytes of ▁."""
    texts = sentences(200)
    words = [word for text in texts for word in text.split()]
    tokenizer = trained(tmp_path / "words.model", words)
    summary = packed(tmp_path, texts, tokenizer)
    num_bytes, num_spaces = sum(map(len, texts)), sum(text.count(" ") for text in texts)
    told = "because it has no piece ▁ for a space, which it writes as other bytes or as unknown, count "
    assert f"{told}{num_bytes + 2 * num_spaces:,} bytes for the {num_bytes:,} of the documents" in str(summary)
    text = read_text(summary.paths, tokenizer)
    assert bytes_of_documents(text, text.bytes) == list(map(len, texts))
    assert tokenizer.decode(text.tokens[: text.starts[1]]) == texts[0]
    inspect(summary.paths)
    assert f"{num_bytes / len(text.tokens):.4f}" in capsys.readouterr().out
    sidecar_of(summary.paths[0]).unlink()
    with pytest.raises(DataError, match=r"cannot be counted without fineweb_val_bytes_000000\.bin beside it"):
        read_text(summary.paths, tokenizer)
    inspect(summary.paths)
    assert "not known without byte counts" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("suffix", [False, True])
def test_spaces_inside_pieces_and_behind_them_have_a_byte_each(tmp_path, suffix):
    texts = sentences(200)
    tokenizer = trained(
        tmp_path / "t.model", texts, vocab_size=600, split_by_whitespace=False, treat_whitespace_as_suffix=suffix
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    assert any("▁" in pieces.id_to_piece(token).strip("▁") for token in range(600))
    summary = packed(tmp_path, texts, tokenizer, byte_counts=False)
    assert len(str(summary).splitlines()) == 1
    text = read_text(summary.paths, tokenizer)
    assert text.original is None
    assert bytes_of_documents(text, text.bytes) == list(map(len, texts))


def test_a_space_added_behind_every_text_is_not_counted(tmp_path):
    texts = sentences(100)
    tokenizer = trained(tmp_path / "t.model", texts, treat_whitespace_as_suffix=True, add_dummy_prefix=True)
    summary = packed(tmp_path, texts, tokenizer)
    text = read_text(summary.paths, tokenizer)
    assert bytes_of_documents(text, table_bytes(text.tokens, tokenizer)) == [len(one) + 1 for one in texts]
    assert bytes_of_documents(text, text.bytes) == list(map(len, texts))
    assert "adds a space to the end of every text" in str(summary)


def test_a_space_added_before_every_text_is_no_byte(tmp_path):
    texts = sentences(100)
    tokenizer = trained(tmp_path / "t.model", texts, add_dummy_prefix=True)
    text = read_text(packed(tmp_path, texts, tokenizer).paths, tokenizer)
    assert bytes_of_documents(text, text.bytes) == list(map(len, texts)) == bytes_of_documents(text, text.original)


def test_a_bos_that_text_can_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"t\.model: the tokenizer has no BOS piece"):
        trained(tmp_path / "t.model", sentences(50), user_defined_symbols=["<s>"])


# --- what the challenge's settings change ------------------------------------------------------


def test_compatibility_characters(tmp_path, tokenizer, capsys):
    texts = COMPATIBLE * 20
    summary = packed(tmp_path, texts, tokenizer)
    text = read_text(summary.paths, tokenizer)
    normal = [len(unicodedata.normalize("NFKC", one).encode()) for one in texts]
    assert sum(normal) == 2360
    assert bytes_of_documents(text, text.bytes) == normal
    assert bytes_of_documents(text, text.original) == [len(one.encode()) for one in texts]
    found = str(summary)
    first = f"the first {tmp_path / 'docs.jsonl'}"
    assert f"does not keep every document as it is: 100 of 100 documents (100.0%), {first}:1" in found
    assert f"{COMPATIBILITY}: 1,340 bytes, 100 of 100 documents (100.0%), {first}:1" in found
    assert f"{WHITE_SPACE}: 120 bytes, 20 of 100 documents (20.0%), {first}:2" in found
    assert "val_bpb counts 2,360 bytes for the 1,980 of the documents (+19.19%): 100 of 100" in found
    nats = np.full(len(text.tokens) - 1, 0.5, np.float32)
    score = summarize(nats, text.target_bytes, text.target_original)
    bits = len(nats) * 0.5 / np.log(2)
    assert (score.val_bpb, score.bytes) == (pytest.approx(bits / 2360), 2360)
    assert (score.original_bpb, score.original_bytes) == (pytest.approx(bits / 1980), 1980)
    assert "2,360 bytes as the challenge counts; original_bpb" in score.bytes_text
    inspect(summary.paths)
    shown = capsys.readouterr().out
    assert f"{2360 / len(text.tokens):.4f}" in shown and f"{1980 / len(text.tokens):.4f}" in shown


def test_white_space_belongs_to_some_token(tmp_path, tokenizer):
    """At the ends, in runs, and in documents that hold nothing else."""
    texts = ["  a  b\n\n", "\n", "\t c \u200b", "", "plain text", " \n "]
    text = read_text(packed(tmp_path, texts, tokenizer).paths, tokenizer)
    assert bytes_of_documents(text, text.original) == [len(one.encode()) for one in texts]
    assert text.original[text.starts].tolist() == [0, 1, 0, 0, 0, 3]  # BOS, where there is no other token
    assert bytes_of_documents(text, text.bytes) == [len(" ".join(one.replace("\u200b", " ").split())) for one in texts]


def test_training_shards_are_compared_too_but_not_counted(tmp_path, tokenizer):
    summary = packed(tmp_path, ["kept", "not\nkept", "nor  this"], tokenizer, "train")
    assert not sidecar_of(summary.paths[0]).exists()
    assert summary.changes.changed.documents == 2
    assert summary.changes.changed.first.endswith("docs.jsonl:2")
    assert summary.changes.miscounted.bytes == -1


def test_a_verb_that_packs_says_it_once(tmp_path, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr("jgolf.data.pack._TASK_BYTES", 30)  # several groups, whose findings add up
    docs = tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["kept", "a\nb"] * 10))
    pack((docs,), tokenizer.path, tmp_path / "out", "val")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].endswith(f"10 of 20 documents (50.0%), the first {docs}:2")
    assert lines[2] == f"  {LINE_BREAKS}: 10 bytes, 10 of 20 documents (50.0%), the first {docs}:2"


def test_unknown_characters_without_byte_pieces(tmp_path):
    tokenizer = trained(tmp_path / "t.model", sentences(100), vocab_size=60, byte_fallback=False)
    summary = packed(tmp_path, ["ba ren", "ba Жren"], tokenizer)
    assert f"{UNKNOWN}: 2 bytes, 1 of 2 documents (50.0%)" in str(summary)
    text = read_text(summary.paths, tokenizer)
    assert bytes_of_documents(text, text.original) == [6, 8]


@pytest.mark.parametrize(
    ("text", "kept", "expected"),
    [
        ("same", "same", {}),
        ("a\n\nb", "a b", {LINE_BREAKS: 2}),
        ("a\r\nb  c", "a b c", {LINE_BREAKS: 2, WHITE_SPACE: 0}),
        ("a  b ", "a b", {WHITE_SPACE: 2}),
        ("a\tb\xa0c", "a b c", {WHITE_SPACE: 3}),
        ("oﬃce ½", "office 1⁄2", {COMPATIBILITY: 5}),
        ("e\u0301", "é", {COMPATIBILITY: 3}),
        ("A b", "a b", {OTHER: 1}),
        ("x\x01y", "xy", {OTHER: 1}),
        ("a▁b", "a b", {OTHER: 3}),
        ("xЖy", "x ⁇ y", {UNKNOWN: 2}),
        ("a", " a", {ADDED_SPACE: 1}),
    ],
)
def test_kinds_of_loss(text, kept, expected):
    assert lost(text, kept) == {kind: size for kind, size in expected.items() if size}


# --- texts that cannot be scored ---------------------------------------------------------------


def test_a_sidecar_is_no_shard(tmp_path, tokenizer):
    summary = packed(tmp_path, ["some text", "more"], tokenizer)
    every = sorted((tmp_path / "out").glob("fineweb_val_*.bin"))
    assert len(every) == 2
    assert read_text(every, tokenizer).tokens.tolist() == open_shard(summary.paths[0]).tolist()


def test_documents_without_text(tmp_path, tokenizer):
    summary = packed(tmp_path, ["", ""], tokenizer)
    assert "all documents are empty: there is nothing to learn from, or to score" in str(summary)
    with pytest.raises(DataError, match=r"val_000000\.bin: its 2 tokens stand for no byte of text"):
        read_text(summary.paths, tokenizer)


def test_a_bos_with_bytes_before_other_tokens_is_not_believed(tmp_path, tokenizer):
    write_shard(tmp_path / "x_val_000000.bin", [1, 1, 300])
    write_shard(tmp_path / "x_val_bytes_000000.bin", [4, 0, 3])
    assert read_text([tmp_path / "x_val_000000.bin"], tokenizer).original.tolist() == [4, 0, 3]
    write_shard(tmp_path / "x_val_bytes_000000.bin", [0, 4, 3])
    with pytest.raises(DataError, match=r"token 1 of .* begins a document, expected 0 bytes for it, found 4"):
        read_text([tmp_path / "x_val_000000.bin"], tokenizer)
