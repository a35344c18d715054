"""The folder of `jgolf new`: what was asked for, which commands are done, and running the others."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jgolf import files
from jgolf.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK, JgolfError
from jgolf.reading import read_json

JOURNAL_FILE = "new.json"


class CommandFailed(JgolfError):
    """A command came to no end; it said why."""

    def __init__(self, text: str, exit_code: int):
        super().__init__(text)
        self.exit_code = exit_code


class Journal:
    """What is known of a folder, kept in its new.json.

    Attributes:
      asked: the options, by name.
      facts: what was found out on the way, by name.
    """

    def __init__(self, folder: Path, asked: dict[str, Any]):
        """Reads what an earlier start left, or begins.

        Raises:
          JgolfError: the folder is of other options, or its journal is damaged.
        """
        self.path = folder / JOURNAL_FILE
        self.asked = asked
        self.facts: dict[str, Any] = {}
        self._begun: list[str] = []
        self._done: list[str] = []
        try:
            found = read_json(self.path)
            earlier, self.facts = found["asked"], dict(found["facts"])
            self._begun, self._done = list(found["begun"]), list(found["done"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JgolfError(
                f"{self.path}: not what `jgolf new` left there, or damaged ({error!s:.200}): remove the folder, or "
                "choose another --out"
            ) from None
        if not self._done:  # nothing came of it but an error
            self.facts, self._begun = {}, []
            return
        other = [name for name in asked if earlier.get(name) != asked[name]]
        if other:
            differing = "; ".join(f"{name} was {earlier.get(name)!s:.200}, is {asked[name]!s:.200}" for name in other)
            raise JgolfError(
                f"{folder}: begun with other options ({differing}): give the same ones, or choose another --out"
            )

    def keep(self, **facts: Any) -> None:
        """Adds what was found out."""
        self.facts |= facts
        content = {"asked": self.asked, "facts": self.facts, "begun": self._begun, "done": self._done}
        files.write_text(self.path, files.json_text(content, indent=1) + "\n")

    def is_done(self, stage: str) -> bool:
        """Whether a stage's command has ended well."""
        return stage in self._done

    def was_begun(self, stage: str) -> bool:
        """Whether it was started, however that ended."""
        return stage in self._begun

    @contextlib.contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Keeps that a stage is begun, and, when the block ends without an error, done."""
        self._begun = [*dict.fromkeys([*self._begun, stage])]
        self.keep()
        yield
        self._done = [*self._done, stage]
        self.keep()


def run_command(words: Sequence[str], again: str) -> None:
    """Prints `jgolf …` as it can be copied, and runs it in a process of its own.

    A wish to stop, Ctrl-C's too, is passed on to it, and it ends in its own way.

    Args:
      words: after `jgolf`.
      again: the command that goes on from there, for the message.

    Raises:
      CommandFailed: it ended with another exit code than 0, or was asked to stop.
    """
    command = shlex.join(["jgolf", *words])
    print(f"\n$ {command}", flush=True)
    with _stops_noted() as stops:
        # In a session of its own, so that a terminal's Ctrl-C reaches it once.
        process = subprocess.Popen([sys.executable, "-m", "jgolf", *words], start_new_session=True)
        stops.pass_on_to(process)
        exit_code = process.wait()
    if stops.received:
        raise CommandFailed(f"asked to stop; to go on: {again}", EXIT_INTERRUPTED)
    if exit_code != EXIT_OK:
        how = f"ended with exit code {exit_code}" if exit_code > 0 else f"was ended by signal {-exit_code}"
        raise CommandFailed(
            f"`{command}` {how}; once that is put right, go on: {again}", max(exit_code, EXIT_BAD_INPUT)
        )


class _Stops:
    """Signals to stop that this process received."""

    def __init__(self):
        self.received: list[int] = []
        self._process: subprocess.Popen | None = None

    def __call__(self, number: int, frame: Any) -> None:
        self.received.append(number)
        if self._process is not None:
            self._process.send_signal(number)

    def pass_on_to(self, process: subprocess.Popen) -> None:
        """Passes on those that come, and the last that came."""
        self._process = process
        for number in self.received[-1:]:
            process.send_signal(number)


@contextlib.contextmanager
def _stops_noted() -> Iterator[_Stops]:
    """Has the signals noted while the block runs; those that are ignored, as by nohup, stay so."""
    stops = _Stops()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    noted = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in noted:
        signal.signal(number, stops)
    try:
        yield stops
    finally:
        for number in noted:
            signal.signal(number, before[number])
