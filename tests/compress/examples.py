"""Bytes of every kind, and a tiny model that is good at one of them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

import numpy as np

import jgolf.compress.pieces
from jgolf.config import Config
from jgolf.data.tokenizer import Tokenizer
from jgolf.model.functional import parameter_shapes
from tests.conftest import NANO, RECIPE

SIZE = 1500
WEIGHTS = np.random.default_rng(5).dirichlet(np.full(26, 0.15))


def letters(count: int, seed: int = 0) -> str:
    """Letters drawn one by one, some much more often than others: LZMA has nothing to find in them."""
    drawn = np.random.default_rng(seed).choice(26, count, p=WEIGHTS)
    return (drawn + ord("a")).astype(np.uint8).tobytes().decode()


WORDS = " ".join(letters(size, size) for size in range(3, 60))
EXAMPLES = {
    "nothing": b"",
    "one byte": b"x",
    "random bytes": np.random.default_rng(1).bytes(SIZE),
    "UTF-16": WORDS.encode("utf-16"),
    "UTF-8, cut": "naïve — 漢字".encode()[:-1],
    "invalid UTF-8": b"some words \xff\xfe and others \xc3( more of them here. " * 20,
    "one long line": letters(SIZE).encode(),
    "many lines": "\n".join(WORDS.split()).encode() + b"\r\n\n\t  ",
    "an executable": Path(sys.executable).resolve().read_bytes()[:SIZE],
    "Python source": inspect.getsource(jgolf.compress.pieces).encode()[: 3 * SIZE],
    "documents": "\n".join(f"The NASA iPhone — no. {number}: ½ ﬁx\xa0it…  ™" for number in range(30)).encode(),
    "operators": "a \ue001b\ue004\ue002c \u200b x".encode() * 9,
    "zeros": bytes(SIZE),
    "white space": b" \n \t\n  \r\n" * 40,
}


def letters_model(tokenizer: Tokenizer, seed: int = 0) -> tuple[Config, dict[str, np.ndarray]]:
    """A tiny network of all the recipe's parts that knows how often the letters come, and its weights.

    Its context counts, but not for much.
    """
    config = dataclasses.replace(NANO, vocab_size=tokenizer.vocab_size, tie_embeddings=False)
    rng = np.random.default_rng(seed)
    params = {path: rng.normal(0, 0.05, shape) for path, shape in parameter_shapes(config).items()}
    params["embed/embedding"] += 1  # and the blocks hand that on: every position is near the same vector of ones
    for path in params:
        if path.endswith("resid_mix"):
            params[path][0] += 1
    chances = np.full(tokenizer.vocab_size, 1e-4)
    for letter, weight in enumerate(WEIGHTS):
        chances[tokenizer.encode(chr(ord("a") + letter))[-1]] += weight
    params["head/kernel"] += np.log(chances) / config.model_dim
    train = dataclasses.replace(RECIPE.train, seq_len=32, documents=False)
    params = {path: value.astype(np.float32) for path, value in params.items()}
    return dataclasses.replace(RECIPE, name="letters", model=config, train=train), params
