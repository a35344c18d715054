"""`jgolf bench export`: quantizing, packing and unpacking a model of full size with random weights."""

from __future__ import annotations

import importlib.util
import lzma
from collections.abc import Iterator, Mapping
from typing import Annotated, get_args

import numpy as np
import tyro
import zstandard

from jgolf import config as configs
from jgolf import rules
from jgolf.artifact import container, size
from jgolf.artifact.scoring import Artifact
from jgolf.bench.report import Figure, Report, command_line, publish
from jgolf.bench.running import random_params
from jgolf.bench.timing import Timing, measure_once
from jgolf.config import Config
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import StoredTensor, dequantize

ROW_SPREAD = 0.3  # standard deviation of the logarithm
NEEDED_PACKAGES = {"range": "constriction"}
"""Codec → the optional package that it needs."""


def export(
    config: str = "pr592",
    runs: int = 3,
    compressors: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Time the way from random weights to an artifact and back, by every codec that is installed.

    Rows are Gaussian, their standard deviations spread by a factor of 1.35 (one standard deviation).

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      runs: How often to measure.
      compressors: Also compress the same bytes by zstd, xz and brotli at their best, which takes minutes.
      json: Print JSON instead of a table.
    """
    command = command_line("export", config=config, runs=runs, compressors=compressors)
    publish(measure_export(configs.validate(configs.load(config)), runs, command, compressors), json)


def available_codecs() -> Iterator[container.CodecName]:
    """Codecs whose packages are installed."""
    for codec in get_args(container.CodecName):
        needed = NEEDED_PACKAGES.get(codec)
        if needed is None or importlib.util.find_spec(needed) is not None:
            yield codec


def measure_export(config: Config, runs: int, command: str, compressors: bool = False) -> Report:
    """Times quantizing, to the nearest levels, then packing and unpacking by each codec, all on the host.

    Beside the artifacts' bytes: the sum of all tensors' entropies, and what general compressors make of the same bytes.
    """
    params = _with_spread(random_params(config.model))
    timing, stored = measure_once(lambda: quantize(params, config.quantize), runs)
    metadata = Artifact.of_run(config, stored, None).metadata()
    figures = [_seconds("quantize", timing)]
    for codec in available_codecs():
        timing, data = measure_once(lambda codec=codec: container.pack(stored, metadata, codec), runs)
        figures.append(_seconds(f"pack, {codec}", timing))
        timing, _ = measure_once(lambda data=data: dequantize(container.unpack(data)[0]), runs)
        figures.append(_seconds(f"unpack, {codec}", timing))
        figures.append(Figure(f"artifact, {codec}", len(data), "bytes"))
    figures.append(Figure("sum of entropies", round(sum(map(size.entropy_bytes, stored.values()))), "bytes"))
    figures += general_figures(stored) if compressors else []
    num_params = sum(value.size for value in params.values())
    return Report("export", f"{config.name}: {num_params:,} random parameters", command, figures)


def general_figures(stored: Mapping[str, StoredTensor]) -> Iterator[Figure]:
    """Bytes of all levels, one a byte, and of all steps and floats, one after the other, by general compressors."""
    arrays = [tensor.values for tensor in stored.values()]
    arrays += [tensor.scales for tensor in stored.values() if tensor.scales is not None]
    raw = b"".join(array.tobytes() for array in arrays)
    yield Figure("zstd, level 22", len(zstandard.ZstdCompressor(level=22).compress(raw)), "bytes")
    yield Figure("xz, preset 9e", len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)), "bytes")
    if importlib.util.find_spec("brotli") is not None:
        import brotli

        yield Figure("brotli, quality 11", len(brotli.compress(raw, quality=11, lgwin=24)), "bytes")


def _with_spread(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every matrix with rows of different spread; a row is an output of a kernel, or an entry of a table."""
    rng = np.random.default_rng(1)
    found = {}
    for path, values in params.items():
        axis = 1 if rules.rule_of(path).transposed else 0
        factors = np.exp(ROW_SPREAD * rng.standard_normal(values.shape[axis], np.float32)) if values.ndim == 2 else 1
        found[path] = values * (factors if axis or values.ndim != 2 else factors[:, None])
    return found


def _seconds(name: str, timing: Timing) -> Figure:
    return Figure(name, timing.median_ms / 1e3, "s", timing.low_ms / 1e3, timing.high_ms / 1e3, timing.runs)
