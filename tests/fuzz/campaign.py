"""Reads damaged files by the thousand, in a process that may die, and counts what became of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jgolf.errors import JgolfError
from tests.fuzz.readers import READERS, Reader

Outcome = Literal["refused", "same", "other", "believed", "stack trace", "memory", "killed", "slow"]
FAULTS: tuple[Outcome, ...] = ("believed", "stack trace", "memory", "killed", "slow")
MOST_BYTES = 2_000_000_000  # that one file may take
SECONDS = 60  # that one file may take
LONGEST_REFUSAL = 4000  # characters
ROOT = Path(__file__).parents[2]


@dataclass
class Tally:
    """What became of the mutations of one reader; of each fault, the first that were found."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def num_faults(self) -> int:
        return sum(self.counts[name] for name in FAULTS)

    def add(self, index: int, outcome: str, detail: str, peak_bytes: int = 0) -> None:
        self.counts[outcome] += 1
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        if outcome in FAULTS:
            self.faults.append((index, outcome, detail))


def run(reader: Reader, mutations: int, seed: int) -> Tally:
    """Tries a reader in processes of its own; one that dies is followed by another."""
    tally, done = Tally(), 0
    with tempfile.TemporaryDirectory(prefix="jgolf-fuzz-") as folder:
        make_example(reader, Path(folder))
        while done < mutations:
            before = done
            for index, outcome, detail, peak_bytes in _told_by_worker(reader.name, seed, done, mutations, folder):
                tally.add(index, outcome, detail, peak_bytes)
                done = index + 1
            if done == before:
                raise RuntimeError(f"{reader.name}: the process that reads does not start")
    return tally


def _told_by_worker(name: str, seed: int, first: int, end: int, folder: str) -> Any:
    command = [sys.executable, "-m", "tests.fuzz", "--worker", name, str(seed), str(first), str(end), folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as worker:
        started, index = False, first
        for line in worker.stdout:
            if line.startswith("{"):
                told = json.loads(line)
                started, index = True, told["index"] + 1
                if "outcome" in told:
                    yield told["index"], told["outcome"], told["detail"], told["peak"]
                else:
                    started, index = True, told["index"]
    code = worker.wait()
    if code < 0 and started and index < end:
        slow = -code == signal.SIGALRM
        yield index, "slow" if slow else "killed", f"more than {SECONDS} s" if slow else f"signal {-code}", 0


def make_example(reader: Reader, folder: Path) -> None:
    """Writes the reader's example into `folder`/whole, from where each mutation starts."""
    whole = folder / "whole"
    whole.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        reader.make(whole)


def work(name: str, seed: int, first: int, end: int, folder: Path) -> None:
    """Runs in a process of its own: tells on stdout, a JSON object a line, what became of each mutation."""
    warnings.simplefilter("ignore")
    reader = READERS[name]
    tell = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    trial = Trial(reader, folder)
    trial.limit_memory()
    print(json.dumps({"index": first}), file=tell, flush=True)
    for index in range(first, end):
        outcome, detail = trial.of(seed, index)
        peak_bytes = trial.grown_bytes()
        if peak_bytes > MOST_BYTES:
            outcome, detail = "memory", f"{peak_bytes / 1e9:.1f} GB"
        told = {"index": index, "outcome": outcome, "detail": detail, "peak": peak_bytes}
        print(json.dumps(told), file=tell, flush=True)
        if outcome == "memory":
            return  # the peak of a process never falls


class Trial:
    """One reader and its example."""

    def __init__(self, reader: Reader, folder: Path):
        self._reader, self._whole, self._copy = reader, folder / "whole", folder / f"copy-{os.getpid()}"
        self._targets = [
            (path.relative_to(self._whole), mutate)
            for name, mutate in reader.targets.items()
            for path in ([self._whole / name] if (self._whole / name).is_file() else (self._whole / name).rglob("*"))
            if path.is_file()
        ]
        shutil.copytree(self._whole, self._copy)
        self._expected = digest(reader.read(self._copy))
        self._began_bytes = _peak_bytes()

    def limit_memory(self) -> None:
        """A reader that wants much more than it may gets a MemoryError, and the machine stays usable."""
        status = Path("/proc/self/status")
        if status.exists():
            size = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmSize"))
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (1024 * size + 2 * MOST_BYTES, hard))

    def grown_bytes(self) -> int:
        """By which the process has grown since it had read the whole example."""
        return _peak_bytes() - self._began_bytes

    def of(self, seed: int, index: int, raise_errors: bool = False) -> tuple[Outcome, str]:
        """What became of one mutation, and why."""
        rng = np.random.default_rng([seed, zlib.crc32(self._reader.name.encode()), index])
        target, mutate = self._targets[rng.integers(len(self._targets))]
        before = (self._whole / target).read_bytes()
        after = mutate(rng, before)
        if self._reader.writes:
            shutil.rmtree(self._copy)
            shutil.copytree(self._whole, self._copy)
        (self._copy / target).write_bytes(after)
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = digest(self._reader.read(self._copy))
        except JgolfError as error:
            if len(str(error)) > LONGEST_REFUSAL:
                return "stack trace", f"a refusal of {len(str(error)):,} characters: {error!s:.300}"
            return "refused", ""
        except AssertionError:
            if raise_errors:
                raise
            return "believed", traceback.format_exc(limit=-2)
        except MemoryError:
            return "memory", "MemoryError"
        except BaseException:
            if raise_errors:
                raise
            return "stack trace", traceback.format_exc(limit=-3)
        finally:
            signal.alarm(0)
            if not self._reader.writes:
                (self._copy / target).write_bytes(before)
        if found == self._expected:
            return "same", ""
        if self._reader.checksummed and after != before:
            return "believed", f"{target}: another value was read"
        return "other", ""


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def digest(value: Any) -> str:
    """Equal for equal values; of arrays, the bytes count."""
    return hashlib.sha256(pickle.dumps(_plain(value))).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return [(str(key), _plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__array__") and not isinstance(value, str | bytes):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    return repr(value)
