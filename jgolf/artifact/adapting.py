"""Scores an artifact as `jgolf.artifact.scoring` does, and with test-time training: for submissions that adapt."""

from __future__ import annotations

from typing import Any

from jgolf.artifact import scoring
from jgolf.artifact.scoring import Artifact
from jgolf.config import AdaptedConfig, HintsConfig, from_dict
from jgolf.data.text import Text
from jgolf.evaluate.score import score
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.model.functional import Params


def main(argv: list[str], settings: dict[str, Any], hints: dict[str, Any] | None = None) -> int:
    """Scores an artifact standard, sliding and adapted, and prints one JSON object; returns the exit code.

    Args:
      argv: the command line.
      settings: those of `AdaptedConfig`.
      hints: those of `HintsConfig`; None for no hints.
    """
    how = {"hints": from_dict(hints, HintsConfig)} if hints is not None else {}

    def further(artifact: Artifact, params: Params, text: Text) -> dict[str, float]:
        what = artifact.model, params, text, artifact.seq_len
        found = score(adapted, *what, from_dict(settings, AdaptedConfig), **how)
        return {"adapted_val_loss": found.val_loss, "adapted_val_bpb": found.val_bpb}

    return scoring.main(argv, further)
