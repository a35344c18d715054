"""The size of a network's vocabulary, where its settings leave that to the tokenizer."""

from __future__ import annotations

from jgolf.config import DataConfig, ModelConfig, resolved
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer


def resolved_for(data: DataConfig, model: ModelConfig) -> ModelConfig:
    """The network's settings as plain numbers; a vocabulary of size 0 gets that of the data's tokenizer.

    A size that is set is not compared with the tokenizer's here: whatever scores tokens does that.

    Raises:
      DataError: the tokenizer is needed, and is missing or damaged.
    """
    if model.vocab_size:
        return resolved(model)
    return resolved(model, load_tokenizer(find_tokenizer(data.dir, data.tokenizer)).vocab_size)
