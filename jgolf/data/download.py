"""Fetching the challenge's published shards: `jgolf data download`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jgolf import files
from jgolf.data.sentence_piece import CaseOpsTokenizer
from jgolf.data.shards import is_sidecar, open_shard, sidecar_of
from jgolf.data.text import sidecar_bytes
from jgolf.data.tokenizer import Tokenizer, load_tokenizer, published_name
from jgolf.errors import DataError, JgolfError, MissingExtraError, first_line
from jgolf.progress import activity, progress_bar
from jgolf.reading import parse_json

CHALLENGE = "willdepueoai/parameter-golf"
HOMES = {
    "sp4096": "kevclark/parameter-golf",
    "sp8192": "kevclark/parameter-golf",
    "sp8192_lossless_caps_caseops_v1_reserved": "romeerp/parameter-golf-caseops-v1",
}
"""Variant → the repository that publishes it, where that is not the challenge's own."""
CASE_OPS = "lossless_caps_caseops_v1"
"""The text transform of CaseOps, as manifests call it."""

_SHARD = re.compile(r"(?:.*/)?(datasets/fineweb10B_([^/]+)/fineweb_(train|val|val_bytes)_\d+\.bin)")
_TOKENIZER = re.compile(r"(?:.*/)?(tokenizers/([^/]+\.(?:model|json)))")
_MANIFEST = re.compile(r"((?:datasets/)?manifest\.json)")
_MOST_MANIFEST_BYTES = 1 << 22
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
    repo: str | None = None,
) -> None:
    """Fetch published shards, their byte counts and their tokenizer from the Hugging Face hub.

    Every file is verified. A broken connection goes on in the middle of a file; after an interruption, the same
    command fetches the files that are not there yet, or damaged.

    Args:
      variant: Which export, what follows fineweb10B_ in its name: sp1024 is text in the 1,024-piece tokenizer; also
        sp4096, sp8192, byte260 and, over CaseOps, sp8192_lossless_caps_caseops_v1_reserved.
      train_shards: Training shards to fetch, of 100,000,000 tokens and 200 MB each; by default all.
      out: Folder for datasets/ and tokenizers/.
      repo: Dataset repository; by default the one that is known to publish the variant, or the challenge's.
    """
    folder = download_variant(variant, train_shards, out, repo or HOMES.get(variant, CHALLENGE))
    print(f"{folder}: complete; train on it with --data {folder}")


