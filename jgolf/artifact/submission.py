"""A submission to the challenge: a folder that holds the artifact, the code that scores it, and its story.

    README.md  submission.json  train.log  model.jgolf  score.pyz  audit.json

`python score.pyz --tokens SHARD… --tokenizer T.model` in that folder scores the artifact, with this package's
dependencies installed and the package itself not. Python runs a zip; this one holds what scoring needs of our source
files, compressed together, which is what the challenge counts beside the artifact. `audit.json` is there where the
artifact was audited.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jgolf import files
from jgolf.artifact.code import needed_code
from jgolf.errors import JgolfError
from jgolf.reading import read_json
from jgolf.run_dir import AUDIT_FILE

ARTIFACT_NAME = "model.jgolf"
LOG_NAME = "train.log"
SCORE_NAME = "score.pyz"
SOURCES_NAME = "sources.tar.xz"
LZMA_OF_TEXT = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0}
SCORE_TEXT = f'''"""Scores the artifact beside this zip: python {SCORE_NAME} --tokens SHARD... --tokenizer T.model"""

import io
import pkgutil
import sys
import tarfile
import tempfile
from pathlib import Path

archive = Path(sys.argv[0]).resolve()
with tempfile.TemporaryDirectory() as folder:
    with tarfile.open(fileobj=io.BytesIO(pkgutil.get_data(__name__, "{SOURCES_NAME}"))) as sources:
        sources.extraction_filter = getattr(tarfile, "data_filter", None)  # as newer Pythons have it
        sources.extractall(folder)
    sys.path.insert(0, folder)
    from jgolf.artifact.scoring import main

    status = main([str(archive.with_name("{ARTIFACT_NAME}")), *sys.argv[1:]])
sys.exit(status)
'''
_PATHS = re.compile(r"""(?<=--run-dir )\S+|(?<![^\s=:(\['"])(?:~|\.{1,2})?/[^\s'",;:)\]]+|'(?:~|\.{1,2})?/[^'\n]*'""")
README_TEXT = """# {name}

{blurb}

| | nats per token | bits per byte |
|---|---|---|
| sliding window, stride {sliding_stride} (the record figure) | {sliding_val_loss:.6f} | {sliding_val_bpb:.6f} |
| rows of the sequence length | {val_loss:.6f} | {val_bpb:.6f} |
| before quantization, rows of the sequence length | {pre_quantization_val_loss:.6f} | {pre_quantization_val_bpb:.6f} |

Scored on {tokens:,} validation tokens, {bytes:,} bytes of text as the challenge counts them{original}.

{total_bytes:,} bytes of {limit_bytes:,}: {artifact_bytes:,} of the artifact `model.jgolf` and {code_bytes:,} of the
code, `score.pyz`: a zip that Python runs, with the sources that it needs, without their comments, in its
`sources.tar.xz`.

Weights: {average} of step {step} of the config `{config}`; `train.log` tells how they were trained.

To score the artifact, in this folder:

    pip install "jax>=0.10" "flax>=0.12" "numpy>=2.0" sentencepiece zstandard dacite jaxtyping tyro{extra}
    python score.pyz --tokens fineweb_val_*.bin --tokenizer fineweb_1024_bpe.model --stride {sliding_stride}
"""


@dataclass(frozen=True)
class Submitter:
    """Who submits what, as submission.json names it."""

    author: str
    github_id: str
    name: str
    blurb: str


@cache
def code() -> bytes:
    """The code of a submission, a zip that Python runs: the same bytes from the same sources."""
    with io.BytesIO() as packed, io.BytesIO() as buffer:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, text in needed_code().items():
                entry = tarfile.TarInfo(name)  # of no date, and nobody's
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        sources = lzma.compress(packed.getvalue(), check=lzma.CHECK_CRC32, filters=[LZMA_OF_TEXT])
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(zipfile.ZipInfo("__main__.py"), SCORE_TEXT, zipfile.ZIP_DEFLATED, compresslevel=9)
            archive.writestr(zipfile.ZipInfo(SOURCES_NAME), sources)
        return buffer.getvalue()


def code_bytes() -> int:
    """Bytes of a submission's code, as the challenge counts them."""
    return len(code())


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


def missing(run_dir: Path) -> list[str]:
    """What a submission of a run would be without, and how to make it."""
    path, how = run_dir / AUDIT_FILE, f"jgolf audit {run_dir} tries what the score is worth; then export the same again"
    if not path.is_file():
        return [f"{AUDIT_FILE.name}: {how}"]
    try:
        passed = read_json(path)["passed"] is True
    except (ValueError, KeyError, TypeError):
        passed = False
    return [] if passed else [f"an {AUDIT_FILE.name} that says that every check holds: {how}"]


def write(folder: Path, submitter: Submitter, result: Mapping[str, Any], run_dir: Path, artifact: bytes) -> None:
    """Writes the folder, whole or not at all.

    Args:
      folder: to be made; it may exist if it is empty.
      submitter: who and what.
      result: the export's result.json.
      run_dir: the run, for its log, and the audit of its artifact where there was one.
      artifact: the packed model.

    Raises:
      JgolfError: the folder cannot be written to.
    """
    contents = {
        SCORE_NAME: code(),
        ARTIFACT_NAME: artifact,
        LOG_NAME: without_folders((run_dir / LOG_NAME).read_bytes().decode(errors="surrogateescape")).encode(
            errors="surrogateescape"
        ),
        "README.md": _readme(submitter, result).encode(),
        "submission.json": (json.dumps(_summary(submitter, result), indent=2, ensure_ascii=False) + "\n").encode(),
    }
    if (run_dir / AUDIT_FILE).is_file():
        contents[AUDIT_FILE.name] = (run_dir / AUDIT_FILE).read_bytes()
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
        "original_bpb": result.get("sliding_original_bpb"),
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
    words["extra"] = " constriction" if result["codec"] == "range" else ""
    original, bpb = result.get("original_bytes"), result.get("sliding_original_bpb")
    differs = original not in (None, result["bytes"])
    words["original"] = (
        f" ({original:,} of the original text: {bpb:.6f} bits per byte of it, sliding)" if differs else ""
    )
    return README_TEXT.format(**words)
