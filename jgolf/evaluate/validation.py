"""The validation split of a data folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jgolf.config import Config
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.tokenizer import ByteTables, Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import DataError
from jgolf.evaluate.score import Score, sliding_score, standard_score
from jgolf.model.functional import Params


@dataclass(frozen=True)
class Validation:
    """Validation tokens and their tokenizer, ready to score parameters of `config.model`."""

    config: Config
    tokens: np.ndarray
    tokenizer: Tokenizer

    @classmethod
    def open(cls, config: Config) -> Validation:
        """Opens what `config.data` names.

        Raises:
          DataError: it is missing, damaged, of another vocabulary, or too short for one sequence.
        """
        tokenizer_path = find_tokenizer(config.data.dir, config.data.tokenizer)
        tokenizer = load_tokenizer(tokenizer_path, config.model.vocab_size)
        stream = TokenStream(find_shards(config.data.dir, "val"), config.model.vocab_size)
        if len(stream) <= config.train.seq_len:
            raise DataError(
                f"{config.data.dir}: the validation split has {len(stream)} tokens, expected at least "
                f"{config.train.seq_len + 1}, one sequence of train.seq_len and its last target; pack more documents "
                "into it or shorten train.seq_len"
            )
        return cls(config, stream.take(0, len(stream)), tokenizer)

    def standard(self, params: Params, max_tokens: int = 0, **how) -> Score:
        """Scores rows of `train.seq_len`; see `standard_score`.

        Args:
          params: the weights.
          max_tokens: score about this many tokens only; 0 for all.
          **how: `mesh` and `progress` of `jgolf.evaluate.score.score`.
        """
        seq_len = self.config.train.seq_len
        tokens = self._first(max_tokens)
        return standard_score(self.config.model, params, tokens, self._tables, seq_len, **self._how(how))

    def sliding(self, params: Params, max_tokens: int = 0, **how) -> Score:
        """Scores with the context of `train.seq_len` and the stride of `evaluate.sliding_stride`; see `standard`."""
        seq_len = self.config.train.seq_len
        stride = min(self.config.evaluate.sliding_stride, seq_len)
        tokens = self._first(max_tokens)
        return sliding_score(self.config.model, params, tokens, self._tables, seq_len, stride, **self._how(how))

    def _first(self, max_tokens: int) -> np.ndarray:
        return self.tokens[: max(max_tokens, self.config.train.seq_len) + 1] if max_tokens else self.tokens

    @property
    def _tables(self) -> ByteTables:
        return self.tokenizer.byte_tables

    def _how(self, how: dict) -> dict:
        return {"batch_tokens": self.config.evaluate.batch_tokens, **how}
