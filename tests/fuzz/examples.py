"""Whole files of every kind that jgolf reads, as small as they can be."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jgolf import config as configs
from jgolf.artifact import container
from jgolf.artifact.scoring import Artifact
from jgolf.compress.codec import Codec
from jgolf.compress.container import Header, Segment, Writer, squeezed
from jgolf.compress.pieces import split
from jgolf.compress.rans import TOTAL, Decoder, Encoder
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.sentence_piece import fused_tokenizer
from jgolf.data.shards import write_shard
from jgolf.data.tokenizer import Tokenizer, load_tokenizer
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.model.functional import parameter_shapes
from jgolf.quantize.stored import StoredTensor
from jgolf.sweep.grid import make_runs
from jgolf.torch_bridge.names import torch_name
from tests.artifact.stored_examples import stored_example
from tests.conftest import NANO, RECIPE, random_words

VOCAB_SIZE = 320
SMALL = dataclasses.replace(NANO, vocab_size=16, model_dim=8, bigram_buckets=8, bigram_dim=4, value_embedding_dim=4)
SMALL = dataclasses.replace(SMALL, rope_dims=4)
CONFIG = dataclasses.replace(RECIPE, name="small", model=SMALL)
STEPS = (1, 2)
"""Of the checkpoints, the state of each being that of a new run from the key of its number."""
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


# --- models ------------------------------------------------------------------------------------


def write_stored(codec: str) -> Callable[[Path], None]:
    metadata = {"name": "x", "model": {"layers": [1, 2]}}
    return lambda folder: _write(folder / "model.jgolf", container.pack(stored_example(), metadata, codec))


def write_model(folder: Path) -> None:
    stored = {path: StoredTensor.floats("fp16", np.zeros(shape)) for path, shape in parameter_shapes(SMALL).items()}
    metadata = Artifact("small", SMALL, 64, False, "0" * 64, stored).metadata()
    _write(folder / "model.jgolf", container.pack(stored, metadata))


def write_safetensors(folder: Path) -> None:
    from jgolf.artifact import safe_tensors
    from jgolf.config import QuantizeConfig

    stored = {path: StoredTensor.floats("fp32", np.zeros(shape)) for path, shape in parameter_shapes(SMALL).items()}
    artifact = Artifact("small", SMALL, 64, False, "0" * 64, stored)
    safe_tensors.write(folder / "model.safetensors", artifact, QuantizeConfig())


def write_state(folder: Path, **how: bool) -> None:
    import torch

    state = {torch_name(path): torch.from_numpy(array) for path, array in _params().items()}
    torch.save(state, folder / "model.pt", **how)


def write_reference(folder: Path) -> None:
    from jgolf.quantize.export import quantize
    from jgolf.torch_bridge import reference_artifact

    how = dataclasses.replace(CONFIG.quantize, small_size=16)
    reference_artifact.write(folder / "model.ptz", quantize(_params(), how))


def write_per_group(folder: Path) -> None:
    from tests.torch_bridge.per_group_files import packed, stored_model

    (folder / "model.ptz").write_bytes(packed(stored_model(), folder))


def _params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in parameter_shapes(SMALL).items()}


def write_option(folder: Path) -> None:
    _write(folder / "option.json", b'{"num_heads": 2, "ve_layers": "0,1", "rope_base": 1e4}')


class UniformCoder:
    """Stands for `jgolf.compress.coding.Coder`: to it all tokens are equally likely, and every stream has a lane."""

    context, probe = 64, bytes(range(16))
    _limits = np.append(np.arange(VOCAB_SIZE) * (TOTAL // VOCAB_SIZE), TOTAL).astype(np.int32)

    def __init__(self, streams: int):
        self.streams = streams

    def encode(self, tokens: np.ndarray) -> bytes:
        encoder = Encoder(self.streams)
        for step in reversed(self._steps(tokens)):
            encoder.push(np.arange(len(step)), self._limits[step], np.diff(self._limits)[step])
        return encoder.finish()

    def decode(self, data: bytes, num_tokens: int, advance: Any) -> np.ndarray:
        decoder, found = Decoder(data, self.streams), []
        table = np.broadcast_to(self._limits, (self.streams, VOCAB_SIZE + 1))
        for step in self._steps(np.empty(num_tokens, np.int8)):
            there = np.arange(self.streams) < len(step)
            found.append(np.asarray(decoder.symbols(table, there))[there])
        decoder.finish()
        return np.concatenate(found)

    def _steps(self, tokens: np.ndarray) -> list[np.ndarray]:
        return [tokens[start : start + self.streams] for start in range(0, len(tokens), self.streams)]


class UniformCodec(Codec):
    """One that decodes by such a coder."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(CONFIG, {}, tokenizer, "x.jgolf")

    def _coder_for(self, streams: int, context: int) -> UniformCoder:
        return UniformCoder(streams)


