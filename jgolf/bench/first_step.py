"""A process that makes a state, compiles the training step, runs it once, says so, and ends."""

from __future__ import annotations

import sys

import jax

from jgolf import compiling

DONE = "first step done"


def main(name: str, sequences: int) -> None:
    """Runs the first step of a config on random tokens."""
    compiling.wake_devices()
    from jgolf.bench.running import RunningStep, bench_config  # meanwhile

    compiling.keep_programs()
    jax.block_until_ready(RunningStep.compiled(bench_config(name, sequences))())
    print(DONE, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
