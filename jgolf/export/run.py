"""Quantizes a run's weights, packs them, reads the artifact back and scores it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from jgolf import compiling, files
from jgolf import config as configs
from jgolf.artifact import container, size, submission
from jgolf.artifact.chunks import ZSTD_LEVEL
from jgolf.artifact.scoring import Artifact, read_artifact
from jgolf.artifact.seeds import SeedRun
from jgolf.compress.codec import Codec
from jgolf.compress.container import Reader
from jgolf.config import AdaptedConfig, Average, Config, HintsConfig
from jgolf.data.fingerprint import validation_sha256
from jgolf.data.text import Text
from jgolf.data.text_baseline import compressor_bits_per_byte, compressors
from jgolf.data.tokenizer import Tokenizer
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, ConfigError, JgolfError
from jgolf.evaluate.nats import scoring_model
from jgolf.evaluate.score import Score, bits_per_byte, scorers_of
from jgolf.evaluate.validation import Validation
from jgolf.export.options import ExportOptions, repeated
from jgolf.export.telling import advice, averages_table, print_result
from jgolf.lock import locked
from jgolf.progress import activity, byte_progress, counting, plain_console, progress_bar
from jgolf.quantize.budget import Budgeted, quantize_to_budget
from jgolf.quantize.calibration import calibration_rows, counted_runs, quantize_run
from jgolf.quantize.curvature import curvature
from jgolf.quantize.stored import StoredTensor, dequantize
from jgolf.reading import read_json
from jgolf.run_dir import ARTIFACT_FILE, AUDIT_FILE, CONFIG_FILE, RESULT_FILE
from jgolf.train.averages import averaged_params
from jgolf.train.checkpoint import load_state
from jgolf.train.requirements import pinned
from jgolf.train.step import TrainState

UNSCORED_FILE = Path("artifact") / "unscored.jgolf"
"""The new artifact until its scores are known; what an earlier export left stays whole until then."""
CURVATURE_TOKENS = 262_144
COMPRESSED_BYTES = 16_384
"""Of the demo's validation text: what takes seconds on two cores."""


def export_and_tell(config: Config, options: ExportOptions) -> int:
    """Exports, prints what came of it, writes the submission if one is asked for; returns the exit code.

    Raises:
      JgolfError: see `export_run`.
    """
    with locked(options.run_dir / ARTIFACT_FILE.parent, "wait for the end of that export"):
        try:
            result, report = export_run(config, options)
        except KeyboardInterrupt:
            print(f"{options.run_dir}: not exported; what an earlier export left there stays as it was")
            raise
        finally:
            (options.run_dir / UNSCORED_FILE).unlink(missing_ok=True)
    console = plain_console()
    console.print(size.size_table(report))
    if options.compare_averages:
        console.print(averages_table(result["averages"]))
    print_result(result, options.run_dir)
    is_over = report.over_bytes > 0
    if is_over:
        print(advice(config.quantize, options, report))
    if options.submission:
        _write_submission(config, options)
    return EXIT_CHECK_FAILED if is_over else EXIT_OK


def _write_submission(config: Config, options: ExportOptions) -> None:
    """Writes the submission's folder, and says what it lacks."""
    runs = [SeedRun.read(run_dir) for run_dir in (options.run_dir, *options.runs)]
    submitter = submission.Submitter(options.author, options.github_id, options.name, options.blurb)
    artifact = (options.run_dir / ARTIFACT_FILE).read_bytes()
    code = submission.code(*_further_settings(config, options))
    lacking = submission.write(options.submission, submitter, runs, artifact, code, pinned())
    if lacking:
        listed = "".join(f"\n  - {what}" for what in lacking)
        print(f"{options.submission}: written; before it can be submitted, this is missing:{listed}")
    else:
        print(f"{options.submission}: ready to submit")


