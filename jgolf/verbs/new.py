"""`jgolf new`: a text of one's own becomes a trained model, in one command and one folder."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shlex
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import tyro

from jgolf import config as configs
from jgolf.data.documents import read_documents
from jgolf.data.fitting import SAMPLE_BYTES, Fit, first_texts, fitting
from jgolf.data.own_text import check_outside, find_texts
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.split import EXCERPT_FILE, TRAIN_FILE, VALIDATION_FILE
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.errors import EXIT_INTERRUPTED, DataError, JgolfError
from jgolf.lock import locked
from jgolf.new.folder import JOURNAL_FILE, CommandFailed, Journal, run_command
from jgolf.new.sizes import MOST_PASSES, Choice, choose_here, most_pieces_here
from jgolf.options import PathText
from jgolf.progress import activity, counted
from jgolf.reading import read_json
from jgolf.run_dir import ARTIFACT_FILE, CONFIG_FILE, LOG_FILE, RESULT_FILE

LEAST_BYTES = 20_000
"""Of a text: less teaches nothing, and leaves too little to validate on."""
LEARNT_BYTES = 5_000_000
"""That a tokenizer learns from at most."""
MOST = 1_000_000
"""Minutes, and megabytes."""
SAMPLE_TOKENS = 150
PROMPT_WORDS = 6
MOST_PROMPT_CHARS = 80


def new(
    texts: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    minutes: float = 10.0,
    config: PathText = "",
    max_mb: float = 300.0,
    seed: int = 1337,
) -> None:
    """Train a model on a text of your own: one command, one folder, and the commands that it runs.

    It divides the text, trains a tokenizer, packs, times a training step here to choose a network and a length, trains,
    exports, samples, and compresses held-out text. Started again, it goes on where it was.
    Example: jgolf new book.txt --minutes 10

    Args:
      texts: Text files, .jsonl ({"text": …} a line) or .parquet files (column text), or folders of such.
      out: Folder of everything, and of the run; runs/NAME of the first text by default.
      minutes: Of training at most; what is before and after it takes some more.
      config: Train this config, but for its length and its averages, rather than choose a network.
      max_mb: Megabytes of text that are read at most.
      seed: Of what is held out, and of the first weights.
    """
    for option, value in (("--minutes", minutes), ("--max-mb", max_mb)):
        if not 0 < value <= MOST:
            raise JgolfError(f"{option} {value}: expected more than 0, and at most {MOST:,}")
    if not 0 <= seed < 1 << 32:
        raise JgolfError(f"--seed {seed}: expected from 0 to 4294967295")
    texts = [_no_option(path) for path in texts]
    found, _ = find_texts(texts)
    if config:
        configs.load(config)
    name = texts[0].resolve().name.strip(".").partition(".")[0]
    folder = _no_option(out or Path("runs") / (name or "text"))
    check_outside(texts, folder)
    asked = {
        "texts": [str(path.resolve()) for path in texts],
        "files": len(found),
        "bytes": sum(path.stat().st_size for path in found),
        "minutes": minutes,
        "config": config,
        "max_mb": max_mb,
        "seed": seed,
    }
    if (folder / CONFIG_FILE).exists() and not (folder / JOURNAL_FILE).exists():
        raise JgolfError(f"{folder}: already holds a run; choose another --out")
    options = {"--out": folder, "--minutes": _digits(minutes), "--max-mb": _digits(max_mb), "--seed": seed}
    options |= {"--config": config} if config else {}
    again = shlex.join(["jgolf", "new", *map(str, texts), *_words(options)])
    with locked(folder / "text", f"wait for its end, or choose another --out than {folder}"):
        try:
            _Stages(folder, Journal(folder, asked), again).all(texts)
        except KeyboardInterrupt:  # between two commands
            raise CommandFailed(f"asked to stop; to go on: {again}", EXIT_INTERRUPTED) from None


class _Stages:
    """What is done in a folder, in order; what its journal holds as done is passed over."""

    def __init__(self, folder: Path, journal: Journal, again: str):
        self._folder, self._journal, self._again = folder, journal, again
        self._text, self._data = folder / "text", folder / "data"

    def all(self, texts: Sequence[Path]) -> None:
        """Runs all of them."""
        asked = self._journal.asked
        options = {"--out": self._text, "--max-mb": _digits(asked["max_mb"]), "--seed": asked["seed"]}
        self._command("split", ["data", "split", *texts, *_words(options)], "--overwrite")
        tokenizer = self._tokenizer()
        for split, name in (("train", TRAIN_FILE), ("val", VALIDATION_FILE)):
            options = {"--tokenizer": tokenizer, "--out": self._data, "--split": split}
            self._command(f"pack {split}", ["data", "pack", self._text / name, *_words(options)], "--overwrite")
        self._train()
        self._command("export", ["export", self._folder])
        artifact, excerpt = self._folder / ARTIFACT_FILE, self._text / EXCERPT_FILE
        for stage, prompt in (("sample", []), ("sample on", [f"--prompt={_beginning(excerpt)}"])):
            self._command(stage, ["sample", artifact, *prompt, "--tokens", SAMPLE_TOKENS])
        options = {"--model": artifact, "--out": self._folder / f"{EXCERPT_FILE}.jgz"}
        self._command("compress", ["compress", excerpt, *_words(options), "--against"], "--overwrite")
        self._tell()

    def _command(self, stage: str, words: Sequence[Any], when_begun: str = "") -> None:
        """Runs a command, with one option more where an earlier start may have left something."""
        if self._journal.is_done(stage):
            return
        more = [when_begun] if when_begun and self._journal.was_begun(stage) else []
        with self._journal.doing(stage):
            run_command([*map(str, words), *more], self._again)

    def _fact(self, name: str, kind: type, description: str, find: Callable[[], Any]) -> Any:
        """What was found out at an earlier start, or is now."""
        if name not in self._journal.facts:
            with activity(description):
                self._journal.keep(**{name: dataclasses.asdict(find())})
        return configs.from_dict(self._journal.facts[name], kind)

    def _tokenizer(self) -> Path:
        """Chooses a tokenizer and trains it; its file."""
        learnt_from = self._text / TRAIN_FILE

        def fit() -> Fit:
            sample = first_texts(read_documents([learnt_from]), SAMPLE_BYTES)
            text_bytes = sum(len(text.encode()) for text in read_documents([learnt_from]))
            if text_bytes < LEAST_BYTES:
                raise DataError(
                    f"{', '.join(self._journal.asked['texts'])}: {text_bytes:,} bytes to train on, expected at least "
                    f"{LEAST_BYTES:,}: give more text"
                )
            return fitting(sample, text_bytes, _apart(most_pieces_here))

        fit = self._fact("tokenizer", Fit, "trying tokenizers on a sample", fit)
        print(f"\ntokenizer: {fit.vocab_size:,} pieces; {fit.reason}")
        path = self._data / ("tokenizer.json" if fit.pure_bytes else "tokenizer.model")
        options = {"--out": path} if fit.pure_bytes else {"--out": path, "--vocab-size": fit.vocab_size}
        if not fit.pure_bytes:
            learnt = len(first_texts(read_documents([learnt_from]), LEARNT_BYTES))
            options |= {"--max-documents": learnt}
        flags = ["--pure-bytes"] if fit.pure_bytes else ["--lossless"] if fit.lossless else []
        documents = [] if fit.pure_bytes else [learnt_from]
        self._command("tokenizer", ["data", "tokenizer", *documents, *_words(options), *flags])
        return path

    def _train(self) -> None:
        asked = self._journal.asked

        def choose() -> Choice:
            text_tokens = len(TokenStream(find_shards(self._data, "train")))
            vocab_size = load_tokenizer(find_tokenizer(self._data)).vocab_size
            return _apart(choose_here, vocab_size, text_tokens, 60 * asked["minutes"], asked["config"])

        choice = self._fact("choice", Choice, "timing training steps", choose)
        minutes, steps = choice.steps * choice.step_s / 60, counted(choice.steps, "step")
        why = f"{MOST_PASSES} passes over the text are enough" if choice.by_text else "as the time allows"
        print(
            f"\nnetwork: {choice.parameters:,} parameters; a step takes {choice.step_s:.3g} s on {choice.device}; "
            f"about {steps}, {minutes:.2g} minutes, {choice.passes:.2g} passes over the text: {why}"
        )
        settings = {f"--{name.replace('_', '-')}": value for name, value in choice.settings.items()}
        options = {"--data": self._data, "--run-dir": self._folder, "--seed": asked["seed"], **settings}
        resume = ["--resume"] if (self._folder / CONFIG_FILE).exists() else []
        if not self._journal.is_done("train"):
            with self._journal.doing("train"):
                run_command(["train", choice.config, *map(str, _words(options)), *resume], self._again)
                ends = [line for line in _lines(self._folder / LOG_FILE) if line.startswith("stopping: ")]
                if not ends or ends[-1].startswith("stopping: asked to stop"):
                    raise CommandFailed(f"training was stopped before its end; to go on: {self._again}", 2)

    def _tell(self) -> None:
        """Where everything is, and what to do with it."""
        folder, result = self._folder, read_json(self._folder / RESULT_FILE)
        bits = result["original_bpb"] or result["val_bpb"]
        quoted = shlex.quote(str(folder))
        print(
            f"\n{folder}: {bits:.4f} bits per byte of held-out text; the model is {folder / ARTIFACT_FILE}, "
            f"{result['artifact_bytes']:,} bytes\n"
            f"  let it write:       jgolf sample {quoted} --prompt '…'\n"
            f"  type and see:       jgolf serve {quoted}\n"
            f"  draw the run:       jgolf report {quoted}"
        )


def _words(options: dict[str, Any]) -> list[str]:
    return [str(word) for option in options.items() for word in option]


def _digits(value: float) -> str:
    """A number in full: the command that is printed asks for the same."""
    return str(int(value) if value.is_integer() else value)


def _no_option(path: Path) -> Path:
    """The path in a form in which no command takes it for an option."""
    return path.absolute() if str(path).startswith("-") else path


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _beginning(path: Path) -> str:
    """The first words of a text, without NUL, which no command line can hold."""
    words = path.read_text(encoding="utf-8").replace("\0", " ").split()
    return " ".join(words[:PROMPT_WORDS])[:MOST_PROMPT_CHARS]


def _apart(function: Callable, *arguments: Any) -> Any:
    """What a function returns in a process of its own, whose end frees its devices for the next command."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_at_once_when_interrupted) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()  # or its work would be waited for
            raise
        except BrokenProcessPool:
            raise JgolfError("the process that times training steps was killed, probably for lack of memory") from None


def _end_at_once_when_interrupted() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
