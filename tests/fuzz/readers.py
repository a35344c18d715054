"""What is read, how it is damaged, and what must hold of a value that was read all the same."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jgolf import config as configs
from jgolf.artifact import container
from jgolf.artifact.scoring import Artifact, read_artifact
from jgolf.compare import _check_same_text, _score_name
from jgolf.data.documents import read_documents
from jgolf.data.shards import open_shard, write_shard
from jgolf.data.tokenizer import load_tokenizer
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError
from jgolf.model.functional import parameter_shapes
from jgolf.quantize.stored import StoredTensor
from jgolf.report import cli as report
from jgolf.report.curves import history_plots
from jgolf.report.history import read_histories
from jgolf.sweep.folder import SweepFolder
from jgolf.sweep.grid import make_runs
from jgolf.torch_bridge.names import torch_name
from jgolf.train.log import RunLog
from tests.artifact.stored_examples import stored_example
from tests.conftest import NANO, RECIPE, random_words
from tests.fuzz import mutations as damage

Files = dict[str, bytes]
Mutate = Callable[[np.random.Generator, bytes], bytes]
VOCAB_SIZE = 320
SMALL = dataclasses.replace(NANO, vocab_size=16, model_dim=8, bigram_buckets=8, bigram_dim=4, value_embedding_dim=4)
SMALL = dataclasses.replace(SMALL, rope_dims=4)
CONFIG = dataclasses.replace(RECIPE, name="small", model=SMALL)
LOG = """\
step:0/20 val_loss:6.9000 val_bpb:4.1000 train_time:0ms step_avg:0.01ms
step:1/20 train_loss:6.9321 train_time:130ms step_avg:130.00ms
step:10/20 train_loss:5.5000 train_time:1300ms step_avg:130.00ms
swa:start step:14
late_qat:enabled step:16 scale:0.1483
step:20/20 train_loss:nan train_time:2600ms step_avg:130.00ms
step:20/20 val_loss:5.1000 val_bpb:3.0200 train_time:2601ms step_avg:130.05ms
Total submission size int6+zstd: 15497769 bytes
final_int6_roundtrip_exact val_loss:5.12340000 val_bpb:3.03120000
final_int6_sliding_window_exact val_loss:5.09120000 val_bpb:3.01340000
"""


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
      share: of all mutations, in parts; less for what takes long.
      needs: the package without which it cannot be tried.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    targets: Mapping[str, Mutate]
    checksummed: bool = False
    share: float = 1.0
    needs: str = "numpy"

    @property
    def is_there(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


# --- values ------------------------------------------------------------------------------------


def _assert_finite(arrays: Mapping[str, np.ndarray]) -> None:
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")


def _read_stored(folder: Path) -> Any:
    stored, metadata = container.read(folder / "model.jgolf")
    weights = {path: tensor.dequantize() for path, tensor in stored.items()}
    _assert_finite(weights)
    return weights, metadata


def _read_model(folder: Path) -> Any:
    artifact = read_artifact(folder / "model.jgolf")
    assert parameter_shapes(artifact.model) == {path: tensor.shape for path, tensor in artifact.stored.items()}
    return artifact.params()


def _read_shard(folder: Path) -> Any:
    tokens = open_shard(folder / "a_train_0.bin", VOCAB_SIZE)
    assert tokens.ndim == 1 and (len(tokens) == 0 or tokens.max() < VOCAB_SIZE)
    return np.array(tokens)


def _read_tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder / "t.model")
    ids = tokenizer.encode("abc def, naïve 漢字 ﷺ 12\n" * 3)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.byte_tables.target_bytes(np.array(ids[:-1], int), np.array(ids[1:], int))
    return tokenizer.decode(range(tokenizer.vocab_size)), ids


def _read_texts(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        texts = list(read_documents([folder / name]))
        assert all(text == text.encode().decode() for text in texts)
        return texts

    return read


def _read_histories(name: str) -> Callable[[Path], Any]:
    """As `report` and `compare` do, but for the drawing."""

    def read(folder: Path) -> Any:
        runs = read_histories(folder / name)
        plots = [(plot.name, plot.alt) for plot in history_plots(runs)]
        tables = report._results_text(runs), report._results_table(runs), report._settings_section(runs)
        _check_same_text(runs, _score_name(runs, "auto"))
        return plots, tables

    return read


def _read_config(folder: Path) -> Any:
    return configs.validate(configs.read_json(folder / "config.json"))


def _read_sweep(folder: Path) -> Any:
    found = SweepFolder(folder, make_runs(CONFIG, 2, []))
    return [result.row() for result in found.results]


def _resume_log(folder: Path) -> Any:
    log = RunLog(folder, resume_step=10)
    log.close()
    return (folder / "metrics.jsonl").read_bytes()


def _read_option(folder: Path) -> Any:
    from jgolf.torch_bridge import config_option

    return config_option.parse(str(folder / "option.json"))


def _read_state(folder: Path) -> Any:
    from jgolf.torch_bridge import checkpoint

    return checkpoint.read(folder / "model.pt")


def _read_reference(folder: Path) -> Any:
    from jgolf.torch_bridge import reference_artifact

    stored, _ = reference_artifact.read(folder / "model.ptz")
    return {path: tensor.dequantize() for path, tensor in stored.items()}


def _read_checkpoint(folder: Path) -> Any:
    from jgolf.train.checkpoint import load_weights

    _, params = load_weights(folder)
    return params


# --- examples ----------------------------------------------------------------------------------


def _write(folder: Path, content: Files) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _make_stored(codec: str) -> Callable[[Path], None]:
    metadata = {"name": "x", "model": {"layers": [1, 2]}}
    return lambda folder: _write(folder, {"model.jgolf": container.pack(stored_example(), metadata, codec)})


def _make_model(folder: Path) -> None:
    stored = {path: StoredTensor.floats("fp16", np.zeros(shape)) for path, shape in parameter_shapes(SMALL).items()}
    _write(
        folder,
        {"model.jgolf": container.pack(stored, Artifact("small", SMALL, 64, False, "0" * 64, stored).metadata())},
    )


def _make_documents(folder: Path) -> None:
    texts = ["one\nwith a line feed", "zwei — ü", "x" * 3000, "last"]
    lines = "".join(json.dumps({"text": text, "n": 1.5}) + "\n" for text in texts).encode()
    _write(folder, {"d.jsonl": lines, "d.jsonl.zst": zstandard.compress(lines)})


def _metrics() -> bytes:
    rows: list[dict] = [{"step": 0, "val_loss": 7.0, "val_bpb": 4.0, "train_time_s": 0.0}]
    for step in range(1, 21):
        rest = {"grad_norm": 0.5, "learning_rate_multiplier": 1 - step / 20, "late_qat": step > 15, "swa_count": 0}
        rows.append({"step": step, "train_loss": 7 - step / 9, "train_time_s": step / 2, **rest})
    rows.append({"step": 20, "val_loss": 4.25, "val_bpb": 2.5, "train_time_s": 10.0})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _make_run(folder: Path) -> None:
    result = {"val_loss": 4.3, "val_bpb": 2.6, "sliding_val_loss": 4.2, "sliding_val_bpb": 2.4, "average": "ema"}
    result |= {"pre_quantization_val_bpb": 2.55, "total_bytes": 123456, "tokens": 5000, "bytes": 12000, "device": "cpu"}
    config = json.dumps(configs.to_dict(CONFIG)).encode()
    content = {"config.json": config, "artifact/result.json": json.dumps(result).encode()}
    _write(folder, {**content, "metrics.jsonl": _metrics(), "train.log": LOG.encode()})


def _make_sweep(folder: Path) -> None:
    rows = []
    for number, run in enumerate(make_runs(CONFIG, 2, [])):
        name = f"runs/{number:03d}"
        (folder / name).mkdir(parents=True)
        configs.write_json(run.config, folder / name / "config.json")
        (folder / name / "metrics.jsonl").write_bytes(_metrics())
        scores = {f"{kind}_val_{what}": 2.5 for kind in ("raw", "ema", "quantized") for what in ("loss", "bpb")}
        rest = {"artifact_bytes": 12345, "folder": name, "data": "0" * 64}
        rows.append({"seed": run.seed, "train_loss": 2.0, **scores, **rest})
    _write(folder, {"results.json": json.dumps({"runs": rows, "seconds": 5.0}).encode()})


def _make_state(folder: Path) -> None:
    import torch

    rng = np.random.default_rng(0)
    state = {torch_name(path): rng.normal(size=shape) for path, shape in parameter_shapes(SMALL).items()}
    torch.save({name: torch.tensor(array, dtype=torch.float32) for name, array in state.items()}, folder / "model.pt")


def _make_reference(folder: Path) -> None:
    from jgolf.quantize.export import quantize
    from jgolf.torch_bridge import reference_artifact

    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in parameter_shapes(SMALL).items()}
    how = dataclasses.replace(CONFIG.quantize, small_size=16)
    reference_artifact.write(folder / "model.ptz", quantize(params, how))


def _make_checkpoint(folder: Path) -> None:
    import jax

    from jgolf.train.checkpoint import Checkpoints
    from jgolf.train.step import new_state

    configs.write_json(CONFIG, folder / "config.json")
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(new_state(CONFIG, jax.random.key(0)), 1, 2.0)
    checkpoints.finish()
    checkpoints.close()


def _make_tokenizer(folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        _write(folder, {"t.model": train_tokenizer(random_words(0), VOCAB_SIZE)})


ALL_READERS = (
    Reader("artifact", _make_stored("zstd"), _read_stored, {"model.jgolf": damage.damaged_file}, checksummed=True),
    Reader("artifact, resealed", _make_stored("zstd"), _read_stored, {"model.jgolf": damage.resealed}),
    Reader(
        "artifact of codec range, resealed",
        _make_stored("range"),
        _read_stored,
        {"model.jgolf": damage.resealed},
        needs="constriction",
    ),
    Reader("artifact's settings, resealed", _make_model, _read_model, {"model.jgolf": damage.resealed}),
    Reader(
        "token shard",
        lambda folder: write_shard(folder / "a_train_0.bin", np.arange(500) % VOCAB_SIZE),
        _read_shard,
        {"a_train_0.bin": damage.damaged_file},
    ),
    Reader("tokenizer", _make_tokenizer, _read_tokenizer, {"t.model": damage.damaged_file}),
    Reader("documents", _make_documents, _read_texts("d.jsonl"), {"d.jsonl": damage.damaged_json_lines}),
    Reader(
        "documents, compressed",
        _make_documents,
        _read_texts("d.jsonl.zst"),
        {"d.jsonl.zst": damage.compressed_lines},
        share=0.2,
    ),
    Reader("config.json", _make_run, _read_config, {"config.json": damage.damaged_json}),
    Reader(
        "run: metrics, config, result",
        _make_run,
        _read_histories("."),
        {
            "metrics.jsonl": damage.damaged_json_lines,
            "config.json": damage.damaged_json,
            "artifact/result.json": damage.damaged_json,
        },
    ),
    Reader("train.log", _make_run, _read_histories("train.log"), {"train.log": damage.damaged_text}),
    Reader(
        "train.log and metrics, resumed",
        _make_run,
        _resume_log,
        {"train.log": damage.damaged_text, "metrics.jsonl": damage.damaged_json_lines},
    ),
    Reader("sweep's results, reported", _make_sweep, _read_histories("."), {"results.json": damage.damaged_json}),
    Reader("sweep's results, resumed", _make_sweep, _read_sweep, {"results.json": damage.damaged_json}),
    Reader(
        "--config of PyTorch files",
        lambda folder: _write(folder, {"option.json": b'{"num_heads": 2, "ve_layers": "0,1", "rope_base": 1e4}'}),
        _read_option,
        {"option.json": damage.damaged_json},
    ),
    Reader(
        "state dict",
        _make_state,
        _read_state,
        {"model.pt": damage.damaged_file},
        checksummed=True,
        share=0.3,
        needs="torch",
    ),
    Reader("state dict, rezipped", _make_state, _read_state, {"model.pt": damage.rezipped}, share=0.3, needs="torch"),
    Reader(
        "reference artifact",
        _make_reference,
        _read_reference,
        {"model.ptz": damage.damaged_file},
        checksummed=True,
        share=0.3,
        needs="torch",
    ),
    Reader(
        "reference artifact, repacked",
        _make_reference,
        _read_reference,
        {"model.ptz": damage.recompressed},
        share=0.3,
        needs="torch",
    ),
    Reader(
        "checkpoint",
        _make_checkpoint,
        _read_checkpoint,
        {"checkpoints": damage.flipped_bit},
        checksummed=True,
        share=0.02,
    ),
)
"""`checkpoints` as a target stands for every file in that folder."""


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
    lambda folder: _write(folder, {"a": b"whole"}),
    _read_with_every_fault,
    {"a": lambda rng, raw: [b"refused", b"stack trace", b"believed", b"killed", b"memory", b"other"][rng.integers(6)]},
)
"""What the tool itself is tested with."""
READERS = {reader.name: reader for reader in (*ALL_READERS, FAULTY)}
