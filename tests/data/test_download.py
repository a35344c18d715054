import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from jgolf.cli import main
from jgolf.data import download as download_module
from jgolf.data.documents import read_documents
from jgolf.data.download import download_variant
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.shards import find_shards, open_shard, write_shard
from jgolf.data.text import read_text
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError, JgolfError, MissingExtraError
from tests.data.hub_stand_in import CUT_AFTER, REPO, HubStandIn

huggingface_hub = pytest.importorskip("huggingface_hub")
SHARDS = "datasets/fineweb10B_sp1024"
TOKENIZER = "tokenizers/fineweb_1024_bpe.model"


def shard_bytes(folder, seed: int, count: int, highest: int = 1023) -> bytes:
    path = folder / "made.bin"
    write_shard(path, np.random.default_rng(seed).integers(0, highest + 1, count))
    return path.read_bytes()


@pytest.fixture
def contents(tmp_path, tokenizer) -> dict[str, bytes]:
    """What the repository publishes, in the layout of the challenge's: everything under datasets/."""
    names = [f"fineweb_train_{index:06d}.bin" for index in range(3)] + ["fineweb_val_000000.bin"]
    published = {f"datasets/{SHARDS}/{name}": shard_bytes(tmp_path, i, 30_000 + i) for i, name in enumerate(names)}
    return published | {
        f"datasets/{TOKENIZER}": tokenizer.model_bytes,
        "datasets/datasets/fineweb10B_sp512/fineweb_train_000000.bin": shard_bytes(tmp_path, 9, 50, 511),
        "datasets/manifest.json": b"{}",
        "README.md": b"a dataset",
    }


@pytest.fixture
def hub(contents):
    with HubStandIn(contents) as server:
        yield server
        server.shutdown()


