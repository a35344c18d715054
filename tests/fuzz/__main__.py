"""Damages files of every kind that jgolf reads, and counts what its readers make of them.

    python -m tests.fuzz --mutations 100000 --seed 0
    python -m tests.fuzz --reader "token shard" --mutations 5000
    python -m tests.fuzz --reader "token shard" --seed 0 --index 123      shows one again, with its stack trace

A damaged file is refused with a JgolfError, or read as a value that such a file may hold. All else is a fault: a
stack trace, a value that is none (or, where a checksum is kept, any other value), more than 2 GB, a process that dies,
a minute. The exit status is 1 where there was one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import campaign
from tests.fuzz.readers import ALL_READERS, READERS, Reader


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        name, seed, first, end, folder = sys.argv[2:]
        campaign.work(name, int(seed), int(first), int(end), Path(folder))
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, help="this one only")
    parser.add_argument("--index", type=int, help="with --reader: this mutation only")
    options = parser.parse_args()
    readers = [READERS[options.reader]] if options.reader else [one for one in ALL_READERS if one.is_there]
    if options.index is not None:
        return show_one(readers[0], options.seed, options.index)
    parts = sum(reader.share for reader in readers)
    print(f"{'reader':36}{'mutations':>10}{'refused':>9}{'same':>7}{'other':>7}", end="")
    print("".join(f"{name:>12}" for name in campaign.FAULTS), f"{'peak MB':>8}{'seconds':>9}")
    faults = 0
    for reader in readers:
        began = time.monotonic()
        mutations = max(1, round(options.mutations * reader.share / parts))
        tally = campaign.run(reader, mutations, options.seed)
        faults += tally.num_faults
        counts = tally.counts
        print(f"{reader.name:36}{mutations:10,}{counts['refused']:9,}{counts['same']:7,}{counts['other']:7,}", end="")
        print("".join(f"{counts[name]:12,}" for name in campaign.FAULTS), end="")
        print(f" {tally.peak_bytes / 1e6:8.0f}{time.monotonic() - began:9.0f}", flush=True)
        for index, outcome, detail in tally.faults[:3]:
            print(f"    --index {index}: {outcome}: {detail.strip()[-1000:]}", flush=True)
    print(f"{faults} faults" if faults else "no fault")
    return 1 if faults else 0


def show_one(reader: Reader, seed: int, index: int) -> int:
    with tempfile.TemporaryDirectory(prefix="jgolf-fuzz-") as folder:
        campaign.make_example(reader, Path(folder))
        trial = campaign.Trial(reader, Path(folder))
        outcome, detail = trial.of(seed, index, raise_errors=True)
    print(outcome, detail)
    return 1 if outcome in campaign.FAULTS else 0


if __name__ == "__main__":
    sys.exit(main())
