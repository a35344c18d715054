"""Making a tokenizer: `jgolf data tokenizer`."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import sentencepiece
import tyro

from jgolf import files
from jgolf.data import case_ops as cases
from jgolf.data.documents import check_files, read_documents
from jgolf.data.literal_spaces import with_literal_spaces
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.sentence_piece import SentencePieceTokenizer, fused_tokenizer
from jgolf.data.tokenizer import load_tokenizer
from jgolf.errors import DataError
from jgolf.progress import activity, byte_progress

COVERAGE = 0.999
"""Part of a text whose characters have pieces of their own; the others are bytes."""
LEARNT_CHARS = 4000
"""Characters of a document that are learnt from, unless the command line says otherwise."""
# The settings of the challenge's published tokenizers.
_TRAINER_SETTINGS = {
    "model_type": "bpe",
    "character_coverage": COVERAGE,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "hard_vocab_limit": False,
}
# What differs where every text is to come back as it was.
_LOSSLESS_SETTINGS = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
_NOT_LEARNT = re.compile("[\\0\\t▁▅]+")  # what SentencePiece's trainer keeps for itself: bytes in every text
_LONGEST_SENTENCE = 4192  # bytes; SentencePiece leaves out longer ones
_QUIET = 2  # SentencePiece's log level: errors only


def tokenizer(
    documents: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    vocab_size: int = 1024,
    max_documents: int = 1_000_000,
    max_chars: int = LEARNT_CHARS,
    case_ops: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    lossless: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    pure_bytes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    fuse: Path | None = None,
) -> None:
    """Train a SentencePiece BPE tokenizer with the challenge's settings, or one that keeps every text as it is.

    Args:
      documents: Text files: .jsonl, with {"text": …} a line, or .txt, with one document a line; also as .zst or .gz.
      out: The .model file to write.
      vocab_size: Number of pieces.
      max_documents: Learn from this many documents, the first ones.
      max_chars: Learn from this many characters of a document, the first ones; 0 takes whole documents, of which
        SentencePiece leaves out those of more than 4,192 bytes. The trainer holds all that it learns from in memory.
      case_ops: Learn from CaseOps text, in which capitals are operators before small letters.
      lossless: Keep everything: line breaks, runs of spaces, characters that the challenge's settings replace by
        others. The bytes that the challenge counts are then those of the text. For code, verse, and tables.
      pure_bytes: Learn nothing: write the tokenizer whose pieces are the 256 bytes. It needs no documents.
      fuse: Learn nothing: write this CaseOps tokenizer with each space and the case mark after it as one token, on
        the ids of byte pieces that no text needs.
    """
    if fuse:
        if documents or case_ops or lossless or pure_bytes:
            raise DataError(
                "--fuse: expected without documents, --case-ops, --lossless and --pure-bytes: there is nothing to learn"
            )
        fused = fused_tokenizer(load_tokenizer(fuse), out)
        if out.exists() and out.samefile(fuse):
            raise DataError(f"--out {out}: the tokenizer to be fused, which shards may need: choose another name")
        files.write_bytes(out, fused.model_bytes)
        print(f"{out}: {fused.vocab_size} pieces; ids of fused tokens: {', '.join(map(str, fused.fused))}")
        return
    if pure_bytes:
        if documents or case_ops or lossless:
            raise DataError(
                "--pure-bytes: expected without documents, --case-ops and --lossless: there is nothing to learn"
            )
        files.write_bytes(out, byte_tokenizer_file())
        print(f"{out}: 260 pieces")
        return
    start_s = time.monotonic()
    check_files(documents)
    if max_documents < 1 or max_chars < 0:
        raise DataError(f"--max-documents {max_documents} --max-chars {max_chars}: expected at least 1 and at least 0")
    with contextlib.ExitStack() as learning:

        def texts() -> Iterator[str]:
            with byte_progress("reading", sum(path.stat().st_size for path in documents)) as advance:
                for text in itertools.islice(read_documents(documents, advance), max_documents):
                    yield text[: max_chars or None]
            learning.enter_context(activity(f"learning {vocab_size:,} pieces"))  # the trainer has read all by now

        model_bytes = train_tokenizer(texts(), vocab_size, case_ops, cut=max_chars > 0, lossless=lossless)
    files.write_bytes(out, model_bytes)
    print(f"{out}: {vocab_size} pieces, {time.monotonic() - start_s:.1f} s")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, case_ops: bool = False, cut: bool = False, lossless: bool = False
) -> bytes:
    """Learns a tokenizer of exactly `vocab_size` pieces; the bytes of its model file.

    Args:
      texts: what to learn from.
      vocab_size: number of pieces.
      case_ops: learn from CaseOps text, with a piece for each operator.
      cut: of a CaseOps or lossless text that is too long for SentencePiece, learn from the start.
      lossless: every text comes back from its ids as it was, and the challenge's tables count its bytes.

    Raises:
      DataError: the text has too few, or too many, different characters and pairs for that many pieces.
    """
    error_while_reading: list[BaseException] = []
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts, case_ops, cut, lossless, error_while_reading),
            model_writer=model,
            vocab_size=vocab_size,
            minloglevel=_QUIET,
            **_TRAINER_SETTINGS | (_LOSSLESS_SETTINGS if lossless else {}),
            **({"user_defined_symbols": list(cases.OPERATORS)} if case_ops else {}),
        )
    except RuntimeError as error:
        if not error_while_reading:
            raise DataError(
                f"cannot train a tokenizer of {vocab_size} pieces on this text: give more text, or another "
                f"--vocab-size (SentencePiece says: {error})"
            ) from None
    if error_while_reading:
        raise error_while_reading[0]
    found = SentencePieceTokenizer("the trained tokenizer", model.getvalue()).vocab_size
    if found != vocab_size:
        raise DataError(
            f"the text yields only {found} of {vocab_size} pieces: give more text, or a smaller --vocab-size"
        )
    return with_literal_spaces(model.getvalue()) if lossless else model.getvalue()


def _sentences(
    texts: Iterable[str], case_ops: bool, cut: bool, lossless: bool, errors: list[BaseException]
) -> Iterator[str]:
    """The documents as the challenge gives them to the trainer, which cannot carry an exception out."""
    try:
        for text in texts:
            sentence = text if lossless else text.replace("\0", " ").strip()
            if case_ops:
                sentence = cases.encode(sentence)
            if cut and (case_ops or lossless):
                sentence = sentence.encode()[:_LONGEST_SENTENCE].decode(errors="ignore")
            yield from filter(None, _NOT_LEARNT.split(sentence) if lossless else [sentence])
    except BaseException as error:  # noqa: BLE001 – Ctrl-C has to get past the trainer too
        errors.append(error)
