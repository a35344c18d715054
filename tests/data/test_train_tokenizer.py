import json
import re

import pytest
import sentencepiece

from jgolf.data.case_ops import encode
from jgolf.data.documents import read_documents
from jgolf.data.tokenizer import load_tokenizer
from jgolf.data.train_tokenizer import tokenizer as tokenizer_verb
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError, JgolfError


@pytest.fixture(scope="module")
def texts(demo_dir):
    return list(read_documents([demo_dir / "val.txt"]))


def test_the_challenges_settings(tmp_path, texts):
    (tmp_path / "t.model").write_bytes(train_tokenizer(texts, 512))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    assert pieces.vocab_size() == 512
    assert [pieces.pad_id(), pieces.bos_id(), pieces.eos_id(), pieces.unk_id()] == [0, 1, 2, 3]
    assert [pieces.id_to_piece(4 + byte) for byte in (0, 255)] == ["<0x00>", "<0xFF>"]
    assert all(pieces.is_byte(4 + byte) for byte in range(256))
    assert not any(len(pieces.id_to_piece(token)) > 1 and any(map(str.isdigit, pieces.id_to_piece(token)))
                   for token in range(260, 512))  # fmt: skip
    assert not pieces.encode("word", out_type=str)[0].startswith("▁")  # no dummy prefix
    assert pieces.decode(pieces.encode("ﬁne  spaces")) == "fine spaces"  # nmt_nfkc
    assert pieces.decode(pieces.encode("漢")) == "漢"  # byte fallback


def test_verb_cuts_documents(tmp_path, texts, capsys):
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer_verb((source,), tmp_path / "out" / "t.model", vocab_size=400, max_documents=30, max_chars=2000)
    expected = train_tokenizer([text[:2000] for text in texts[:30]], 400)
    assert (tmp_path / "out" / "t.model").read_bytes() == expected
    assert load_tokenizer(tmp_path / "out" / "t.model", 400).vocab_size == 400
    assert "t.model: 400 pieces" in capsys.readouterr().out


def test_text_and_size_that_do_not_go_together(texts):
    for arguments, message in (
        ((["hello world"], 1024), r"the text yields only 2\d\d of 1024 pieces: give more text"),
        ((texts, 100), "cannot train a tokenizer of 100 pieces on this text"),
        (([], 1024), "cannot train a tokenizer of 1024 pieces on this text: give more text"),
    ):
        with pytest.raises(DataError, match=message):
            train_tokenizer(*arguments)


def test_bad_input_keeps_the_old_file(tmp_path):
    source = tmp_path / "docs.jsonl"
    source.write_text('{"text": "good"}\n{"text"\n')
    out = tmp_path / "t.model"
    out.write_bytes(b"old")
    with pytest.raises(DataError, match=r"docs\.jsonl:2: not JSON"):
        tokenizer_verb((source,), out)
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        tokenizer_verb((tmp_path / "none.txt",), out)
    with pytest.raises(DataError, match="--max-documents 0"):
        tokenizer_verb((source,), out, max_documents=0)
    assert out.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_interrupt_gets_through(texts):
    def interrupted():
        yield from texts
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(interrupted(), 512)


def test_unwritable_output(tmp_path, demo_dir):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JgolfError, match=r"t\.model: cannot be written: .*file is a file, expected a folder"):
        tokenizer_verb((demo_dir / "val.txt",), tmp_path / "file" / "t.model", vocab_size=400)


def test_case_ops_is_the_challenges_trainer_on_encoded_text(tmp_path, texts):
    """As its exporter calls it: whole documents, no white space at their ends, NUL as a space."""
    documents = [*texts[:80], " \0 ", "\0An ending\0"]
    source, out = tmp_path / "docs.jsonl", tmp_path / "t.model"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    tokenizer_verb((source,), out, vocab_size=600, max_chars=0, case_ops=True)
    learnt = [text.replace("\0", " ").strip() for text in documents]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([encode(text) for text in learnt if text]),
        model_prefix=str(tmp_path / "expected"),
        model_type="bpe",
        vocab_size=600,
        character_coverage=0.999,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        user_defined_symbols=["\ue001", "\ue002", "\ue003", "\ue004"],
        minloglevel=2,
    )
    found, expected = (
        sentencepiece.SentencePieceProcessor(model_file=str(path)) for path in (out, tmp_path / "expected.model")
    )
    pieces = [found.id_to_piece(token) for token in range(600)]
    assert pieces == [expected.id_to_piece(token) for token in range(600)]
    assert pieces[:8] == ["<pad>", "<s>", "</s>", "<unk>", "\ue001", "\ue002", "\ue003", "\ue004"]
    assert not any(re.search("[A-Z]", piece) for piece in pieces[264:])


def test_case_ops_learns_from_long_documents_that_were_cut(tmp_path):
    """Operators make a text longer than SentencePiece takes; its start is learnt from all the same."""
    source, out = tmp_path / "docs.txt", tmp_path / "t.model"
    words = [f"W{letter}x{other}" for letter in "abcdefgh" for other in "abcdefgh"]
    source.write_text(" ".join(words * 40) + "\n")
    tokenizer_verb((source,), out, vocab_size=300, case_ops=True)
    assert load_tokenizer(out).vocab_size == 300
    with pytest.raises(DataError, match="--pure-bytes: expected without documents"):
        tokenizer_verb((source,), out, pure_bytes=True)
