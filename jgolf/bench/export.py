"""`jgolf bench export`: quantizing, packing and unpacking a model of full size with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Annotated, get_args

import tyro

from jgolf import config as configs
from jgolf.artifact import container
from jgolf.artifact.scoring import Artifact
from jgolf.bench.report import Figure, Report, command_line, publish
from jgolf.bench.running import random_params
from jgolf.bench.timing import Timing, measure_once
from jgolf.config import Config
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import dequantize

NEEDED_PACKAGES = {"range": "constriction"}
"""Codec → the optional package that it needs."""


def export(
    config: str = "pr592",
    runs: int = 3,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Time the way from random weights to an artifact and back, by every codec that is installed.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      runs: How often to measure.
      json: Print JSON instead of a table.
    """
    command = command_line("export", config=config, runs=runs)
    publish(measure_export(configs.validate(configs.load(config)), runs, command), json)


def available_codecs() -> Iterator[container.CodecName]:
    """Codecs whose packages are installed."""
    for codec in get_args(container.CodecName):
        needed = NEEDED_PACKAGES.get(codec)
        if needed is None or importlib.util.find_spec(needed) is not None:
            yield codec


def measure_export(config: Config, runs: int, command: str) -> Report:
    """Times quantizing, then packing and unpacking by each codec, all on the host."""
    params = random_params(config.model)
    timing, stored = measure_once(lambda: quantize(params, config.quantize), runs)
    metadata = Artifact.of(config, stored, None).metadata()
    figures = [_seconds("quantize", timing)]
    for codec in available_codecs():
        timing, data = measure_once(lambda codec=codec: container.pack(stored, metadata, codec), runs)
        figures.append(_seconds(f"pack, {codec}", timing))
        timing, _ = measure_once(lambda data=data: dequantize(container.unpack(data)[0]), runs)
        figures.append(_seconds(f"unpack, {codec}", timing))
        figures.append(Figure(f"artifact, {codec}", len(data), "bytes"))
    num_params = sum(value.size for value in params.values())
    return Report("export", f"{config.name}: {num_params:,} random parameters", command, figures)


def _seconds(name: str, timing: Timing) -> Figure:
    return Figure(name, timing.median_ms / 1e3, "s", timing.low_ms / 1e3, timing.high_ms / 1e3, timing.runs)