@pytest.fixture
def no_waiting(monkeypatch):
    """The hub's client waits between its attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def fetched(out) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("root", ["datasets/", ""])
def test_layout_and_content(tmp_path, hub, contents, root):
    hub.contents = {name.replace("datasets/", root, 1): data for name, data in contents.items()}
    folder = download_variant("sp1024", 2, tmp_path / "out", REPO, hub.endpoint)
    assert folder == tmp_path / "out" / SHARDS
    train = [f"{SHARDS}/fineweb_train_{index:06d}.bin" for index in range(2)]
    assert fetched(tmp_path / "out") == {*train, f"{SHARDS}/fineweb_val_000000.bin", TOKENIZER}
    for name in fetched(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == contents[f"datasets/{name}"]
    assert [len(open_shard(path, 1024)) for path in find_shards(folder, "train")] == [30_000, 30_001]
    assert find_tokenizer(folder).read_bytes() == contents[f"datasets/{TOKENIZER}"]


def test_second_run_fetches_only_what_is_missing_or_damaged(tmp_path, hub):
    folder = download_variant("sp1024", 1, tmp_path, REPO, hub.endpoint)
    hub.requests.clear()
    download_variant("sp1024", None, tmp_path, REPO, hub.endpoint)
    assert len(find_shards(folder, "train")) == 3
    assert not hub.ranges_of("fineweb_train_000000.bin")
    assert not hub.ranges_of(".model")
    damaged = bytearray((folder / "fineweb_val_000000.bin").read_bytes())
    damaged[5000] ^= 1
    (folder / "fineweb_val_000000.bin").write_bytes(damaged)
    download_variant("sp1024", None, tmp_path, REPO, hub.endpoint)
    assert (folder / "fineweb_val_000000.bin").read_bytes() != damaged
    assert len(hub.ranges_of("fineweb_val_000000.bin")) == 1


@pytest.mark.usefixtures("no_waiting")
def test_broken_connection_goes_on_in_the_middle_of_a_file(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CUT_AFTER)
    name = f"datasets/{SHARDS}/fineweb_val_000000.bin"
    hub.cuts[name] = 3
    download_variant("sp1024", 0, tmp_path, REPO, hub.endpoint)
    assert hub.ranges_of(name) == [None, "bytes=10000-", "bytes=20000-", "bytes=30000-"]


@pytest.mark.usefixtures("no_waiting")
def test_failed_download_keeps_complete_files(tmp_path, hub, contents):
    name = f"datasets/{SHARDS}/fineweb_train_000001.bin"
    hub.contents = contents | {name: bytes(2_000_000)}
    hub.cuts[name] = 1_000_000
    with pytest.raises(JgolfError, match=r"cannot be reached .*files that are complete are kept"):
        download_variant("sp1024", None, tmp_path, REPO, hub.endpoint)
    assert fetched(tmp_path / "datasets") == {
        "fineweb10B_sp1024/fineweb_val_000000.bin",
        "fineweb10B_sp1024/fineweb_train_000000.bin",
    }
    hub.contents = contents
    hub.cuts.clear()
    hub.requests.clear()
    folder = download_variant("sp1024", None, tmp_path, REPO, hub.endpoint)
    assert len(find_shards(folder, "train")) == 3
    assert not hub.ranges_of("_000000.bin")
    assert not (tmp_path / ".download").exists()


def test_wrong_bytes_are_not_kept(tmp_path, hub):
    name = f"datasets/{SHARDS}/fineweb_val_000000.bin"
    damaged = bytearray(hub.contents[name])
    damaged[-1] ^= 1
    hub.served[name] = bytes(damaged)
    with pytest.raises(DataError, match=r"fineweb_val_000000\.bin: did not arrive as published"):
        download_variant("sp1024", 1, tmp_path, REPO, hub.endpoint)
    assert not (tmp_path / SHARDS / "fineweb_val_000000.bin").exists()
    hub.served.clear()
    download_variant("sp1024", 1, tmp_path, REPO, hub.endpoint)


def test_published_shard_of_another_tokenizer(tmp_path, hub):
    hub.contents[f"datasets/{SHARDS}/fineweb_train_000000.bin"] = shard_bytes(tmp_path, 0, 500, 5000)
    with pytest.raises(
        DataError, match=r"fineweb_train_000000\.bin: token \d+ has the id \d+, expected ids below 1024"
    ):
        download_variant("sp1024", 1, tmp_path / "out", REPO, hub.endpoint)


CASE_OPS = "sp400_lossless_caps_caseops_v1_reserved"


@pytest.fixture(scope="module")
def case_ops_model(demo_dir) -> bytes:
    texts = (text[:500] for text in itertools.islice(read_documents([demo_dir / "train.txt"]), 200))
    return train_tokenizer(texts, 400, case_ops=True)


def case_ops_contents(folder, model: bytes) -> dict[str, bytes]:
    """A published set with byte counts, in the manner of the challenge's exporter."""
    tokens = np.random.default_rng(1).integers(0, 400, 2000)
    manifest = {
        "datasets": [
            {"name": f"fineweb10B_{CASE_OPS}", "tokenizer_name": "caps", "stats": {"files_train": 1, "files_val": 1}}
        ],
        "tokenizers": [
            {"name": "caps", "model_path": "tokenizers/caps.model", "text_transform": "lossless_caps_caseops_v1"}
        ],
    }
    found = {"datasets/manifest.json": json.dumps(manifest).encode(), "datasets/tokenizers/caps.model": model}
    numbers = {"train": tokens, "val": tokens, "val_bytes": np.where(tokens == 1, 0, tokens % 7)}
    for kind, values in numbers.items():
        write_shard(folder / "made.bin", values)
        name = f"datasets/datasets/fineweb10B_{CASE_OPS}/fineweb_{kind}_000000.bin"
        found[name] = (folder / "made.bin").read_bytes()
    return found


def test_case_ops_set_with_its_byte_counts(tmp_path, hub, case_ops_model):
    hub.contents = case_ops_contents(tmp_path, case_ops_model)
    folder = download_variant(CASE_OPS, 1, tmp_path / "out", REPO, hub.endpoint)
    names = {f"fineweb_{kind}_000000.bin" for kind in ("train", "val", "val_bytes")}
    assert {path.name for path in folder.iterdir()} == names
    text = read_text(sorted(folder.glob("*_val_*.bin")), load_tokenizer(find_tokenizer(folder), 400))
    np.testing.assert_array_equal(text.bytes, np.where(text.tokens == 1, 0, text.tokens % 7))


