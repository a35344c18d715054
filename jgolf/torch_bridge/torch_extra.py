"""PyTorch is an optional package: the one place that imports it."""

from __future__ import annotations

from types import ModuleType

from jgolf.errors import MissingExtraError


def import_torch(purpose: str) -> ModuleType:
    """The module `torch`.

    Raises:
      MissingExtraError: it is not installed; the text says what `purpose` needs it and how to get it.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch", purpose) from None
    return torch
