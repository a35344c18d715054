"""Fetching the challenge's published shards: `jgolf data download`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jgolf import files
from jgolf.data.shards import open_shard
from jgolf.data.tokenizer import load_tokenizer
from jgolf.errors import DataError, JgolfError, MissingExtraError
from jgolf.progress import progress_bar

_SHARD = re.compile(r"(?:.*/)?(datasets/fineweb10B_([^/]+)/fineweb_(train|val)_\d+\.bin)")
_TOKENIZER = re.compile(r"(?:.*/)?(tokenizers/fineweb_(\d+)_bpe\.model)")
_PARTIAL = ".download"  # folder of what is under way, inside the output folder
_HASHED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A published file."""

    remote_path: str
    local_path: str
    num_bytes: int
    sha256: str | None  # of files in large-file storage
    git_sha1: str  # of the others, as git computes it


def download(
    variant: tyro.conf.Positional[str] = "sp1024",
    train_shards: int | None = None,
    out: Path = Path("data"),
    repo: str = "willdepueoai/parameter-golf",
) -> None:
    """Fetch the challenge's published shards and tokenizer from the Hugging Face hub.

    Every file is verified. A broken connection goes on in the middle of a file; after an interruption, the same
    command fetches the files that are not there yet, or damaged.

    Args:
      variant: Which export: sp1024 is text in the 1,024-piece tokenizer.
      train_shards: Training shards to fetch, of 100,000,000 tokens and 200 MB each; by default all.
      out: Folder for datasets/ and tokenizers/.
      repo: Dataset repository.
    """
    folder = download_variant(variant, train_shards, out, repo)
    print(f"{folder}: complete; train on it with --data {folder}")


