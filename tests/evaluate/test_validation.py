"""The validation split of texts in other tokenizers than the challenge's."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jgolf import config as configs
from jgolf.config import Config
from jgolf.data.pack import pack_documents
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.text import Text
from jgolf.data.tokenizer import load_tokenizer
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError
from jgolf.evaluate.score import reference_packed_score, reference_sliding_score, rows, score, sliding
from jgolf.evaluate.validation import Validation
from jgolf.model.initial import init
from tests.conftest import random_words

TEXTS = [f"{text.title()}\n\n  NASA's {number} — naïve" for number, text in enumerate(random_words(3)[:20])]


def write_byte_tokenizer(path):
    path.write_bytes(byte_tokenizer_file())


def write_case_ops_tokenizer(path):
    path.write_bytes(train_tokenizer(TEXTS, 300, case_ops=True))


def write_plain_tokenizer(path):
    path.write_bytes(train_tokenizer(TEXTS, 340))


def write_lossless_tokenizer(path):
    path.write_bytes(train_tokenizer(TEXTS, 340, lossless=True))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("bytes.json", write_byte_tokenizer),
        ("case_ops.model", write_case_ops_tokenizer),
        ("plain.model", write_plain_tokenizer),
        ("lossless.model", write_lossless_tokenizer),
    ],
)
def test_bits_per_byte_of_the_original_text(tmp_path, tiny, name, write):
    write(tmp_path / name)
    docs = tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pack_documents([docs], tmp_path / name, tmp_path / "data", "val", workers=1)
    vocab_size = load_tokenizer(tmp_path / name).vocab_size
    model = dataclasses.replace(tiny, vocab_size=vocab_size, orthogonal_init=False)
    settings = {"model": model, "data.dir": str(tmp_path / "data"), "train.seq_len": 24}
    validation = Validation.open(configs.replace_all(Config(), settings))
    params = jax.jit(init, static_argnums=0)(model, jax.random.key(0))
    found = validation.sliding(params)
    original, kept = (
        sum(len(text.encode()) for text in texts) for texts in (TEXTS, [" ".join(text.split()) for text in TEXTS])
    )
    assert found.tokens == len(validation.text.tokens) - 1
    assert found.original_bytes == original
    assert found.bytes == (kept if name == "plain.model" else original)
    bits = found.val_loss * found.tokens / np.log(2)
    assert found.original_bpb == pytest.approx(bits / original, rel=1e-12)
    assert found.val_bpb == pytest.approx(bits / found.bytes, rel=1e-12)
    if name != "plain.model":
        return
    windows = reference_sliding_score(model, params, validation.text, 24, 8)
    packed = reference_packed_score(model, params, validation.text, 24, 2)
    for one in (validation.standard(params), windows, packed):  # they score other targets, some twice
        assert one.original_bpb * one.original_bytes == pytest.approx(one.val_bpb * one.bytes, rel=1e-12)
        assert one.original_bytes > one.bytes
    for path in (tmp_path / "data").glob("*_bytes_*"):
        path.unlink()
    alone = Validation.open(validation.config).sliding(params)
    assert (alone.val_bpb, alone.bytes) == (found.val_bpb, found.bytes)
    assert alone.original_bpb is None and alone.original_bytes is None


def test_documents_without_text_end_in_a_clear_error(tiny):
    params = jax.jit(init, static_argnums=0)(dataclasses.replace(tiny, orthogonal_init=False), jax.random.key(0))
    empty = Text.of(np.array([1, 1, 1], np.uint16), 1, np.zeros(3, np.uint16))
    for scorer, options in ((rows, (2,)), (sliding, (2, 1))):
        with pytest.raises(DataError, match="the 2 scored tokens stand for no byte of text"):
            score(scorer, tiny, params, empty, *options)
    for count in (1, 2):
        with pytest.raises(DataError, match=f"the validation tokens are too few: found {count}"):
            score(rows, tiny, params, empty.first(count), 2)
