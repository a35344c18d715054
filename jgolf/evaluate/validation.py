"""The validation split of a data folder."""

from __future__ import annotations

from dataclasses import dataclass

from jgolf.config import Config
from jgolf.data.shards import find_shards
from jgolf.data.text import Text, read_text
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import DataError
from jgolf.evaluate.score import Score, score, scorers_of
from jgolf.model.functional import Params


@dataclass(frozen=True)
class Validation:
    """Validation text and its tokenizer, ready to score parameters of `config.model`."""

    config: Config
    text: Text
    tokenizer: Tokenizer

    @classmethod
    def open(cls, config: Config) -> Validation:
        """Opens what `config.data` names.

        Raises:
          DataError: it is missing, damaged, of another vocabulary, or too short for one sequence.
        """
        tokenizer_path = find_tokenizer(config.data.dir, config.data.tokenizer)
        tokenizer = load_tokenizer(tokenizer_path, config.model.vocab_size)
        text = read_text(find_shards(config.data.dir, "val"), tokenizer)
        if len(text.tokens) <= config.train.seq_len:
            raise DataError(
                f"{config.data.dir}: the validation split has {len(text.tokens)} tokens, expected at least "
                f"{config.train.seq_len + 1}, one sequence of train.seq_len and its last target; pack more documents "
                "into it or shorten train.seq_len"
            )
        return cls(config, text, tokenizer)

    def standard(self, params: Params, max_tokens: int = 0, **how) -> Score:
        """Scores with what a training step sees: rows of `train.seq_len`, or documents apart.

        See `jgolf.evaluate.score.rows` and `packed`.

        Args:
          params: the weights.
          max_tokens: score about this many tokens only; 0 for all.
          **how: `mesh`, `progress` and `looped` of `jgolf.evaluate.nats.window_nats`.
        """
        seq_len = self.config.train.seq_len
        in_a_row, _ = scorers_of(self.config.train.documents)
        return score(in_a_row, self.config.model, params, self._first(max_tokens), seq_len, **self._how(how))

    def sliding(self, params: Params, max_tokens: int = 0, **how) -> Score:
        """Scores with the context of `train.seq_len` and the stride of `evaluate.sliding_stride`; see `standard`."""
        seq_len = self.config.train.seq_len
        stride = min(self.config.evaluate.sliding_stride, seq_len)
        _, slid_over = scorers_of(self.config.train.documents)
        return score(slid_over, self.config.model, params, self._first(max_tokens), seq_len, stride, **self._how(how))

    def adapted(self, params: Params, max_tokens: int = 0, **how) -> Score:
        """Scores with test-time training, as `evaluate.adapted` says.

        Args:
          params: the weights.
          max_tokens: score about this many tokens only; 0 for all.
          **how: options of `jgolf.evaluate.ttt.adapted.adapted`.
        """
        from jgolf.evaluate.ttt.adapted import adapted  # most runs never ask for it

        what = self.config.model, params, self._first(max_tokens), self.config.train.seq_len
        return score(adapted, *what, self.config.evaluate.adapted, **how)

    def _first(self, max_tokens: int) -> Text:
        return self.text.first(max(max_tokens, self.config.train.seq_len) + 1) if max_tokens else self.text

    def _how(self, how: dict) -> dict:
        return {"batch_tokens": self.config.evaluate.batch_tokens, **how}
