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
from jgolf.evaluate.score import rows, score, sliding
from jgolf.evaluate.validation import Validation
from jgolf.model.initial import init
from tests.conftest import random_words

TEXTS = [f"{text.title()}\n\n  NASA's {number} — naïve" for number, text in enumerate(random_words(3)[:20])]


def write_byte_tokenizer(path):
    path.write_bytes(byte_tokenizer_file())


def write_case_ops_tokenizer(path):
    path.write_bytes(train_tokenizer(TEXTS, 300, case_ops=True))


@pytest.mark.parametrize(
    ("name", "write"), [("bytes.json", write_byte_tokenizer), ("case_ops.model", write_case_ops_tokenizer)]
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
    found = validation.sliding(jax.jit(init, static_argnums=0)(model, jax.random.key(0)))
    assert found.tokens == len(validation.text.tokens) - 1
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)


def test_documents_without_text_end_in_a_clear_error(tiny):
    params = jax.jit(init, static_argnums=0)(dataclasses.replace(tiny, orthogonal_init=False), jax.random.key(0))
    empty = Text.of(np.array([1, 1, 1], np.uint16), 1, np.zeros(3, np.uint16))
    for scorer, options in ((rows, (2,)), (sliding, (2, 1))):
        with pytest.raises(DataError, match="the 2 scored tokens stand for no byte of text"):
            score(scorer, tiny, params, empty, *options)
    for count in (1, 2):
        with pytest.raises(DataError, match=f"the validation tokens are too few: found {count}"):
            score(rows, tiny, params, empty.first(count), 2)
