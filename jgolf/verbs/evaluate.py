"""`jgolf evaluate`: bits per byte of any model file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jgolf import compiling, files
from jgolf import config as configs
from jgolf.config import Average, DataConfig
from jgolf.data.shards import find_shards
from jgolf.data.text import read_text
from jgolf.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from jgolf.errors import ArtifactError, JgolfError
from jgolf.evaluate.score import reference_sliding_score, score, scorers_of
from jgolf.load import LoadedModel, load_model
from jgolf.options import PathText
from jgolf.progress import progress_bar
from jgolf.run_dir import ARTIFACT_FILE, CONFIG_FILE


def evaluate(
    model: tyro.conf.Positional[PathText],
    tokens: tuple[Path, ...] = (),
    tokenizer: Path | None = None,
    seq_len: int | None = None,
    stride: int = 0,
    within_documents: bool | None = None,
    reference_windows: bool = False,
    config: PathText | None = None,
    average: Average | None = None,
    max_tokens: int = 0,
    batch_tokens: int = 65_536,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Score a model in bits per byte, every token once.

    Examples: jgolf evaluate runs/demo; jgolf evaluate model.jgolf --tokenizer T.model --tokens val_*.bin --stride 64

    Args:
      model: A run directory, a .jgolf artifact, or a PyTorch checkpoint (.pt) or artifact (.ptz).
      tokens: Token shards to score; by default the validation split of the run, also of a run's artifact.
      tokenizer: Tokenizer of these tokens, a SentencePiece model or the JSON of one of bytes; the run's own by default.
      seq_len: Longest context; the one the model was trained with by default.
      stride: Slide the window by this many tokens; 0 scores rows of seq_len one after the other.
      within_documents: Let no context reach into the document before; as the model was trained by default.
      reference_windows: With a stride, also run the windows that hang over the end, as the PyTorch reference does.
      config: For PyTorch files, what their tensors do not tell: a config's name, a config.json, or a JSON object.
      average: For a run, the weights to score; those that it exports by default.
      max_tokens: Score the first tokens only; 0 for all.
      batch_tokens: Tokens run at once on each device.
      json: Print one JSON object and nothing else.
    """
    if reference_windows and (not stride or within_documents):
        raise JgolfError(
            "--reference-windows: expected with --stride, which makes the window slide, and without --within-documents"
        )
    for option, value, least in (
        ("--seq-len", 1 if seq_len is None else seq_len, 1),
        ("--stride", stride, 0),
        ("--max-tokens", max_tokens, 0),
        ("--batch-tokens", batch_tokens, 1),
    ):
        if value < least:
            raise JgolfError(f"{option} {value}: expected at least {least}")
    compiling.keep_programs()
    loaded = load_model(model, config, average)
    within_documents = loaded.config.train.documents if within_documents is None else within_documents
    missing = [option for option, given in (("--tokenizer", tokenizer), ("--tokens", tokens)) if not given]
    own_tokenizer = tokenizer_of(loaded, tokenizer, missing)
    paths = list(tokens) or find_shards(_data_of(loaded, missing).dir, "val")
    text = read_text(paths, own_tokenizer, max_tokens + 1 if max_tokens else 0)
    trained = loaded.config.train.seq_len
    seq_len = seq_len or trained
    longest = max(len(text.tokens) - 1, trained)
    if seq_len > longest:
        raise JgolfError(
            f"--seq-len {seq_len}: expected at most {longest}, the tokens that there are to score or the length that "
            "the model was trained with"
        )
    how = {"batch_tokens": batch_tokens, "progress": progress_bar("scoring")}
    what = loaded.config.model, loaded.params, text, seq_len
    if reference_windows:
        found = reference_sliding_score(*what, stride, **how)
    else:
        in_a_row, slid_over = scorers_of(within_documents)
        found = score(slid_over, *what, stride, **how) if stride else score(in_a_row, *what, **how)
    if json:
        print(files.json_text(dataclasses.asdict(found)))
        return
    window = f"windows of {seq_len} every {stride} tokens" if stride else f"rows of {seq_len} tokens"
    window += " within documents" if within_documents else ""
    print(
        f"{model}{_weights(loaded, average)}: val_loss {found.val_loss:.6f} nats, val_bpb {found.val_bpb:.6f} over "
        f"{found.tokens:,} tokens ({found.bytes:,} bytes), {window}, {found.seconds:.1f} s"
    )


def _weights(loaded: LoadedModel, average: Average | None) -> str:
    """Which of a run's weights were scored."""
    return f" ({average or loaded.config.average.export})" if Path(loaded.source).is_dir() else ""


def _data_of(loaded: LoadedModel, missing: Sequence[str]) -> DataConfig:
    """The data of a run, or of the run in whose folder an artifact lies.

    Args:
      loaded: the model.
      missing: the options that would make them unnecessary, for the message.

    Raises:
      JgolfError: the model is a file of its own.
    """
    source = Path(loaded.source).absolute()
    if source.is_dir():
        return loaded.config.data
    run_dir = source.parent.parent
    if source == run_dir / ARTIFACT_FILE and (run_dir / CONFIG_FILE).is_file():
        return configs.read_json(run_dir / CONFIG_FILE).data
    raise JgolfError(f"{source}: in no run's folder, so it knows no data of its own: give {' and '.join(missing)}")


def tokenizer_of(loaded: LoadedModel, explicit: Path | None, missing: Sequence[str] = ("--tokenizer",)) -> Tokenizer:
    """The tokenizer to use with a model: the given one, or its run's own; see `_data_of` for `missing`.

    Raises:
      ArtifactError: it is not the one that the model was trained with.
      DataError: it cannot be read.
      JgolfError: none is given, and the model does not know its own.
    """
    path = explicit
    if path is None:
        data = _data_of(loaded, missing)
        path = find_tokenizer(data.dir, data.tokenizer)
    tokenizer = load_tokenizer(path, loaded.config.model.vocab_size)
    expected = loaded.tokenizer_fingerprint
    if expected not in (None, tokenizer.fingerprint):
        raise ArtifactError(
            f"{path}: not the tokenizer that {loaded.source} was trained with: its SHA-256 is "
            f"{tokenizer.fingerprint[:16]}…, expected {expected[:16]}…"
        )
    return tokenizer