def export_run(config: Config, options: ExportOptions) -> tuple[dict[str, Any], size.SizeReport]:
    """Writes the artifact and result.json of a run; returns the result and the sizes.

    Raises:
      JgolfError: the run, its data or the disk cannot be used; an earlier export stays as it was.
    """
    compiling.keep_programs()
    clock = _Clock()
    with clock.lap("load"):
        validation = Validation.open(config)
        state = load_state(options.run_dir, config)
        params = _weights(state, options.average)
    stored, data, budgeted = _compress(config, options, validation, options.average, params, clock)
    with clock.lap("unpack"):
        container.write(options.run_dir / UNSCORED_FILE, data)
        unpacked = read_artifact(options.run_dir / UNSCORED_FILE).params()  # what is scored is what is on the disk
    with clock.lap("score"):
        before = _score(validation, "standard", params, options, "before quantization")
        after = _score(validation, "standard", unpacked, options, "after quantization")
        sliding = _score(validation, "sliding", unpacked, options, "sliding")
    adapted = _adapted_score(validation, unpacked, options, clock) if options.adapted else None
    with clock.lap("account"):
        code_bytes = submission.code_bytes(*_further_settings(config, options))
        report = size.measure(stored, len(data), code_bytes, options.codec)
    trained = configs.read_json(options.run_dir / CONFIG_FILE)
    result = {
        "name": config.name,
        "step": int(state.step),
        "average": options.average,
        "codec": options.codec,
        "artifact_bytes": len(data),
        "code_bytes": report.code_bytes,
        "total_bytes": report.total_bytes,
        "limit_bytes": options.limit_bytes,
        **_figures("", after),
        "standard_tokens": after.tokens,
        "standard_bytes": after.bytes,
        "standard_original_bytes": after.original_bytes,
        **_figures("sliding_", sliding),
        "sliding_stride": min(config.evaluate.sliding_stride, config.train.seq_len),
        "pre_quantization_val_loss": before.val_loss,
        "pre_quantization_val_bpb": before.val_bpb,
        "tokens": sliding.tokens,
        "bytes": sliding.bytes,
        "pre_quantization_original_bpb": before.original_bpb,
        "original_bytes": sliding.original_bytes,
        "split_tokens": len(validation.text.tokens) - 1,
        "validation_sha256": validation_sha256(config.data),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.local_device_count(),
        "options": repeated(options, trained),
    }
    if adapted is not None:
        result |= _figures("adapted_", adapted)
        if adapted.hints is not None:
            result["hints_gained_bpb"] = adapted.hints.gained_bpb
    if budgeted is not None:
        result["budget_bytes"] = options.budget
        result["rate_weight"] = budgeted.rate_weight
        result["predicted_gap_bpb"] = bits_per_byte(budgeted.damage, sliding.tokens, sliding.bytes)
    if options.compare_averages:
        with clock.lap("averages"):
            known = {options.average: _comparison(before.val_bpb, after.val_bpb, len(data))}
            result["averages"] = _compare_averages(config, options, validation, state, known)
    text = _demo_text(config.data.dir)
    if text is not None:
        result["compressors_bpb"] = compressor_bits_per_byte(text[: sliding.bytes] if options.max_tokens else text)
        with clock.lap("compress"):
            result["compressed"] = _compressed(config, unpacked, validation.tokenizer, text[:COMPRESSED_BYTES])
    learnt = {"curvature", "search"} if budgeted is not None else {"quantize"} if config.quantize.gptq else set()
    result["calibration_s"] = sum(seconds for lap, seconds in clock.seconds.items() if lap in learnt)
    result["seconds"] = clock.seconds
    stale = [] if _is_audited(options.run_dir, data) else [AUDIT_FILE.name]
    with files.all_or_nothing((options.run_dir / ARTIFACT_FILE).parent, "export", gone=stale) as new:
        files.write_text(new / RESULT_FILE.name, json.dumps(result, indent=1) + "\n")
        os.replace(options.run_dir / UNSCORED_FILE, new / ARTIFACT_FILE.name)
    return result, dataclasses.replace(report, limit_bytes=options.limit_bytes)


def _is_audited(run_dir: Path, artifact: bytes) -> bool:
    """Whether the audit in a run's folder is of this artifact."""
    try:
        return read_json(run_dir / AUDIT_FILE)["model_sha256"] == hashlib.sha256(artifact).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _compressed(config: Config, params: dict[str, np.ndarray], tokenizer: Tokenizer, text: bytes) -> dict[str, int]:
    """What a text becomes as a compressed file, which is decompressed to see that it is one; and by xz."""
    codec, file, again = Codec(config, params, tokenizer, str(ARTIFACT_FILE)), io.BytesIO(), io.BytesIO()
    with byte_progress("compressing, and back", 2 * len(text)) as advance:
        report = codec.compress(io.BytesIO(text), len(text), file, "val.txt", advance=advance)
        codec.decompress(Reader(file, "val.txt"), again, "val.txt", advance)
    xz = compressors()["xz -9"](text)
    return {"bytes": len(text), "compressed_bytes": report.compressed, "xz_bytes": len(xz)}


def _further_settings(config: Config, options: ExportOptions) -> tuple[AdaptedConfig | None, HintsConfig | None]:
    """Those of test-time training and of its hints, where the artifact is scored with them; their code counts then."""
    adapted, hints = config.evaluate.adapted, config.evaluate.hints
    return adapted if options.adapted else None, hints if options.hints else None


def _figures(prefix: str, score: Score) -> dict[str, float | None]:
    """What result.json says of a score, and of the seconds it takes: here, and on the challenge's text and GPUs."""
    found = {
        "val_loss": score.val_loss,
        "val_bpb": score.val_bpb,
        "original_bpb": score.original_bpb,
        "eval_s": round(score.seconds, 3),
        "challenge_s": round(score.challenge_s(jax.local_device_count()), 3),
    }
    return {f"{prefix}{name}": value for name, value in found.items()}


