"""What is read, and how it is damaged."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jgolf.errors import DataError
from tests.fuzz import bombs, examples, reading
from tests.fuzz import mutations as damage

Mutate = Callable[[np.random.Generator, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """One reader of files.

    Attributes:
      name: what it reads.
      make: writes an example into a folder.
      read: reads the example in a folder; raises AssertionError where what it read is none of the values that such a
        file may stand for.
      targets: which of the example's files are damaged, and how.
      checksummed: whether a change of the content must be noticed.
      writes: whether it changes files beside the damaged one, so that each trial begins with a copy of its own.
      share: of all mutations, in parts; less for what takes long.
      needs: the packages without which it cannot be tried, with spaces between them.
      program: the same for a program.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    targets: Mapping[str, Mutate]
    checksummed: bool = False
    writes: bool = False
    share: float = 1.0
    needs: str = "numpy"
    program: str = "sh"

    @property
    def is_there(self) -> bool:
        packages = map(importlib.util.find_spec, self.needs.split())
        return None not in packages and shutil.which(self.program) is not None


ARTIFACTS = (
    Reader(
        "artifact",
        examples.write_stored("zstd"),
        reading.read_stored,
        {"model.jgolf": damage.damaged_file},
        checksummed=True,
    ),
    Reader("artifact, resealed", examples.write_stored("zstd"), reading.read_stored, {"model.jgolf": damage.resealed}),
    Reader(
        "artifact of codec range, resealed",
        examples.write_stored("range"),
        reading.read_stored,
        {"model.jgolf": damage.resealed},
        needs="constriction",
    ),
    Reader(
        "safetensors",
        examples.write_safetensors,
        reading.read_safetensors,
        {"model.safetensors": damage.damaged_file},
        needs="safetensors",
    ),
    Reader("artifact's settings, resealed", examples.write_model, reading.read_model, {"model.jgolf": damage.resealed}),
    Reader(
        "artifact of zeros, resealed",
        examples.write_stored("zstd"),
        reading.read_stored,
        {"model.jgolf": bombs.artifact_bomb},
        share=0.1,
    ),
)
COMPRESSED = (
    Reader(
        "compressed file",
        examples.write_compressed,
        reading.read_compressed,
        {"a.txt.jgz": damage.damaged_file},
        checksummed=True,
    ),
    Reader(
        "compressed file, resealed",
        examples.write_compressed,
        reading.read_compressed,
        {"a.txt.jgz": damage.resealed_compressed},
        checksummed=True,
    ),
)
DATA = (
    Reader("token shard", examples.write_tokens, reading.read_shard, {"a_train_0.bin": damage.damaged_file}),
    Reader(
        "byte counts of a shard",
        examples.write_counted_tokens,
        reading.read_counted,
        {"a_val_000000.bin": damage.damaged_file, "a_val_bytes_000000.bin": damage.damaged_file},
    ),
    Reader(
        "tokenizer",
        examples.write_tokenizer(False),
        reading.read_tokenizer("t.model"),
        {"t.model": damage.damaged_file},
    ),
    Reader(
        "tokenizer, fields",
        examples.write_tokenizer(False),
        reading.read_tokenizer("t.model"),
        {"t.model": bombs.restructured},
    ),
    Reader(
        "CaseOps tokenizer, fields",
        examples.write_tokenizer(True),
        reading.read_tokenizer("t.model"),
        {"t.model": bombs.restructured},
        share=0.5,
    ),
    Reader(
        "fused tokenizer",
        examples.write_fused_tokenizer,
        reading.read_tokenizer("t.model"),
        {"t.model": damage.damaged_file},
        share=0.5,
    ),
    Reader(
        "byte tokenizer",
        examples.write_byte_tokenizer,
        reading.read_tokenizer("t.json"),
        {"t.json": damage.damaged_json},
    ),
    Reader(
        "documents", examples.write_documents, reading.read_texts("d.jsonl"), {"d.jsonl": damage.damaged_json_lines}
    ),
    Reader(
        "documents, compressed",
        examples.write_documents,
        reading.read_texts("d.jsonl.zst"),
        {"d.jsonl.zst": damage.compressed_lines},
        share=0.2,
    ),
    Reader(
        "demo's manifest",
        examples.write_demo_manifest,
        reading.read_demo_manifest,
        {"demo.json": damage.damaged_json},
        share=0.5,
    ),
)
RUNS = (
    Reader("config.json", examples.write_run, reading.read_config, {"config.json": damage.damaged_json}),
    Reader(
        "run: metrics, config, result",
        examples.write_run,
        reading.read_histories("."),
        {
            "metrics.jsonl": damage.damaged_json_lines,
            "config.json": damage.damaged_json,
            "artifact/result.json": damage.damaged_json,
        },
    ),
    Reader(
        "run of a submission",
        examples.write_exported_run,
        reading.tell_of_seed,
        {
            "artifact/result.json": damage.damaged_json,
            "artifact/audit.json": damage.damaged_json,
            "train.log": damage.damaged_text,
        },
    ),
    Reader("train.log", examples.write_run, reading.read_histories("train.log"), {"train.log": damage.damaged_text}),
    Reader(
        "train.log and metrics, resumed",
        examples.write_run,
        reading.resume_log,
        {"train.log": damage.damaged_text, "metrics.jsonl": damage.damaged_json_lines},
        writes=True,
    ),
    Reader(
        "sweep's results, reported",
        examples.write_sweep,
        reading.read_histories("."),
        {"results.json": damage.damaged_json},
    ),
    Reader("sweep's results, resumed", examples.write_sweep, reading.read_sweep, {"results.json": damage.damaged_json}),
    Reader(
        "journal of a replacement",
        examples.write_replacement,
        reading.settle,
        {"whole/.replacing-results/complete.json": damage.damaged_json},
        writes=True,
    ),
)
CHECKPOINTS = (
    Reader(
        "checkpoint, exported",
        examples.write_checkpoints,
        reading.read_weights,
        {"checkpoints/2": damage.damaged_file},
        checksummed=True,
        share=0.3,
    ),
    Reader(
        "checkpoint, resumed",
        examples.write_checkpoints,
        reading.go_on,
        {"checkpoints/2": damage.damaged_file},
        checksummed=True,
        share=0.3,
    ),
    Reader(
        "checkpoint, set aside",
        examples.write_checkpoints,
        reading.go_on_from_a_good_one,
        {"checkpoints/2": damage.damaged_file},
        writes=True,
        share=0.1,
    ),
    Reader(
        "checkpoint's record, resealed",
        examples.write_checkpoints,
        reading.go_on,
        {"checkpoints/2/record/metadata": damage.resealed_record},
        share=0.3,
    ),
    Reader(
        "checkpoint without checksums",
        examples.write_old_checkpoint,
        reading.read_weights,
        {"checkpoints": damage.damaged_file},
        share=0.3,
    ),
)
PYTORCH = (
    Reader(
        "--config of PyTorch files",
        examples.write_option,
        reading.read_option,
        {"option.json": damage.damaged_json},
    ),
    Reader(
        "state dict",
        examples.write_state,
        reading.read_state,
        {"model.pt": damage.damaged_file},
        checksummed=True,
        share=0.3,
    ),
    Reader("state dict, rezipped", examples.write_state, reading.read_state, {"model.pt": damage.rezipped}, share=0.3),
    Reader(
        "state dict of the old format",
        partial(examples.write_state, _use_new_zipfile_serialization=False),
        reading.read_state,
        {"model.pt": damage.damaged_file},
        share=0.3,
    ),
    Reader("state dict, large", examples.write_state, reading.read_state, {"model.pt": bombs.state_bomb}, share=0.2),
    Reader(
        "reference artifact",
        examples.write_reference,
        reading.read_reference,
        {"model.ptz": damage.damaged_file},
        checksummed=True,
        share=0.3,
    ),
    Reader(
        "reference artifact, repacked",
        examples.write_reference,
        reading.read_reference,
        {"model.ptz": damage.recompressed},
        share=0.3,
    ),
    Reader(
        "reference artifact, large",
        examples.write_reference,
        reading.read_reference,
        {"model.ptz": bombs.reference_bomb},
        share=0.2,
    ),
    Reader(
        "artifact of #1855",
        examples.write_per_group,
        reading.read_reference,
        {"model.ptz": damage.damaged_file},
        share=0.03,
        needs="torch brotli",
        program="lrzip",
    ),
)
PYTORCH = tuple(reader if "torch" in reader.needs else dataclasses.replace(reader, needs="torch") for reader in PYTORCH)
ALL_READERS = (*ARTIFACTS, *COMPRESSED, *DATA, *RUNS, *CHECKPOINTS, *PYTORCH)
"""A folder as a target stands for every file in it."""


def _read_with_every_fault(folder: Path) -> Any:
    match (folder / "a").read_bytes():
        case b"refused":
            raise DataError("refused")
        case b"stack trace":
            return {}["a"]
        case b"believed":
            raise AssertionError("a value that is none")
        case b"killed":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"memory":
            np.ones(2 * 10**10 // 8)
        case content:
            return content


FAULTY = Reader(
    "every fault",
    lambda folder: (folder / "a").write_bytes(b"whole"),
    _read_with_every_fault,
    {"a": lambda rng, raw: [b"refused", b"stack trace", b"believed", b"killed", b"memory", b"other"][rng.integers(6)]},
)
"""What the tool itself is tested with."""
READERS = {reader.name: reader for reader in (*ALL_READERS, FAULTY)}
