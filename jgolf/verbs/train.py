"""`train.py CONFIG [options]`."""

from __future__ import annotations

import sys
from functools import partial

from jgolf.importing import ended_by_interrupts
from jgolf.train.launch import launch_from_environment
from jgolf.train.options import DEFAULT_CONFIG, read_command
from jgolf.train.writers import require_writers


def train(argv: list[str], prog: str = "train.py") -> int:
    """Parses the command line and trains; returns the exit code."""
    options, run_dir = read_command(argv, prog, "Train a model.", DEFAULT_CONFIG)
    require_writers(options.writers)
    launch = launch_from_environment(options.coordinator, options.num_processes, options.process_id)
    with ended_by_interrupts():
        from jgolf import compiling  # JAX starts only when there is something to train

    if launch is None:
        compiling.wake_devices()
    else:  # the processes join first, which may fail
        print(launch, file=sys.stderr, flush=True)
    with ended_by_interrupts():
        from jgolf.load import load_params
        from jgolf.train import loop

    first_params = None if options.init_from is None else partial(load_params, options.init_from)
    return loop.train(
        options.config, run_dir, first_params, options.resume, launch, options.writers, options.skip_damaged
    )


train.parse_and_call = lambda prog, argv: train(argv, "train.py" if sys.argv[0].endswith("train.py") else prog)