class _Clock:
    """Seconds of each part of an export, without those of the parts inside it."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def lap(self, name: str) -> Iterator[None]:
        started, inner_s = time.perf_counter(), sum(self.seconds.values())
        yield
        elapsed_s = time.perf_counter() - started - (sum(self.seconds.values()) - inner_s)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed_s, 3)


def _weights(state: TrainState, average: Average) -> dict[str, np.ndarray]:
    return {path: np.asarray(value) for path, value in averaged_params(state, average).items()}


def _compress(
    config: Config,
    options: ExportOptions,
    validation: Validation,
    average: Average,
    params: dict[str, np.ndarray],
    clock: _Clock,
) -> tuple[dict[str, StoredTensor], bytes, Budgeted | None]:
    """Storage forms of `params`, the artifact that holds them, and with a budget what the search found."""

    def pack(stored: dict[str, StoredTensor], zstd_level: int = ZSTD_LEVEL) -> bytes:
        with clock.lap("pack"):
            fingerprint = validation.tokenizer.fingerprint
            artifact = Artifact.of_run(config, stored, fingerprint)
            return container.pack(stored, artifact.metadata(), options.codec, zstd_level)

    model, wanted = scoring_model(config.model), options.calibration_tokens
    if options.budget is None:
        show = progress_bar(f"what the matrices of {average} read")
        with clock.lap("quantize"), contextlib.nullcontext() if config.quantize.gptq else activity("quantizing"):
            stored = quantize_run(config, model, params, wanted, show)
        with activity("packing"):
            return stored, pack(stored), None
    code_bytes = submission.code_bytes(*_further_settings(config, options))
    artifact_bytes = options.budget - code_bytes
    if artifact_bytes <= 0:
        raise JgolfError(f"--budget {options.budget:,}: the code alone takes {code_bytes:,} bytes")
    tokens = calibration_rows(config, CURVATURE_TOKENS, wanted)
    with clock.lap("curvature"):
        show = progress_bar(f"curvature of {average}")
        counted, length = counted_runs(config), config.train.piece_length
        curvatures = curvature(model, params, tokens, jax.random.key(0), show, length, counted)

    def calibration_loss(stored: dict[str, StoredTensor]) -> float:
        stream = np.append(tokens, tokens[0, 0])  # the last row has a last target, too
        text = Text.of(stream, validation.tokenizer.bos_id)
        show = progress_bar(f"{average}: comparing on training text")
        scorer, _ = scorers_of(config.train.documents)
        found = scorer(config.model, dequantize(stored), text, config.train.seq_len, progress=show)
        return float(np.mean(found.nats, dtype=np.float64))

    with clock.lap("search"):
        found = quantize_to_budget(
            params,
            curvatures,
            config.quantize,
            artifact_bytes,
            pack,
            partial(pack, zstd_level=1),
            calibration_loss,
            progress_bar(f"{average}: trying steps that fill {artifact_bytes:,} bytes"),
        )
    return found.stored, found.artifact, found


def _score(validation: Validation, how: str, params: dict[str, np.ndarray], options: ExportOptions, what: str):
    score = getattr(validation, how)
    return score(params, max_tokens=options.max_tokens, progress=progress_bar(f"scoring {what}"))


def _adapted_score(
    validation: Validation, params: dict[str, np.ndarray], options: ExportOptions, clock: _Clock
) -> Score:
    num_targets = len(validation.text.tokens) - 1
    total = min(num_targets, options.max_tokens) if options.max_tokens else num_targets
    with clock.lap("adapt"), counting("scoring with test-time training", total, "tokens") as tell:
        _, hints = _further_settings(validation.config, options)
        return validation.adapted(params, max_tokens=options.max_tokens, tell=tell, hints=hints)


# --- averages --------------------------------------------------------------------------------


def _compare_averages(
    config: Config,
    options: ExportOptions,
    validation: Validation,
    state: TrainState,
    known: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Scores and size of every average of the run; those that it does not have say why."""
    found = {}
    for average in get_args(Average):
        if average in known:
            found[average] = known[average]
            continue
        try:
            params = _weights(state, average)
        except ConfigError as error:
            found[average] = {"missing": str(error)}
            continue
        stored, data, _ = _compress(config, options, validation, average, params, _Clock())
        unpacked = {path: tensor.dequantize() for path, tensor in stored.items()}
        before = _score(validation, "standard", params, options, f"{average} before quantization")
        after = _score(validation, "standard", unpacked, options, f"{average} after quantization")
        found[average] = _comparison(before.val_bpb, after.val_bpb, len(data))
    return found


def _comparison(before_bpb: float, after_bpb: float, artifact_bytes: int) -> dict[str, Any]:
    return {"pre_quantization_val_bpb": before_bpb, "val_bpb": after_bpb, "artifact_bytes": artifact_bytes}


def _demo_text(data_dir: str) -> bytes | None:
    """The validation text where it is the demo's, which lies beside its tokens."""
    from jgolf.data.demo import is_demo, validation_text

    return validation_text(data_dir) if is_demo(data_dir) else None