def write_compressed(folder: Path) -> None:
    """A segment of words with line feeds between some of them, one of bytes that are no text, and the tokenizer."""
    write_tokenizer(False)(folder)
    tokenizer, coder = load_tokenizer(folder / "t.model"), UniformCoder(4)
    text, other = "\n".join(random_words(0)[:5]).encode(), np.random.default_rng(0).bytes(40)
    pieces = split(text, tokenizer)
    header = Header(len(text) + 40, 64, UniformCodec(tokenizer)._hash, "a.txt", "x", "x.jgolf", "some machine")
    coded = coder.encode(pieces.tokens)
    counts = len(text), len(pieces.tokens), len(pieces.rest)
    with (folder / "a.txt.jgz").open("wb") as file:
        writer = Writer(file, header)
        writer.add(Segment(*counts, squeezed(pieces.rest), coder.streams, coder.probe, coded))
        writer.add(Segment(len(other), 0, len(other), squeezed(other)))
        writer.finish(hashlib.blake2b(text + other, digest_size=16).digest())


# --- data --------------------------------------------------------------------------------------


def write_tokens(folder: Path) -> None:
    write_shard(folder / "a_train_0.bin", np.arange(500) % VOCAB_SIZE)


def write_counted_tokens(folder: Path) -> None:
    """A shard of two documents, the bytes of its tokens beside it, and the tokenizer."""
    _write(folder / "t.json", byte_tokenizer_file())
    tokenizer = load_tokenizer(folder / "t.json")
    ids, num_bytes = tokenizer.encode_with_bytes("abc def" * 20)
    write_shard(folder / "a_val_000000.bin", np.array([tokenizer.bos_id, *ids] * 2))
    write_shard(folder / "a_val_bytes_000000.bin", np.array([0, *num_bytes] * 2))


