"""Settings that say something of another thing, as the plain numbers that the network is built from."""

from __future__ import annotations

import dataclasses
from typing import Any

from jgolf.config.marks import Mark, marked
from jgolf.config.settings import ModelConfig
from jgolf.errors import ConfigError

LAYER_SETTINGS = marked(ModelConfig, Mark.LAYERS)


def resolved(model: ModelConfig, vocab_size: int = 0) -> ModelConfig:
    """The same network with its layers counted from 0, and with a vocabulary of known size.

    Whatever builds or counts a network begins here, so that a setting read behind it is a plain number.

    Args:
      model: settings; layers that there are not stay as they are, for `validate` to refuse.
      vocab_size: of the tokenizer, where it is known; a size that `model` has goes before it.

    Raises:
      ConfigError: neither tells the size of the vocabulary.
    """
    if not (model.vocab_size or vocab_size):
        raise ConfigError(
            "model.vocab_size is 0, which takes the tokenizer's number of pieces, and no tokenizer is read here: "
            "expected that number"
        )
    return dataclasses.replace(layers_from_0(model), vocab_size=model.vocab_size or vocab_size)


def layers_from_0(model: ModelConfig) -> ModelConfig:
    """The same network with its layers counted from 0."""
    layers = {name: counted_from_0(getattr(model, name), model.num_layers) for name in LAYER_SETTINGS}
    return dataclasses.replace(model, **layers)


def counted_from_0(layers: Any, num_layers: int) -> Any:
    """A layer's number or several, −1 for the last layer: the same from 0, where there are such layers."""
    if isinstance(layers, tuple):
        return tuple(counted_from_0(layer, num_layers) for layer in layers)
    return layers + num_layers if -num_layers <= layers < 0 else layers