def download_variant(
    variant: str, train_shards: int | None, out_dir: str | Path, repo: str, endpoint: str | None = None
) -> Path:
    """Fetches and verifies the files of a variant; the folder of its shards.

    Args:
      variant: such as sp1024.
      train_shards: how many, the first ones; None for all.
      out_dir: gets `datasets/fineweb10B_{variant}/*.bin` and `tokenizers/fineweb_{pieces}_bpe.model`.
      repo: dataset repository on the hub.
      endpoint: address of the hub; by default the HF_ENDPOINT variable's, or the public one.

    Raises:
      MissingExtraError: huggingface_hub is not installed.
      DataError: there is no such repository or variant, or it has fewer shards; a file did not arrive intact.
      JgolfError: the hub cannot be reached, or `out_dir` cannot be written to.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("huggingface_hub", "download", "`jgolf data download`") from None
    out_dir = Path(out_dir)
    hub = huggingface_hub.HfApi(endpoint=endpoint)
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    wanted = _choose(_published(hub, repo), variant, train_shards, repo)
    look = progress_bar("checking what is there")
    missing = [file for file in look(wanted, len(wanted)) if not _is_intact(out_dir / file.local_path, file)]
    _check_room(out_dir, missing)
    for index, file in enumerate(missing, start=1):
        print(f"[{index}/{len(missing)}] {file.local_path}, {file.num_bytes / 1e6:,.1f} MB", flush=True)
        _fetch(hub, repo, file, out_dir)
    for file in progress_bar("checking what is in them")(wanted, len(wanted)):
        _check_content(out_dir / file.local_path, variant)
    shutil.rmtree(out_dir / _PARTIAL, ignore_errors=True)
    return out_dir / "datasets" / f"fineweb10B_{variant}"


def _published(hub: Any, repo: str) -> list[RemoteFile]:
    """The shards and tokenizers of the repository, sorted by path."""
    entries = _asked(repo, lambda: list(hub.list_repo_tree(repo, repo_type="dataset", recursive=True)))
    found = []
    for entry in entries:
        match = _SHARD.fullmatch(entry.path) or _TOKENIZER.fullmatch(entry.path)
        if match and hasattr(entry, "size"):  # a folder has none
            sha256 = entry.lfs.sha256 if entry.lfs else None
            found.append(RemoteFile(entry.path, match[1], entry.size, sha256, entry.blob_id))
    return sorted(found, key=lambda file: file.local_path)


def _choose(published: list[RemoteFile], variant: str, train_shards: int | None, repo: str) -> list[RemoteFile]:
    """The tokenizer, the validation shards and the first training shards of a variant."""
    shards: dict[str, dict[str, list[RemoteFile]]] = {}
    for file in published:
        if match := _SHARD.fullmatch(file.remote_path):
            shards.setdefault(match[2], {"train": [], "val": []})[match[3]].append(file)
    if variant not in shards:
        known = ", ".join(sorted(shards)) or "none"
        raise DataError(f"{repo}: no variant {variant!r} is published there; found {known}")
    train, validation = shards[variant]["train"], shards[variant]["val"]
    count = len(train) if train_shards is None else train_shards
    if not 0 <= count <= len(train):
        raise DataError(f"--train-shards {train_shards}: {repo} has {len(train)} training shards of {variant}")
    pieces = variant.removeprefix("sp")
    tokenizers = [file for file in published if (m := _TOKENIZER.fullmatch(file.remote_path)) and m[2] == pieces]
    if not tokenizers or not validation:
        what = "validation shards" if tokenizers else f"tokenizer tokenizers/fineweb_{pieces}_bpe.model"
        raise DataError(f"{repo}: the {what} of {variant} is not published there")
    return [*tokenizers, *validation, *train[:count]]


def _asked(repo: str, request: Any) -> Any:
    """The answer of the hub to `request`, with its errors in our words."""
    from huggingface_hub import errors

    try:
        return request()
    except errors.RepositoryNotFoundError:
        raise DataError(f"{repo}: no such public dataset repository on the hub: check --repo") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _unreachable(repo, error) from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise JgolfError(f"{repo}: the Hugging Face hub refused the request: {_first_line(error)}") from None
    except errors.HTTPError as error:  # of the HTTP library: no connection, or one that broke
        raise _unreachable(repo, error) from None


def _unreachable(repo: str, error: Exception) -> JgolfError:
    return JgolfError(
        f"{repo}: the Hugging Face hub cannot be reached ({_first_line(error)}): check the network, then run the same "
        "command again; files that are complete are kept"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _fetch(hub: Any, repo: str, file: RemoteFile, out_dir: Path) -> None:
    """Downloads into the folder of partial files, verifies, and only then moves to the final place."""
    target = out_dir / file.local_path
    try:
        partial = Path(
            _asked(
                repo,
                lambda: hub.hf_hub_download(repo, file.remote_path, repo_type="dataset", local_dir=out_dir / _PARTIAL),
            )
        )
        if not _is_intact(partial, file):
            partial.unlink()
            raise DataError(f"{file.local_path}: did not arrive as published (size or checksum differ); run it again")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    except OSError as error:
        raise files.writing_error(target, error) from error


def _is_intact(path: Path, file: RemoteFile) -> bool:
    """Whether the file is there with the published size and checksum."""
    if not path.is_file() or path.stat().st_size != file.num_bytes:
        return False
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.num_bytes)
    with open(path, "rb") as content:
        while chunk := content.read(_HASHED_AT_ONCE):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.git_sha1)


def _check_content(path: Path, variant: str) -> None:
    pieces = variant.removeprefix("sp")
    vocab_size = int(pieces) if re.fullmatch("[0-9]{1,6}", pieces) else None
    if path.suffix == ".model":
        load_tokenizer(path, vocab_size)
    else:
        open_shard(path, vocab_size)


def _check_room(out_dir: Path, missing: list[RemoteFile]) -> None:
    needed = sum(file.num_bytes for file in missing)
    folder = next(parent for parent in [out_dir.resolve(), *out_dir.resolve().parents] if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise JgolfError(
            f"{out_dir}: {needed / 1e9:.2f} GB to download, but only {free / 1e9:.2f} GB are free there: make room, "
            "choose another --out, or fewer --train-shards"
        )
