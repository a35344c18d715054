"""The command line: `jgolf VERB`, `python -m jgolf VERB`, `train.py` and `export.py`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from jgolf import __version__
from jgolf.bench import cli as bench_cli
from jgolf.data import cli as data_cli
from jgolf.encoding import show_any_text
from jgolf.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK, JgolfError, is_out_of_memory
from jgolf.importing import ended_by_interrupts
from jgolf.output import outlives_its_readers
from jgolf.progress import plain_console

VERBS: dict[str, tuple[str, str]] = {
    "new": ("jgolf.verbs.new:new", "a model from a text of your own, in one command"),
    "data": ("", "prepare tokens: split, pack, fuse, tokenizer, download, demo, inspect"),
    "train": ("jgolf.verbs.train:train", "train a model"),
    "export": ("jgolf.verbs.export:export", "quantize a run, pack it into an artifact and score that"),
    "evaluate": ("jgolf.verbs.evaluate:evaluate", "score a run, an artifact or a checkpoint in bits per byte"),
    "audit": ("jgolf.verbs.audit:run_audit", "try whether a score needs no trust: causality, probabilities, bytes"),
    "sweep": ("jgolf.sweep.cli:sweep", "train many runs at once: seeds, learning rates, any setting"),
    "report": ("jgolf.report.cli:report", "draw runs, the PyTorch reference's too, on one page"),
    "compare": ("jgolf.compare:compare", "test whether runs beat others by the challenge's rule for a record"),
    "sample": ("jgolf.verbs.sample:sample", "let a model continue a text"),
    "serve": ("jgolf.verbs.serve:serve", "a page on this machine, in which a model continues what you type"),
    "compress": ("jgolf.verbs.compress:compress", "compress files by a model, without loss"),
    "decompress": ("jgolf.verbs.compress:decompress", "give back files that compress made smaller"),
    "convert": ("jgolf.verbs.convert:convert", "turn PyTorch checkpoints and artifacts into ours and back"),
    "crosscheck": ("jgolf.verbs.crosscheck:crosscheck", "compare with a PyTorch script, number by number"),
    "bench": ("", "measure the system: the step and its parts, evaluation, input, export, communication"),
    "doctor": ("jgolf.doctor:doctor", "check devices, data, room and packages, and say what to do"),
}
"""Verb → ("module:function", what it does)."""

GROUPS = {"data": data_cli, "bench": bench_cli}
"""Verbs with verbs of their own."""


LONGEST_ERROR_LINE = 2000
"""Characters of one line of an error that are shown."""
TAKE_CONFIG = ("train", "sweep", "doctor")
"""Verbs whose first argument may be a config's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code; see `jgolf.errors` for what the codes mean."""
    with outlives_its_readers():
        show_any_text()
        try:
            exit_code = _run(argv)
            sys.stdout.flush()
            return exit_code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except OSError as error:  # of a file that no one expected to fail, standard output for one
            name = f"{error.filename}: " if error.filename is not None else ""
            print(f"error: {_shortened(f'{name}{error.strerror or error}')}", file=sys.stderr)
            return EXIT_BAD_INPUT


def _run(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[0:1] == ["help"] and len(argv) > 1:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        _print_verbs("jgolf", {verb: text for verb, (_, text) in VERBS.items()})
        return EXIT_OK if argv else EXIT_BAD_INPUT
    if argv[0] == "--version":
        print(f"jgolf {__version__}")
        return EXIT_OK
    if argv[0] == "--print-completion":
        return _print_completion(argv[1:])
    verb, *rest = argv
    if verb not in VERBS:
        return _unknown("jgolf", verb, VERBS)
    if verb in GROUPS:
        group = GROUPS[verb]
        if not rest or rest[0] in ("-h", "--help"):
            _print_verbs(f"jgolf {verb}", group.HELP)
            return EXIT_OK if rest else EXIT_BAD_INPUT
        if rest[0] not in group.VERBS:
            return _unknown(f"jgolf {verb}", rest[0], group.VERBS)
        return _call(f"jgolf {verb} {rest[0]}", group.VERBS[rest[0]], rest[1:])
    return _call(f"jgolf {verb}", VERBS[verb][0], rest)


def _call(prog: str, target: str, argv: list[str]) -> int:
    module, _, name = target.partition(":")
    try:
        with ended_by_interrupts():
            import tyro  # takes longer to import than the list of verbs to print

            from jgolf.options import PATHS

            function = getattr(importlib.import_module(module), name)
        parse = getattr(function, "parse_and_call", None)
        with PATHS:
            result = parse(prog, argv) if parse else tyro.cli(function, prog=prog, args=argv)
        return EXIT_OK if result is None else int(result)
    except JgolfError as error:
        print(f"error: {_shortened(str(error))}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = "take fewer tokens at once (train.accumulation raised, evaluate.batch_tokens or --streams lowered)"
        reason = (str(error).strip().splitlines() or ["no more can be had"])[0]
        print(f"error: out of memory: {reason}: {advice}, a smaller model, or more devices", file=sys.stderr)
        return EXIT_BAD_INPUT


def _shortened(error: str) -> str:
    """The error's lines without the middle of long ones: names and values in it may be as long as files."""
    half = LONGEST_ERROR_LINE // 2
    lines = error.split("\n")
    return "\n".join(line if len(line) <= 2 * half else f"{line[:half]} … {line[-half:]}" for line in lines)


def _print_completion(argv: list[str]) -> int:
    from jgolf import completion
    from jgolf.config import config_names

    commands = [((verb,), text) for verb, (_, text) in VERBS.items() if verb not in GROUPS]
    commands += [((group, verb), text) for group, module in GROUPS.items() for verb, text in module.HELP.items()]
    groups = {group: VERBS[group][1] for group in GROUPS}
    try:
        found = [
            completion.Command(
                words,
                text,
                tuple(config_names()) if words[0] in TAKE_CONFIG else (),
                completion.options_in_help(lambda words=words: main([*words, "--help"])),
            )
            for words, text in commands
        ]
        print(completion.script(argv[0] if argv else "", found, groups), end="")
    except JgolfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def _unknown(prog: str, verb: str, known: dict) -> int:
    near = difflib.get_close_matches(verb, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"error: {prog} has no verb {verb!r}: expected one of {', '.join(known)}{hint}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _print_verbs(prog: str, verbs: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for verb, text in verbs.items():
        table.add_row(Text(verb, style="bold"), text)
    console = plain_console()
    console.print(f"usage: {prog} VERB …   ({prog} VERB --help tells more)\n", highlight=False)
    console.print(table)
    if prog == "jgolf":
        console.print(
            "\n",
            Text("--print-completion", style="bold"),
            " bash|zsh|fish prints a script for completion by Tab",
            sep="",
        )
