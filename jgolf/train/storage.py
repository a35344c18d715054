"""What Orbax needs around it: a path that it can take, silence about errors that are told in a sentence, names."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from jgolf.errors import ArtifactError

LINGERS_S = 5.0
"""How long silence is kept after an error."""
_LOGGERS = ("absl", "asyncio")
_PATTERN_CHARACTERS = set("*?[]") | ({"\\"} - {os.sep})


def manager_options(keep: int | None) -> ocp.CheckpointManagerOptions:
    """For one process that writes by itself and keeps so many checkpoints; None for one that only reads."""
    me = jax.process_index()
    return ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        read_only=keep is None,
        cleanup_tmp_directories=keep is not None,
        create=False,
        multiprocessing_options=MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        ),
    )


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yields a path of `folder` that Orbax takes as it is.

    Orbax looks for what it wrote by a pattern that begins with the path, so `lr=[1e-3]` never matches itself, and
    `run*` matches the files of other runs. Such a folder is reached by a link in the system's temporary folder.

    Raises:
      ArtifactError: there can be no link.
    """
    try:
        is_plain = not _PATTERN_CHARACTERS & set(str(folder).encode().decode())
    except UnicodeEncodeError:  # bytes that are no UTF-8, which the storage library's own paths are
        is_plain = False
    if is_plain:
        yield folder
        return
    with contextlib.ExitStack() as stack:
        try:
            link = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jgolf-"))) / folder.name
            link.symlink_to(folder, target_is_directory=True)
        except OSError as error:
            raise ArtifactError(
                f"{folder}: checkpoints in a path with any of * ? [ ] \\, or that is no UTF-8, need a link in "
                f"{tempfile.gettempdir()}, which cannot be made: {error.strerror or error}; choose another --run-dir"
            ) from error
        yield link


class _Silence:
    """Drops what Orbax says about errors that it raises as well; counts for how many users."""

    def __init__(self):
        self._lock = threading.Lock()
        self._users = 0
        self._hook = self._hook_before = sys.unraisablehook

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        except BaseException:
            # Reads and writes beside the one that failed are on their way still, and no one can wait for them.
            timer = threading.Timer(LINGERS_S, lambda: (gc.collect(), self._leave()))
            timer.daemon = True
            timer.start()
            raise
        self._leave()

    def _enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                for name in _LOGGERS:
                    logging.getLogger(name).addFilter(_is_not_of_orbax)
                # What fails ends Orbax's event loop, and all that is on its way then fails to report to that.
                self._hook_before, self._hook = sys.unraisablehook, but_for_closed_loops(sys.unraisablehook)
                sys.unraisablehook = self._hook

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for name in _LOGGERS:
                    logging.getLogger(name).removeFilter(_is_not_of_orbax)
                if sys.unraisablehook is self._hook:
                    sys.unraisablehook = self._hook_before


silence = _Silence()
"""Orbax logs the stack traces of errors, and loses others, that are told to the user in a sentence: not within this."""


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether it is neither of Orbax nor, in asyncio's words, of a read or write that Orbax began and left alone."""
    text = record.getMessage()
    left_alone = "never retrieved" in text and ("_wrap_awaitable" in text or "orbax" in text)
    return not left_alone and "orbax" not in Path(record.pathname).parts


def but_for_closed_loops(hook: Callable[[sys.UnraisableHookArgs], Any]) -> Callable[[sys.UnraisableHookArgs], None]:
    """The hook for errors that no one can catch, without those of a closed event loop."""

    def shown(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return shown


def reason(error: BaseException) -> str:
    """What the storage library says, in a line: that the disk is full where any error on the way to this one does."""
    chain, first = [], error
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    full = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]
    if any(words in str(one) for one in chain for words in full):
        return "the disk is full"
    lines = str(first).strip().splitlines()
    kind = "" if isinstance(first, OSError | ValueError | RuntimeError) else f"{type(first).__name__}: "
    return kind + lines[0][:300] if lines else type(first).__name__


def whole_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder that were renamed to their final names."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir())


def unused(path: Path) -> Path:
    """The path, or one like it that nothing is at."""
    names = (path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000)))
    return next(one for one in names if not one.exists())