def write_tokenizer(case_ops: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            _write(folder / "t.model", train_tokenizer(random_words(0), VOCAB_SIZE, case_ops=case_ops))

    return write


def write_fused_tokenizer(folder: Path) -> None:
    write_tokenizer(True)(folder)
    _write(folder / "t.model", fused_tokenizer(load_tokenizer(folder / "t.model"), "t.model").model_bytes)


def write_byte_tokenizer(folder: Path) -> None:
    _write(folder / "t.json", byte_tokenizer_file())


def write_documents(folder: Path) -> None:
    texts = ["one\nwith a line feed", "zwei — ü", "x" * 3000, "last"]
    lines = "".join(json.dumps({"text": text, "n": 1.5}) + "\n" for text in texts).encode()
    _write(folder / "d.jsonl", lines)
    _write(folder / "d.jsonl.zst", zstandard.compress(lines))


def write_demo_manifest(folder: Path) -> None:
    _write(folder / "train.txt", b"one document\n")
    _write(folder / "demo.json", json.dumps({"format": 2, "python": "3.11.7", "files": {"train.txt": 13}}).encode())


# --- runs --------------------------------------------------------------------------------------


def _metrics() -> bytes:
    rows: list[dict] = [{"step": 0, "val_loss": 7.0, "val_bpb": 4.0, "train_time_s": 0.0}]
    for step in range(1, 21):
        rest = {"grad_norm": 0.5, "learning_rate_multiplier": 1 - step / 20, "late_qat": step > 15, "swa_count": 0}
        rows.append({"step": step, "train_loss": 7 - step / 9, "train_time_s": step / 2, **rest})
    rows.append({"step": 20, "val_loss": 4.25, "val_bpb": 2.5, "train_time_s": 10.0})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_run(folder: Path) -> None:
    result = {"val_loss": 4.3, "val_bpb": 2.6, "sliding_val_loss": 4.2, "sliding_val_bpb": 2.4, "average": "ema"}
    result |= {"pre_quantization_val_bpb": 2.55, "total_bytes": 123456, "tokens": 5000, "bytes": 12000, "device": "cpu"}
    configs.write_json(CONFIG, folder / "config.json")
    _write(folder / "artifact" / "result.json", json.dumps(result).encode())
    _write(folder / "metrics.jsonl", _metrics())
    _write(folder / "train.log", LOG.encode())


def write_exported_run(folder: Path) -> None:
    """A run with all that an export says of it."""
    write_run(folder)
    path = folder / "artifact" / "result.json"
    scored = {"val_loss": 4.2, "val_bpb": 2.4, "eval_s": 1.5, "challenge_s": 99.5}
    result = {f"{prefix}{name}": value for prefix in ("", "sliding_", "adapted_") for name, value in scored.items()}
    result |= {"step": 20, "calibration_s": 0.5, "split_tokens": 5000, "standard_tokens": 4900, "standard_bytes": 11900}
    result |= {"artifact_bytes": 100000, "code_bytes": 23456, "limit_bytes": 16000000, "sliding_stride": 64}
    result |= {"num_devices": 1, "options": ["--adapted"], "validation_sha256": {"x_val_000000.bin": "ab" * 32}}
    result |= {"pre_quantization_val_loss": 4.1, "original_bytes": 13000, "sliding_original_bpb": 2.2}
    _write(folder / "artifact" / "audit.json", b'{"passed": true}')
    _write(path, json.dumps(json.loads(path.read_text()) | result).encode())
    _write(folder / "requirements.txt", b"# Python 3.12.1\njax==0.11.2\n")


def write_sweep(folder: Path) -> None:
    rows = []
    for number, run in enumerate(make_runs(CONFIG, 2, [])):
        name = f"runs/{number:03d}"
        configs.write_json(run.config, folder / name / "config.json")
        _write(folder / name / "metrics.jsonl", _metrics())
        scores = {f"{kind}_val_{what}": 2.5 for kind in ("raw", "ema", "quantized") for what in ("loss", "bpb")}
        rest = {"artifact_bytes": 12345, "folder": name, "data": "0" * 64}
        rows.append({"seed": run.seed, "train_loss": 2.0, **scores, **rest})
    _write(folder / "results.json", json.dumps({"runs": rows, "seconds": 5.0}).encode())


def write_replacement(folder: Path) -> None:
    """Files that were being replaced when the process was killed."""
    staging = folder / "whole" / ".replacing-results"
    _write(folder / "other", b"of no concern")
    _write(folder / "whole" / "old.csv", b"goes")
    _write(staging / "results.csv", b"comes")
    _write(staging / "results.json", b"comes, too")
    journal = {"files": ["results.csv", "results.json"], "gone": ["old.csv"]}
    _write(staging / "complete.json", json.dumps(journal).encode())


# --- checkpoints -------------------------------------------------------------------------------


def write_checkpoints(folder: Path) -> None:
    from jgolf.train.checkpoint import Checkpoints

    configs.write_json(CONFIG, folder / "config.json")
    with contextlib.closing(Checkpoints(folder, len(STEPS), CONFIG, "0" * 64)) as checkpoints:
        for step in STEPS:
            checkpoints.save(state_of(step), step, float(step))
            checkpoints.finish()


def write_old_checkpoint(folder: Path) -> None:
    """A checkpoint of the time before checksums: it tells its training time alone."""
    write_checkpoints(folder)
    newest = folder / "checkpoints" / str(STEPS[-1])
    shutil.rmtree(folder / "checkpoints" / str(STEPS[0]))
    (newest / "record").rename(newest / "clock")
    _write(newest / "clock" / "metadata", b'{"elapsed_s": 2.0}')


def state_of(step: int):
    import jax

    from jgolf.train.step import new_state

    return jax.jit(new_state, static_argnums=0)(CONFIG, jax.random.key(step))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