def download_variant(
    variant: str, train_shards: int | None, out_dir: str | Path, repo: str, endpoint: str | None = None
) -> Path:
    """Fetches and verifies the files of a variant; the folder of its shards.

    Args:
      variant: such as sp1024.
      train_shards: how many, the first ones; None for all.
      out_dir: gets `datasets/fineweb10B_{variant}/*.bin`, and the tokenizer in `tokenizers/`.
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
    if "HF_HUB_VERBOSITY" not in os.environ:
        huggingface_hub.utils.logging.set_verbosity_error()  # what it tells of each attempt, the error sums up
    published = _published(hub, repo)
    shards = _shards_of(published, variant, repo)
    description = _description(hub, repo, published, variant)
    tokenizer_file = _tokenizer_of(published, variant, description, repo)
    wanted = [tokenizer_file, *_choose(shards, variant, train_shards, description, repo)]
    look = progress_bar("checking what is there")
    missing = [file for file in look(wanted, len(wanted)) if not _is_intact(out_dir / file.local_path, file)]
    _check_room(out_dir, missing)
    for index, file in enumerate(missing, start=1):
        print(f"[{index}/{len(missing)}] {file.local_path}, {file.num_bytes / 1e6:,.1f} MB", flush=True)
        _fetch(hub, repo, file, out_dir)
    tokenizer = _checked_tokenizer(out_dir / tokenizer_file.local_path, variant, description)
    for file in progress_bar("checking what is in them")(wanted[1:], len(wanted) - 1):
        _check_content(out_dir / file.local_path, tokenizer)
    shutil.rmtree(out_dir / _PARTIAL, ignore_errors=True)
    return out_dir / "datasets" / f"fineweb10B_{variant}"


def _published(hub: Any, repo: str) -> list[RemoteFile]:
    """The shards, tokenizers and manifests of the repository, sorted by path."""
    with activity(f"asking the Hugging Face hub what {repo} holds"):  # for half a minute where it does not answer
        entries = _asked(repo, lambda: list(hub.list_repo_tree(repo, repo_type="dataset", recursive=True)))
    found = []
    for entry in entries:
        match = next(filter(None, (kind.fullmatch(entry.path) for kind in (_SHARD, _TOKENIZER, _MANIFEST))), None)
        if match and hasattr(entry, "size"):  # a folder has none
            sha256 = entry.lfs.sha256 if entry.lfs else None
            found.append(RemoteFile(entry.path, match[1], entry.size, sha256, entry.blob_id))
    return sorted(found, key=lambda file: file.local_path)


def _shards_of(published: list[RemoteFile], variant: str, repo: str) -> dict[str, list[RemoteFile]]:
    """train, val and val_bytes → the files of a variant."""
    shards: dict[str, dict[str, list[RemoteFile]]] = {}
    for file in published:
        if match := _SHARD.fullmatch(file.remote_path):
            shards.setdefault(match[2], {"train": [], "val": [], "val_bytes": []})[match[3]].append(file)
    if variant not in shards:
        known = ", ".join(sorted(shards)) or "none"
        raise DataError(f"{repo}: no variant {variant!r} is published there; found {known}")
    return shards[variant]


@dataclass(frozen=True)
class _Description:
    """What a repository's manifest says of a variant; nothing where it has no manifest.

    Attributes:
      tokenizer: file name of its tokenizer.
      text_transform: what was done to the text before it was tokenized.
      num_validation_shards: as many were exported.
    """

    tokenizer: str | None = None
    text_transform: str | None = None
    num_validation_shards: int | None = None


def _description(hub: Any, repo: str, published: list[RemoteFile], variant: str) -> _Description:
    manifest = next((file for file in published if _MANIFEST.fullmatch(file.remote_path)), None)
    if manifest is None:
        return _Description()
    if manifest.num_bytes > _MOST_MANIFEST_BYTES:
        raise DataError(f"{repo}: its {manifest.remote_path} has {manifest.num_bytes:,} bytes, which is no manifest")
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"repo_type": "dataset", "local_dir": folder}
        path = Path(_asked(repo, lambda: hub.hf_hub_download(repo, manifest.remote_path, **arguments)))
        content = path.read_bytes()
    try:
        return _described(parse_json(content), variant)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{repo}: its {manifest.remote_path} cannot be understood: {error!r:.200}") from None


def _described(manifest: dict[str, Any], variant: str) -> _Description:
    """Raises KeyError, TypeError or AttributeError for what is no manifest."""
    own = next((one for one in manifest.get("datasets", []) if one["name"] == f"fineweb10B_{variant}"), None)
    if own is None:
        return _Description()
    tokenizers = {one["name"]: one for one in manifest.get("tokenizers", [])}
    tokenizer = tokenizers.get(own.get("tokenizer_name"), {})
    path = tokenizer.get("model_path") or tokenizer.get("path")
    return _Description(
        Path(path).name if path else None, tokenizer.get("text_transform"), own.get("stats", {}).get("files_val")
    )


def _tokenizer_of(published: list[RemoteFile], variant: str, description: _Description, repo: str) -> RemoteFile:
    name = description.tokenizer or published_name(variant) or f"fineweb_{variant}.model"
    for file in published:
        if (match := _TOKENIZER.fullmatch(file.remote_path)) and match[2] == name:
            return file
    raise DataError(f"{repo}: the tokenizer tokenizers/{name} of {variant} is not published there")


def _choose(
    shards: dict[str, list[RemoteFile]], variant: str, train_shards: int | None, description: _Description, repo: str
) -> list[RemoteFile]:
    """The validation shards, their byte counts and the first training shards of a variant."""
    train, validation, counts = shards["train"], shards["val"], shards["val_bytes"]
    number = len(train) if train_shards is None else train_shards
    if not 0 <= number <= len(train):
        raise DataError(f"--train-shards {train_shards}: {repo} has {len(train)} training shards of {variant}")
    if not validation:
        raise DataError(f"{repo}: the validation shards of {variant} are not published there")
    if description.num_validation_shards not in (None, len(validation)):
        raise DataError(
            f"{repo}: {len(validation)} validation shards of {variant} are published there, expected "
            f"{description.num_validation_shards}, as its manifest says: a score would be of another text"
        )
    expected = {str(sidecar_of(file.local_path)) for file in validation}
    missing = sorted(expected - {file.local_path for file in counts})
    if missing and (counts or description.text_transform == CASE_OPS):
        raise DataError(f"{repo}: {missing[0]} is not published there, without which no bytes can be counted")
    return [*validation, *(file for file in counts if file.local_path in expected), *train[:number]]


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
        raise JgolfError(f"{repo}: the Hugging Face hub refused the request: {first_line(error)}") from None
    except errors.HTTPError as error:  # of the HTTP library: no connection, or one that broke
        raise _unreachable(repo, error) from None


def _unreachable(repo: str, error: Exception) -> JgolfError:
    return JgolfError(
        f"{repo}: the Hugging Face hub cannot be reached ({first_line(error)}): check the network, then run the same "
        "command again; files that are complete are kept"
    )


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


def _checked_tokenizer(path: Path, variant: str, description: _Description) -> Tokenizer:
    """The tokenizer, whose size and text have to be those that the variant's name and the manifest tell."""
    pieces = re.match(r"(?:sp|byte)(\d+)(?:_|$)", variant)
    tokenizer = load_tokenizer(path, int(pieces[1]) if pieces else None)
    transform = description.text_transform or "identity"
    is_known = transform == CASE_OPS if isinstance(tokenizer, CaseOpsTokenizer) else transform == "identity"
    if description.tokenizer and not is_known:
        raise DataError(
            f"{path}: published for text under the transform {transform!r}; this tokenizer's pieces say otherwise, or "
            f"it is unknown: expected {CASE_OPS!r} with pieces for its operators, or none"
        )
    return tokenizer


def _check_content(path: Path, tokenizer: Tokenizer) -> None:
    if is_sidecar(path):
        return  # with its shard
    open_shard(path, tokenizer.vocab_size)
    sidecar = sidecar_of(path)
    if sidecar.is_file():
        sidecar_bytes(path, tokenizer.bos_id)
    elif tokenizer.table_fault and "_val_" in path.name:
        raise DataError(f"{path}: published without {sidecar.name}, but its tokenizer {tokenizer.table_fault}")


def _check_room(out_dir: Path, missing: list[RemoteFile]) -> None:
    needed = sum(file.num_bytes for file in missing)
    folder = next(parent for parent in [out_dir.resolve(), *out_dir.resolve().parents] if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise JgolfError(
            f"{out_dir}: {needed / 1e9:.2f} GB to download, but only {free / 1e9:.2f} GB are free there: make room, "
            "choose another --out, or fewer --train-shards"
        )