def test_case_ops_set_that_cannot_be_scored(tmp_path, hub, case_ops_model, tokenizer):
    whole = case_ops_contents(tmp_path, case_ops_model)
    folder = f"datasets/datasets/fineweb10B_{CASE_OPS}"
    shorter = shard_bytes(tmp_path, 0, 1999, 6)
    manifest = whole["datasets/manifest.json"]
    for changes, message in (
        ({f"{folder}/fineweb_val_bytes_000000.bin": None}, "fineweb_val_bytes_000000.bin is not published there"),
        (
            {f"{folder}/fineweb_val_bytes_000000.bin": None, "datasets/manifest.json": None,
             f"datasets/tokenizers/fineweb_{CASE_OPS[2:5]}_bpe{CASE_OPS[5:]}.model": case_ops_model},
            "published without fineweb_val_bytes_000000.bin, but its tokenizer writes capitals as operators",
        ),
        ({f"{folder}/fineweb_val_bytes_000000.bin": shorter}, "counts the bytes of 1,999 tokens, expected 2,000"),
        ({"datasets/manifest.json": manifest.replace(b'_v1"', b'_v9"')}, "published for text under the transform"),
        ({"datasets/manifest.json": manifest.replace(b'_val": 1', b'_val": 2')}, "expected 2, as its manifest"),
        ({"datasets/manifest.json": b'{"datasets": [7]}'}, r"manifest\.json cannot be understood"),
        ({"datasets/manifest.json": b"{"}, r"manifest\.json cannot be understood"),
    ):  # fmt: skip
        hub.contents = {name: data for name, data in (whole | changes).items() if data is not None}
        with pytest.raises(DataError, match=message):
            download_variant(CASE_OPS, 1, tmp_path / "out", REPO, hub.endpoint)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_bytes(tmp_path, hub):
    name = "datasets/datasets/fineweb10B_byte260/fineweb_{}_000000.bin"
    published = {name.format(kind): shard_bytes(tmp_path, 3, 500, 259) for kind in ("train", "val")}
    hub.contents = published | {"datasets/tokenizers/fineweb_pure_byte_260.json": byte_tokenizer_file()}
    folder = download_variant("byte260", 1, tmp_path / "out", REPO, hub.endpoint)
    assert load_tokenizer(find_tokenizer(folder)).vocab_size == 260


def test_several_variants_in_one_folder(tmp_path, hub, contents, tokenizer):
    """Each finds its own tokenizer in the folder that they share."""
    shards = [name.replace("sp1024", "byte260") for name in contents if SHARDS in name]
    other = {name: shard_bytes(tmp_path, 3, 500, 259) for name in shards}
    hub.contents = contents | other | {"datasets/tokenizers/fineweb_pure_byte_260.json": byte_tokenizer_file()}
    folders = [download_variant(variant, 1, tmp_path / "out", REPO, hub.endpoint) for variant in ("sp1024", "byte260")]
    assert [load_tokenizer(find_tokenizer(folder)).vocab_size for folder in folders] == [1024, 260]


def test_what_is_not_published(tmp_path, hub):
    for arguments, message in (
        (("sp1024", 4), "--train-shards 4: someone/golf has 3 training shards of sp1024"),
        (("sp1024", -1), "--train-shards -1"),
        (("sp9999", 1), "no variant 'sp9999' is published there; found sp1024, sp512"),
        (("sp512", 1), r"the tokenizer tokenizers/fineweb_512_bpe\.model of sp512 is not published"),
    ):
        with pytest.raises(DataError, match=message):
            download_variant(*arguments, tmp_path / "out", REPO, hub.endpoint)
    with pytest.raises(DataError, match="nobody/nothing: no such public dataset repository on the hub"):
        download_variant("sp1024", 1, tmp_path / "out", "nobody/nothing", hub.endpoint)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_waiting")
def test_no_network(tmp_path, monkeypatch, capfd):
    with HubStandIn({}) as closed:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed.endpoint)
        closed.shutdown()
    monkeypatch.delenv("HF_HUB_VERBOSITY", raising=False)
    importlib.import_module("huggingface_hub.utils.logging").set_verbosity_warning()  # as a new process has it
    assert main(["data", "download", "--repo", REPO, "--out", str(tmp_path)]) == 2
    asking, error = capfd.readouterr().err.splitlines()
    assert asking == f"asking the Hugging Face hub what {REPO} holds"
    assert error.startswith(f"error: {REPO}: the Hugging Face hub cannot be reached") and "check the network" in error


def test_no_room(tmp_path, hub, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(JgolfError, match=r"0\.00 GB to download, but only 0\.00 GB are free there: make room"):
        download_variant("sp1024", 1, tmp_path / "out", REPO, hub.endpoint)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jgolf\[download\]'"):
        download_variant("sp1024", 1, tmp_path, REPO)


def test_verb_reads_the_usual_variable(tmp_path, hub):
    code = (
        "from pathlib import Path; from jgolf.data.download import download; "
        f"download('sp1024', 1, Path('out'), {REPO!r})"
    )
    root = download_module.__file__.rsplit("/jgolf/", 1)[0]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": root}
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "[1/3] tokenizers/" in ran.stdout
    assert f"out/{SHARDS}: complete; train on it with --data out/{SHARDS}" in ran.stdout
    assert len(find_shards(tmp_path / "out" / SHARDS, "train")) == 1
