"""Bytes of every kind as tokens and a rest, and back."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from jgolf.compress.pieces import Pieces, join, split
from jgolf.compress.rans import Damaged
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.tokenizer import Tokenizer, load_tokenizer
from tests.compress.examples import EXAMPLES
from tests.conftest import GOLDEN


@pytest.fixture(scope="module", params=["bytes", "CaseOps", "SentencePiece"])
def tokenizer(request, tmp_path_factory, nano_data) -> Tokenizer:
    if request.param == "bytes":
        path = tmp_path_factory.mktemp("bytes") / "t.json"
        path.write_bytes(byte_tokenizer_file())
        return load_tokenizer(path)
    paths = {"CaseOps": GOLDEN / "case_ops" / "caseops_8192.model", "SentencePiece": nano_data / "nano.model"}
    return load_tokenizer(paths[request.param])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_bytes_come_back(name, tokenizer):
    data = EXAMPLES[name]
    pieces = split(data, tokenizer)
    assert join(pieces, len(data), tokenizer) == data
    assert ((pieces.tokens >= 0) & (pieces.tokens < tokenizer.vocab_size)).all()


def test_longer_than_a_block(tokenizer):
    text = "word and word, " * 9000 + "漢字" * 50_000
    pieces = split(text.encode(), tokenizer)
    assert join(pieces, len(text.encode()), tokenizer) == text.encode()
    assert len(pieces.rest) < 100  # all of it is tokens


def test_a_lossy_tokenizer_holds_the_words_of_a_program(nano_data):
    tokenizer = load_tokenizer(nano_data / "nano.model")
    data = EXAMPLES["Python source"]
    pieces = split(data, tokenizer)
    assert tokenizer.decode(pieces.tokens.tolist()).split() == data.decode().split()
    assert len(pieces.rest) < len(data) / 8


def test_damaged_pieces_are_refused_or_text(nano_data):
    tokenizer, data = load_tokenizer(nano_data / "nano.model"), EXAMPLES["Python source"]
    whole, rng = split(data, tokenizer), np.random.default_rng(0)
    for _ in range(300):
        rest = bytearray(whole.rest)
        rest[rng.integers(60)] = rng.integers(256)
        tokens = whole.tokens[: rng.integers(len(whole.tokens) + 1)] if rng.random() < 0.3 else whole.tokens
        with contextlib.suppress(Damaged):
            assert len(join(Pieces(tokens, bytes(rest)), len(data), tokenizer)) == len(data)
