"""The errors that a user can cause, the exit codes they end in, and what to quote of others' errors."""

from __future__ import annotations

import traceback
from pathlib import Path

EXIT_OK = 0
EXIT_CHECK_FAILED = 1  # a check that the user asked for did not hold: cross-check, audit, size budget
EXIT_BAD_INPUT = 2  # a file, an option or a setting that cannot be used
EXIT_DIVERGED = 3  # training stopped on a loss that is not finite
EXIT_PROCESS_LOST = 4  # another process of the same run ended, so this one did too
EXIT_INTERRUPTED = 130  # stopped with Ctrl-C; the run can be resumed


class JgolfError(Exception):
    """Something the user can put right. Its text names what was found and what to do.

    The command line prints it without a stack trace and exits with `exit_code`.
    """

    exit_code = EXIT_BAD_INPUT


class ConfigError(JgolfError):
    """A setting, or a combination of settings, that makes no sense."""


class DataError(JgolfError):
    """A shard, a text file or a tokenizer that cannot be used."""


class ArtifactError(JgolfError):
    """An artifact or a checkpoint that cannot be read or does not fit."""


class DivergedError(JgolfError):
    """The training loss became infinite or NaN."""

    exit_code = EXIT_DIVERGED


class MissingExtraError(JgolfError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; "
            f"install it with: pip install 'jgolf[{extra}]' (in a clone: pip install -e '.[{extra}]')"
        )


def first_line(error: BaseException) -> str:
    """What a library says first; the rest is mostly where in its own code. The error's type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or a device, as JAX and PyTorch say it, had no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "OutOfMemory" in type(error).__name__


def error_in_file(error: BaseException, path: str | Path) -> str:
    """An error in code of the user's, and the last line of the file on the way to it."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return text  # it says itself where
    frames, path = traceback.extract_tb(error.__traceback__), Path(path).absolute()
    line = next((frame.lineno for frame in reversed(frames) if Path(frame.filename).absolute() == path), None)
    return f"{text} (line {line})" if line else text
