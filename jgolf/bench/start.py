"""From the start of a process to the end of its first training step: cold, and with what earlier starts have kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jgolf import programs
from jgolf.bench.first_step import DONE
from jgolf.bench.report import Figure
from jgolf.errors import JgolfError

COLD = "start to first step, cold"
KEPT = "start to first step, with programs kept whole"
CACHED = "start to first step, with the compilation cache"


def measure_start(config: str, sequences: int) -> list[Figure]:
    """Starts three processes, one after the other, that share a folder which is empty at first.

    The second finds the whole programs that the first has kept, the third JAX's compilation cache alone. To be called
    before this process uses the device: they need its memory.

    Raises:
      JgolfError: the step cannot be run.
    """
    with tempfile.TemporaryDirectory() as cache:
        figures = []
        for name in (COLD, KEPT, CACHED):
            if name == CACHED:
                shutil.rmtree(Path(cache) / programs.FOLDER, ignore_errors=True)
            figures.append(Figure(name, seconds_to_first_step(config, sequences, Path(cache)), "s"))
        return figures


def seconds_to_first_step(config: str, sequences: int, cache: Path) -> float:
    """Seconds that a fresh process takes from its start to the end of its first step."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "jgolf.bench.first_step", config, str(sequences)]
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        with process:
            done = any(line.strip() == DONE for line in process.stdout)
            elapsed_s = time.perf_counter() - began
        if done and process.returncode == 0:
            return elapsed_s
        errors.seek(0)
        last_lines = "".join(errors.readlines()[-5:])
    raise JgolfError(f"{' '.join(command[1:])}: ended with {process.returncode} before its first step:\n{last_lines}")
