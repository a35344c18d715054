"""`jgolf bench step`: the compiled training step as `train` runs it, its parts, its memory, its utilization."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jgolf import compiling
from jgolf.bench import trace
from jgolf.bench.flops import train_flops
from jgolf.bench.optimizer import WHOLE_UPDATE, measure_update
from jgolf.bench.report import Figure, Report, beside, command_line, publish, timed
from jgolf.bench.running import RunningStep, bench_config, describe, looped_from, prepare_reference
from jgolf.bench.start import measure_start
from jgolf.bench.timing import Timing, measure, measure_in_turn
from jgolf.config import Config
from jgolf.data.batches import Batch
from jgolf.train.step import mean_loss_and_grads, of_loss

WHOLE_STEP = "whole step, steady state"
GRADIENTS = "forward + backward"
WITH_QAT = "the step while late QAT acts"
LOOPED = "the step while layers loop"
PEAK_MEMORY = "peak memory"
STEPS_IN_FLIGHT = 3
PEAK_SIZES = {"cpu": (512, "float32")}
PEAK_SIZE = (8192, "bfloat16")
"""Side of the matrices, and their type, whose product measures what the device can do."""


def step(
    config: str = "pr592",
    sequences: int = 0,
    runs: int = 10,
    peak_tflops: float = 0.0,
    start: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    profile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    reference: Path | None = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Time the training step on one device: whole, in parts, and with late QAT; its memory and its utilization.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      sequences: Sequences of a step; 0 for what the config gives one device.
      runs: How often to measure.
      peak_tflops: What the device can do in TFLOP/s; 0 measures an 8,192³ bfloat16 product.
      start: Also time fresh processes up to the first step's end: cold, with whole programs, with JAX's cache alone.
      profile: Also show where the device's time goes, by kernel.
      reference: A PyTorch training script to run beside it.
      json: Print JSON instead of a table.
    """
    prepare_reference(reference)
    options = {"config": config, "sequences": sequences, "runs": runs, "peak_tflops": peak_tflops}
    command = command_line("step", **options, start=start, profile=profile, reference=reference)
    resolved = bench_config(config, sequences)
    started = measure_start(config, sequences) if start else []  # before this process takes the device's memory
    report = measure_step(resolved, RunningStep.compiled(resolved), runs, command, peak_tflops, profile, reference)
    report.figures.extend(started)
    publish(report, json)


def measure_step(
    config: Config,
    running: RunningStep,
    runs: int,
    command: str,
    peak_tflops: float = 0.0,
    with_profile: bool = False,
    reference: Path | None = None,
) -> Report:
    """Times a step of `config` that runs, then its parts.

    The peak of the memory is that of this process up to the first steps: measure nothing before it.
    """
    jax.block_until_ready([running() for _ in range(STEPS_IN_FLIGHT)])
    memory = memory_figures(running.step.compiled)
    own = trace.own_kernels(running.step.compiled.as_text()) if with_profile else frozenset()
    traced = trace.profile(running, own=own)
    parts = _measure_parts(config, running, runs)
    theirs = _measure_reference(config, running, runs, reference) if reference else {}
    figures = [timed(name, timing) for name, timing in parts.items()]
    figures.insert(1, Figure("device time of a step", traced.device_ms, "ms"))
    figures += [*_rates(config, running.batch, parts[WHOLE_STEP], peak_tflops, runs), *memory]
    return Report("step", describe(config), command, beside(figures, theirs), traced if with_profile else None)


def _measure_parts(config: Config, running: RunningStep, runs: int) -> dict[str, Timing]:
    train, late_qat_start = config.train, config.quantize.late_qat_start
    steps = {WHOLE_STEP: running}
    if late_qat_start:
        warmdown_steps = train.warmdown_steps or train.warmdown_fraction * train.steps
        steps[WITH_QAT] = running.after(max(0, train.steps - int(late_qat_start / 2 * warmdown_steps)))
    first_looped = looped_from(config)
    if first_looped is not None:
        steps[LOOPED] = running.after(first_looped)
    parts = measure_in_turn(steps, runs)
    of_model = partial(mean_loss_and_grads, config.model, looped=first_looped is None, **of_loss(train))
    gradients = jax.jit(of_model, compiler_options=compiling.options())
    params = running.state.params
    parts[GRADIENTS] = measure(lambda: gradients(params, *running.batch), runs)
    parts[WHOLE_UPDATE] = measure_update(config, params, runs)
    return parts


def memory_figures(compiled: jax.stages.Compiled) -> list[Figure]:
    """The most memory that this process used, where the device tells, and what a compiled program needs."""
    figures = []
    peak_bytes = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak_bytes:
        figures.append(Figure(PEAK_MEMORY, peak_bytes / 1e9, "GB"))
    needs = compiled.memory_analysis()
    if needs is not None:
        total = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
        figures.append(Figure("memory of the program", (total + needs.temp_size_in_bytes) / 1e9, "GB"))
        figures.append(Figure("of it, intermediate results", needs.temp_size_in_bytes / 1e9, "GB"))
    return figures


def _rates(config: Config, batch: Batch, whole: Timing, peak_tflops: float, runs: int) -> list[Figure]:
    train = config.train
    inputs = np.asarray(batch.inputs)
    flops = train_flops(config.model, inputs, train.piece_length, looped=looped_from(config) is None)
    rate = flops / whole.median_ms / 1e9
    peak_name = "peak, as given"
    if not peak_tflops:
        size, dtype = PEAK_SIZES.get(jax.default_backend(), PEAK_SIZE)
        peak_name, peak_tflops = f"peak: a product of {size:,}³ in {dtype}", measured_peak_tflops(size, dtype, runs)
    return [
        Figure("tokens a second", 1000 * train.batch_tokens / whole.median_ms, ""),
        Figure("model FLOPs of a step", flops / 1e12, "TFLOP"),
        Figure("model FLOPs a second", rate, "TFLOP/s"),
        Figure(peak_name, peak_tflops, "TFLOP/s"),
        Figure("model FLOP utilization", 100 * rate / peak_tflops, "%"),
    ]


def measured_peak_tflops(size: int, dtype: str, runs: int) -> float:
    """TFLOP/s of a product of two random matrices."""
    left, right = (jax.random.normal(jax.random.key(seed), (size, size), dtype) for seed in (0, 1))
    return 2 * size**3 / measure(partial(jax.jit(jnp.matmul), left, right), runs).median_ms / 1e9


def _measure_reference(config: Config, running: RunningStep, runs: int, script: Path) -> dict[str, float]:
    from jgolf.bench.reference import opened  # PyTorch is optional

    names = {"step": WHOLE_STEP, "gradients": GRADIENTS, "update": WHOLE_UPDATE, "memory": PEAK_MEMORY}
    with opened(script, config, running.state.params) as theirs:
        return {names[part]: value for part, value in theirs.measure_step(running.batch, runs).items()}
