"""A small corpus from text that every Python installation has: `jgolf data demo`.

Its documents are the docstrings, other long strings and comment blocks in the sources of the standard
library, one document a source file, and the help topics of `pydoc`. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

from jgolf import files
from jgolf.config import Config
from jgolf.data.documents import read_documents
from jgolf.data.pack import pack_documents
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError, JgolfError
from jgolf.reading import read_json

DEMO_FOLDER = Path("data/demo")
"""The demo's own folder: runs that ask for the demo build it there, and nowhere else."""
_MANIFEST = "demo.json"
_FORMAT = 2  # of the corpus
_TOKENIZER = "demo_1024_bpe.model"
_VOCAB_SIZE = 1024
_TOKENIZER_CHARS = 4000  # of each document; SentencePiece leaves longer ones out
_MIN_CORPUS_BYTES = 1_000_000
_MAX_CORPUS_BYTES = 4_000_000
_VALIDATION_BYTES = 170_000
_MIN_PASSAGE_CHARS = 60
_OWN_DOCUMENT_CHARS = 2_500  # a string this long, such as a help topic, is a document
_VALIDATION_DOCUMENT_CHARS = range(1_000, 16_000)
_COPIED_WORDS = 20  # as many in a row, in two documents, are a copy
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "__pycache__"}


def demo(out: Path = DEMO_FOLDER) -> None:
    """Build a small corpus, a tokenizer and shards from this Python's own documentation strings.

    Args:
      out: Folder to build in, new or empty.
    """
    build_demo(out)
    manifest = _manifest(out)
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in sorted(manifest["files"].items()))
    print(f"{out}: from Python {manifest['python']}: {sizes}")


def build_demo(out_dir: str | Path) -> None:
    """Builds the demo corpus as the folder `out_dir`, whole or not at all, unless it is there and complete.

    It holds `train.txt` and `val.txt` (one document a line), the tokenizer, the shards of both splits, and
    a manifest. The same Python installation gives the same files.

    Raises:
      DataError: the standard library has too little text, or `out_dir` holds something else, which stays as it is.
    """
    out_dir = Path(out_dir)
    found = _what_is_not_the_demo(out_dir)
    if found is None:
        return
    if _holds_anything(out_dir):
        raise DataError(
            f"{out_dir}: not empty, and not the complete demo corpus ({found}): choose a new folder for the demo, or "
            "remove this one if nothing in it is needed"
        )
    print(f"building the demo corpus in {out_dir} from the standard library's texts", flush=True)
    train, validation = _split(_documents(Path(sysconfig.get_paths()["stdlib"])))
    try:
        with files.atomic_folder(out_dir) as folder:
            _fill(folder, train, validation)
    except JgolfError:
        if _what_is_not_the_demo(out_dir) is not None:  # else another process was faster
            raise


