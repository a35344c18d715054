"""Loads an artifact and scores it: everything that a submission's code has to do, and no more.

The source files that this module needs are the submission's code, and their bytes are counted. It runs
alone too: `python -m jgolf.artifact.scoring ARTIFACT --tokens SHARD… --tokenizer T`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jgolf import files
from jgolf.artifact import container
from jgolf.config import Config, ModelConfig, from_dict, resolved, validate_model, versions
from jgolf.data.text import Text, read_text
from jgolf.data.tokenizer import Tokenizer, load_tokenizer
from jgolf.errors import ArtifactError, ConfigError, JgolfError
from jgolf.evaluate.score import score, scorers_of
from jgolf.model.functional import Params, parameter_shapes
from jgolf.quantize.stored import StoredTensor, dequantize
from jgolf.reading import excerpt

LARGEST_SIZE = 1 << 20  # of a model's settings
MOST_NAMED = 20  # parameters in an error


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A model as an artifact holds it.

    Attributes:
      name: of its config.
      model: the network's settings.
      seq_len: length of the sequences that it was trained on, and is scored with.
      documents: whether it was trained on documents apart, and is scored so.
      tokenizer_fingerprint: SHA-256 of its tokenizer; None where it is not known.
      stored: path → parameter in storage form.
    """

    name: str
    model: ModelConfig
    seq_len: int
    documents: bool
    tokenizer_fingerprint: str | None
    stored: dict[str, StoredTensor]

    @classmethod
    def of_run(cls, config: Config, stored: dict[str, StoredTensor], tokenizer_fingerprint: str | None) -> Artifact:
        """A run's model as it is stored."""
        train = config.train
        return cls(config.name, config.model, train.seq_len, train.documents, tokenizer_fingerprint, stored)

    def params(self) -> dict[str, np.ndarray]:
        """Path → float32 parameter."""
        return dequantize(self.stored)

    def metadata(self) -> dict[str, Any]:
        """What the artifact's file says beside the weights."""
        return {
            versions.KEY: versions.VERSION,
            "name": self.name,
            "model": dataclasses.asdict(self.model),
            "seq_len": self.seq_len,
            "documents": self.documents,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
        }

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ArtifactError unless the model was trained with this tokenizer, as far as that is known."""
        if self.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
            raise ArtifactError(
                f"{tokenizer.path}: not the tokenizer that the artifact was trained with: its SHA-256 is "
                f"{tokenizer.fingerprint[:16]}…, expected {self.tokenizer_fingerprint[:16]}…"
            )


def read_artifact(path: str | Path) -> Artifact:
    """Reads a .jgolf file.

    Raises:
      ArtifactError: it is missing or damaged, or its parameters do not fit its own settings.
    """
    stored, metadata = container.read(path)
    return described(stored, metadata, str(path))


def described(stored: dict[str, StoredTensor], metadata: dict[str, Any], source: str) -> Artifact:
    """The model that parameters and an artifact's metadata make.

    Raises:
      ArtifactError: the metadata describe none, or the parameters are not its own.
    """
    try:
        metadata = {"documents": False, **metadata}  # older artifacts do not say
        fields = {item.name: metadata[item.name] for item in dataclasses.fields(Artifact) if item.name != "stored"}
        model = versions.complete(metadata["model"], metadata.get(versions.KEY, 0), "model")
        artifact = Artifact(**{**fields, "model": resolved(from_dict(model, ModelConfig)), "stored": stored})
        _check_plausible(artifact)
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise ArtifactError(f"{source}: its metadata do not describe a model: {error!s:.500}") from None
    check_shapes({name: tensor.shape for name, tensor in stored.items()}, artifact.model, source)
    return artifact


def _check_plausible(artifact: Artifact) -> None:
    """Raises ValueError or ConfigError for metadata from which no network should be built, not even in outline."""
    for name, kind in (("name", str), ("seq_len", int), ("tokenizer_fingerprint", str | None)):
        value = getattr(artifact, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {excerpt(value)}")
    if not isinstance(artifact.documents, bool):
        raise ValueError(f"documents is {excerpt(artifact.documents)}")
    sizes = {"seq_len": artifact.seq_len, **dataclasses.asdict(artifact.model)}
    for name, size in sizes.items():
        if isinstance(size, int) and not 0 <= size <= LARGEST_SIZE:
            raise ValueError(f"{name} is {excerpt(size)}, expected at most {LARGEST_SIZE}")
    validate_model(artifact.model)
    if artifact.seq_len < 1 or artifact.model.num_layers > len(artifact.stored):
        raise ValueError(
            f"seq_len {artifact.seq_len} and num_layers {artifact.model.num_layers} with {len(artifact.stored)} tensors"
        )


def check_shapes(found: dict[str, tuple[int, ...]], model: ModelConfig, source: str) -> None:
    """Raises ArtifactError, naming the parameters that are missing, extra or misshapen for `model`."""
    expected = parameter_shapes(model)
    wrong = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    if wrong:
        rows = (f"  {path}: found {found.get(path, 'none')}, expected {expected.get(path, 'none')}" for path in wrong)
        more = [f"  and {len(wrong) - MOST_NAMED} more"] if len(wrong) > MOST_NAMED else []
        listed = "\n".join([*itertools.islice(rows, MOST_NAMED), *more])
        raise ArtifactError(f"{source}: the parameters do not fit the model:\n{listed}")


Further = Callable[[Artifact, Params, Text], dict[str, float]]
"""Scores the artifact in a further way."""


def main(argv: list[str] | None = None, further: Further | None = None) -> int:
    """Scores an artifact, standard and sliding, and prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description="Score an artifact in bits per byte.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="validation shards")
    parser.add_argument("--tokenizer", type=Path, required=True, help="its file, a SentencePiece model or JSON")
    parser.add_argument("--stride", type=int, default=64, help="of the sliding window")
    parser.add_argument("--max-tokens", type=int, default=0, help="score the first tokens only; 0 for all")
    options = parser.parse_args(argv)
    try:
        print(files.json_text(_score(options, further)))
    except JgolfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _score(options: argparse.Namespace, further: Further | None) -> dict[str, float | None]:
    artifact = read_artifact(options.artifact)
    tokenizer = load_tokenizer(options.tokenizer, artifact.model.vocab_size)
    artifact.check_tokenizer(tokenizer)
    text = read_text(options.tokens, tokenizer, options.max_tokens + 1 if options.max_tokens else 0)
    params = artifact.params()
    rest = artifact.model, params, text, artifact.seq_len
    in_a_row, slid_over = scorers_of(artifact.documents)
    standard, slid = score(in_a_row, *rest), score(slid_over, *rest, min(options.stride, artifact.seq_len))
    slid_scores = {f"sliding_{name}": getattr(slid, name) for name in ("val_loss", "val_bpb", "original_bpb")}
    found = dataclasses.asdict(standard) | slid_scores
    return found | (further(artifact, params, text) if further else {})


if __name__ == "__main__":
    sys.exit(main())
