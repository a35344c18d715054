"""A submission to the challenge: a folder that holds the artifact, the code that scores it, and its story.

    README.md  submission.json  train.log  model.jgolf  score.py  jgolf/…

`python score.py --tokens SHARD… --tokenizer T.model` in that folder scores the artifact, with this
package's dependencies installed and the package itself not: its source files lie there as they are,
and what the challenge counts is the bytes of these files and of the artifact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jgolf import files
from jgolf.artifact.code import scoring_sources
from jgolf.errors import JgolfError

ARTIFACT_NAME = "model.jgolf"
LOG_NAME = "train.log"
SCORE_NAME = "score.py"
SCORE_TEXT = '''"""Scores the artifact beside this file: python score.py --tokens SHARD... --tokenizer T.model"""

import sys
from pathlib import Path

from jgolf.artifact.scoring import main

if __name__ == "__main__":
    sys.exit(main([str(Path(__file__).with_name("model.jgolf")), *sys.argv[1:]]))
'''
_PATHS = re.compile(r"""(?<=--run-dir )\S+|(?<![^\s=:(\['"])(?:~|\.{1,2})?/[^\s'",;:)\]]+|'(?:~|\.{1,2})?/[^'\n]*'""")
README_TEXT = """# {name}

{blurb}

| | nats per token | bits per byte |
|---|---|---|
| sliding window, stride {sliding_stride} (the record figure) | {sliding_val_loss:.6f} | {sliding_val_bpb:.6f} |
| rows of the sequence length | {val_loss:.6f} | {val_bpb:.6f} |
| before quantization, rows of the sequence length | {pre_quantization_val_loss:.6f} | {pre_quantization_val_bpb:.6f} |

Scored on {tokens:,} validation tokens, {bytes:,} bytes of text. {total_bytes:,} bytes of {limit_bytes:,}:
{artifact_bytes:,} of the artifact `model.jgolf` and {code_bytes:,} of the code, `score.py` and `jgolf/`.

Weights: {average} of step {step} of the config `{config}`; `train.log` tells how they were trained.

To score the artifact, in this folder:

    pip install "jax>=0.10" "flax>=0.12" "numpy>=2.0" sentencepiece zstandard dacite jaxtyping tyro{extra}
    python score.py --tokens fineweb_val_*.bin --tokenizer fineweb_1024_bpe.model --stride {sliding_stride}
"""


@dataclass(frozen=True)
class Submitter:
    """Who submits what, as submission.json names it."""

    author: str
    github_id: str
    name: str
    blurb: str


@cache
def code_files() -> dict[str, bytes]:
    """The code of a submission: path in its folder → contents."""
    root = Path(__file__).resolve().parents[2]
    sources = {path.relative_to(root).as_posix(): path.read_bytes() for path in scoring_sources(root=root)}
    return {SCORE_NAME: SCORE_TEXT.encode(), **sources}


def code_bytes() -> int:
    """Bytes of a submission's code, as the challenge counts them."""
    return sum(map(len, code_files().values()))


def check_folder(folder: Path, run_dir: Path) -> None:
    """Checks, before any work, that a submission can be written.

    Raises:
      JgolfError: `folder` holds something, or the run has no log.
    """
    if folder.exists() and not folder.is_dir():
        raise JgolfError(f"{folder}: a file, expected a folder to make for the submission")
    if folder.is_dir() and any(folder.iterdir()):
        raise JgolfError(f"{folder}: not empty: choose another --submission folder, or remove this one")
    if not (run_dir / LOG_NAME).is_file():
        raise JgolfError(f"{run_dir}: has no {LOG_NAME}, which a submission needs: expected the folder of a run")


def write(folder: Path, submitter: Submitter, result: Mapping[str, Any], run_dir: Path, artifact: bytes) -> None:
    """Writes the folder, whole or not at all.

    Args:
      folder: to be made; it may exist if it is empty.
      submitter: who and what.
      result: the export's result.json.
      run_dir: the run, for its log.
      artifact: the packed model.

    Raises:
      JgolfError: the folder cannot be written to.
    """
    contents = {
        **code_files(),
        ARTIFACT_NAME: artifact,
        LOG_NAME: without_folders((run_dir / LOG_NAME).read_bytes().decode(errors="surrogateescape")).encode(
            errors="surrogateescape"
        ),
        "README.md": _readme(submitter, result).encode(),
        "submission.json": (json.dumps(_summary(submitter, result), indent=2, ensure_ascii=False) + "\n").encode(),
    }
    with files.atomic_folder(folder) as temporary:
        for name, data in contents.items():
            files.write_bytes(temporary / name, data)


def without_folders(log: str) -> str:
    """The log with every path of its machine cut to its last name: folders are the submitter's own affair."""
    return _PATHS.sub(lambda found: found[0].strip("'").rstrip("/").rpartition("/")[2], log)


def _summary(submitter: Submitter, result: Mapping[str, Any]) -> dict[str, Any]:
    """What submission.json says; val_loss and val_bpb are the record figures, those of the sliding window."""
    return {
        "author": submitter.author,
        "github_id": submitter.github_id,
        "name": submitter.name,
        "blurb": submitter.blurb,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "val_loss": result["sliding_val_loss"],
        "val_bpb": result["sliding_val_bpb"],
        "standard_val_loss": result["val_loss"],
        "standard_val_bpb": result["val_bpb"],
        "pre_quant_val_loss": result["pre_quantization_val_loss"],
        "pre_quant_val_bpb": result["pre_quantization_val_bpb"],
        "step_stop": result["step"],
        "bytes_total": result["total_bytes"],
        "bytes_model": result["artifact_bytes"],
        "bytes_code": result["code_bytes"],
    }


def _readme(submitter: Submitter, result: Mapping[str, Any]) -> str:
    words = {**result, "config": result["name"], "name": submitter.name, "blurb": submitter.blurb}
    return README_TEXT.format(**words, extra=" constriction" if result["codec"] == "range" else "")