def _fill(folder: Path, train: list[str], validation: list[str]) -> None:
    """Writes the files of the corpus, given the documents of both splits."""
    files.write_text(folder / "train.txt", "\n".join(train) + "\n")
    files.write_text(folder / "val.txt", "\n".join(validation) + "\n")
    texts = (text[:_TOKENIZER_CHARS] for text in read_documents([folder / "train.txt"]))
    files.write_bytes(folder / _TOKENIZER, train_tokenizer(texts, _VOCAB_SIZE))
    paths = [folder / "train.txt", folder / "val.txt", folder / _TOKENIZER]
    for split in ("train", "val"):
        paths += pack_documents([folder / f"{split}.txt"], folder / _TOKENIZER, folder, split).paths
    paths += folder.glob("*_val_bytes_*.bin")
    sizes = {path.name: path.stat().st_size for path in paths}
    manifest = {"format": _FORMAT, "python": sys.version.split()[0], "files": sizes}
    files.write_text(folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")


def build_missing_demo(config: Config) -> None:
    """Builds the demo corpus where a run with these settings needs it first; see `demo_is_due`.

    Raises:
      DataError: it cannot be built, or the run could not use it.
    """
    if demo_is_due(config):
        build_demo(config.data.dir)


def demo_is_due(config: Config) -> bool:
    """Whether a run with these settings builds the demo first: in the demo's own folder, where nothing is yet.

    Any other folder, and whatever lies in the demo's own one, is data as it is.

    Raises:
      DataError: it does, but could not use the demo.
    """
    folder = Path(config.data.dir)
    if not config.data.build_demo or folder.resolve() != DEMO_FOLDER.resolve() or _holds_anything(folder):
        return False
    if config.model.vocab_size not in (0, _VOCAB_SIZE):
        raise DataError(
            f"{folder}: the demo, to be built there, has a tokenizer of {_VOCAB_SIZE} pieces, expected "
            f"{config.model.vocab_size}: set model.vocab_size to {_VOCAB_SIZE}, or name data of your own with --data"
        )
    tokenizer = config.data.tokenizer
    if tokenizer and Path(tokenizer).resolve() != (folder / _TOKENIZER).resolve():
        raise DataError(f"--tokenizer {tokenizer}: the demo, to be built in {folder}, has its own: leave this out")
    return True


def is_demo(folder: str | Path) -> bool:
    """Whether the folder holds the demo corpus as it was built."""
    return _what_is_not_the_demo(Path(folder)) is None


def validation_text(demo_dir: str | Path) -> bytes:
    """The held-out text, whose tokens are the validation shard: for comparison with general compressors."""
    path = Path(demo_dir) / "val.txt"
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; build it with `jgolf data demo`") from None


def _manifest(folder: Path) -> dict:
    return read_json(folder / _MANIFEST)


def _what_is_not_the_demo(folder: Path) -> str | None:
    """What tells a folder from the demo's corpus as it was built; None where nothing does."""
    try:
        manifest = _manifest(folder)
        if manifest["format"] != _FORMAT or not manifest["files"]:
            return f"{_MANIFEST} is of another version, or of a build that was not finished"
        for name, size in manifest["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (folder / name).stat().st_size != size:
                return f"{name} is not as it was built"
    except OSError:
        return f"there is no {_MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is not the demo's, or damaged"
    return None


def _holds_anything(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)


# --- text --------------------------------------------------------------------------------------


def _split(documents: dict[str, str]) -> tuple[list[str], list[str]]:
    """Training and held-out documents, both in an order that depends on their names alone.

    What is held out shares no `_COPIED_WORDS` in a row with any other document.
    """
    train, validation = [], []
    copied = _with_copies(documents)
    train_bytes = validation_bytes = 0
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = documents[name]
        num_bytes = len(text.encode())
        suits = len(text) in _VALIDATION_DOCUMENT_CHARS and name not in copied
        if suits and validation_bytes < _VALIDATION_BYTES:
            validation.append(text)
            validation_bytes += num_bytes
        elif train_bytes < _MAX_CORPUS_BYTES:
            train.append(text)
            train_bytes += num_bytes
    if train_bytes < _MIN_CORPUS_BYTES or validation_bytes < _VALIDATION_BYTES:
        raise DataError(
            f"the standard library of this Python ({sysconfig.get_paths()['stdlib']}) holds only {train_bytes:,} bytes "
            f"of text, expected {_MIN_CORPUS_BYTES:,} or more: its sources are missing; take a full Python, or pack "
            "your own text with `jgolf data tokenizer` and `jgolf data pack`"
        )
    return train, validation


def _with_copies(documents: dict[str, str]) -> set[str]:
    """Names of the documents that have a run of words in common with another: help topics that quote others, say."""
    first_with: dict[int, str] = {}
    found = set()
    for name, text in documents.items():
        words = text.split()
        for start in range(len(words) - _COPIED_WORDS + 1):
            other = first_with.setdefault(hash(tuple(words[start : start + _COPIED_WORDS])), name)
            if other != name:
                found |= {name, other}
    return found


def _documents(library: Path) -> dict[str, str]:
    """Name → text of every document; no passage occurs twice."""
    documents: dict[str, str] = {}
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if _SKIPPED_FOLDERS.intersection(path.relative_to(library).parts):
            continue
        new = [passage for passage in _passages(path) if not (passage in seen or seen.add(passage))]
        short = [passage for passage in new if len(passage) < _OWN_DOCUMENT_CHARS]
        documents |= {f"{name}:{index}": text for index, text in enumerate(new) if len(text) >= _OWN_DOCUMENT_CHARS}
        if short:
            documents[name] = " ".join(short)
    return documents


def _passages(path: Path) -> Iterator[str]:
    """The prose of a source file in order, each passage on one line."""
    try:
        source = path.read_text("utf-8")
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return  # not UTF-8, or a template that only looks like Python
    strings = [
        (node.lineno, node.end_lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    inside_strings = {line for first, last, _ in strings for line in range(first, last + 1)}
    comments = _comment_blocks(source.splitlines(), inside_strings)
    for _, text in sorted([(first, text) for first, _, text in strings] + list(comments)):
        text = " ".join(unicodedata.normalize("NFKC", text).split())
        if _is_prose(text):
            yield text


def _comment_blocks(lines: list[str], inside_strings: set[int]) -> Iterator[tuple[int, str]]:
    """First line number and text of every run of lines that are comments and nothing else."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        stripped = line.strip()
        if stripped.startswith("#") and number not in inside_strings:
            block.append(stripped.lstrip("#"))
        elif block:
            yield number - len(block), "\n".join(block)
            block = []


def _is_prose(text: str) -> bool:
    """Whether it is long enough, printable, and has the spaces that words have and tables of codes have not."""
    return len(text) >= _MIN_PASSAGE_CHARS and text.isprintable() and text.count(" ") > len(text) / 15
