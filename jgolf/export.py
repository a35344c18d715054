"""`export.py RUN_DIR`: quantize a run's weights, pack them, read the artifact back and score it."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from jgolf import config as configs
from jgolf import files
from jgolf.artifact import code, container, size
from jgolf.artifact.scoring import Artifact, read_artifact
from jgolf.config import Average, Config, EvaluateConfig, QuantizeConfig
from jgolf.data.text_baseline import compressor_bits_per_byte
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, JgolfError
from jgolf.evaluate.validation import Validation
from jgolf.progress import progress_bar
from jgolf.quantize.export import quantize
from jgolf.train.averages import averaged_params
from jgolf.train.checkpoint import CONFIG_FILE, load_state

ARTIFACT_FILE = Path("artifact") / "model.jgolf"
RESULT_FILE = Path("artifact") / "result.json"
SCORING_ENTRY = "jgolf.artifact.scoring"


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export; the run's own settings are the defaults."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of the run."""
    average: Average = "ema"
    """Weights to export."""
    max_tokens: int = 0
    """Score about this many validation tokens only; 0 for all (on a CPU, a full-size model takes hours)."""
    codec: container.CodecName = "zstd"
    """Coding of the quantized levels; range is smaller and needs the extra entropy."""
    limit_bytes: int = size.LIMIT_BYTES
    """Largest total of artifact and code; past it the exit status is 1."""
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def export(argv: list[str], prog: str = "export.py") -> int:
    """Parses the command line and exports; returns the exit code."""
    options = _parse(argv, prog)
    config = dataclasses.replace(
        configs.read_json(options.run_dir / CONFIG_FILE), quantize=options.quantize, evaluate=options.evaluate
    )
    configs.validate(config)
    result, report = export_run(config, options)
    console = Console()
    console.print(size.size_table(report))
    _print_result(result, options.run_dir)
    if report.over_bytes > 0:
        stored = read_artifact(options.run_dir / ARTIFACT_FILE).stored
        print(size.advice(size.smaller_forms(stored, config.quantize, options.codec), report.over_bytes))
        return EXIT_CHECK_FAILED
    return EXIT_OK


export.parse_and_call = lambda prog, argv: export(argv, "export.py" if sys.argv[0].endswith("export.py") else prog)


def export_run(config: Config, options: ExportOptions) -> tuple[dict[str, Any], size.SizeReport]:
    """Writes the artifact and result.json of a run; returns the result and the sizes.

    Raises:
      JgolfError: the run, its data or the disk cannot be used; an earlier export stays as it was.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - started - sum(seconds.values()), 3)

    validation = Validation.open(config)
    state = load_state(options.run_dir, config)
    params = {path: np.asarray(value) for path, value in averaged_params(state, options.average).items()}
    lap("load")
    stored = quantize(params, config.quantize)
    lap("quantize")
    fingerprint = validation.tokenizer.fingerprint
    artifact = Artifact(config.name, config.model, config.train.seq_len, fingerprint, stored)
    data = container.pack(stored, artifact.metadata(), options.codec)
    container.write(options.run_dir / ARTIFACT_FILE, data)
    lap("pack")
    unpacked = read_artifact(options.run_dir / ARTIFACT_FILE).params()  # what is scored is what is on the disk
    lap("unpack")
    scores = {
        name: score(weights, max_tokens=options.max_tokens, progress=progress_bar(f"scoring {name}"))
        for name, score, weights in (
            ("pre_quantization", validation.standard, params),
            ("standard", validation.standard, unpacked),
            ("sliding", validation.sliding, unpacked),
        )
    }
    lap("score")
    code_bytes = code.code_bytes(code.scoring_sources((SCORING_ENTRY,)))
    report = size.measure(stored, len(data), code_bytes, options.codec)
    lap("account")
    result = {
        "name": config.name,
        "step": int(state.step),
        "average": options.average,
        "artifact_bytes": len(data),
        "code_bytes": code_bytes,
        "total_bytes": report.total_bytes,
        "limit_bytes": options.limit_bytes,
        "val_loss": scores["standard"].val_loss,
        "val_bpb": scores["standard"].val_bpb,
        "sliding_val_loss": scores["sliding"].val_loss,
        "sliding_val_bpb": scores["sliding"].val_bpb,
        "sliding_stride": min(config.evaluate.sliding_stride, config.train.seq_len),
        "pre_quantization_val_loss": scores["pre_quantization"].val_loss,
        "pre_quantization_val_bpb": scores["pre_quantization"].val_bpb,
        "tokens": scores["sliding"].tokens,
        "bytes": scores["sliding"].bytes,
        "device": jax.devices()[0].device_kind,
        "seconds": seconds,
    }
    text = _demo_text(config)
    if text is not None:
        result["compressors_bpb"] = compressor_bits_per_byte(text)
    files.write_text(options.run_dir / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    return result, dataclasses.replace(report, limit_bytes=options.limit_bytes)


def _parse(argv: list[str], prog: str) -> ExportOptions:
    """Parses with the run's own settings as the defaults, where the command line names a run."""
    run_dir = next((Path(word) for word in argv if (Path(word) / CONFIG_FILE).is_file()), None)
    if run_dir is None:
        default = ExportOptions(run_dir=tyro.MISSING)
    else:
        config = configs.read_json(run_dir / CONFIG_FILE)
        default = ExportOptions(run_dir, config.average.export, quantize=config.quantize, evaluate=config.evaluate)
    options = tyro.cli(ExportOptions, default=default, prog=prog, args=argv, description=__doc__)
    if not (options.run_dir / CONFIG_FILE).is_file():
        raise JgolfError(
            f"{options.run_dir}: not a run directory: there is no {CONFIG_FILE} in it; python train.py makes one"
        )
    return options


def _print_result(result: dict[str, Any], run_dir: Path) -> None:
    print(
        f"{run_dir / ARTIFACT_FILE}: {result['artifact_bytes']:,} bytes, with {result['code_bytes']:,} of code "
        f"{result['total_bytes']:,} of {result['limit_bytes']:,}"
    )
    print(
        f"before quantization ({result['average']}) val_bpb:{result['pre_quantization_val_bpb']:.5f}\n"
        f"after, from the artifact      val_loss:{result['val_loss']:.5f} val_bpb:{result['val_bpb']:.5f}\n"
        f"sliding, stride {result['sliding_stride']:<5}         val_loss:{result['sliding_val_loss']:.5f} "
        f"val_bpb:{result['sliding_val_bpb']:.5f}"
    )
    for name, bits in result.get("compressors_bpb", {}).items():
        print(f"the same text by {name:<12} {bits:.5f} bits per byte")


def _demo_text(config: Config) -> bytes | None:
    if not config.data.build_demo:
        return None
    from jgolf.data.demo import validation_text

    return validation_text(config.data.dir)
