"""`jgolf bench evaluate`: the losses of windows, as scoring computes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jgolf import compiling
from jgolf.bench import trace
from jgolf.bench.flops import forward_flops
from jgolf.bench.report import Figure, Report, beside, command_line, publish, timed
from jgolf.bench.running import bench_config, prepare_reference, random_batch, random_params
from jgolf.bench.timing import measure
from jgolf.config import Config
from jgolf.data.batches import Batch
from jgolf.evaluate.nats import scoring_model
from jgolf.model.functional import Params, token_losses

SLIDING = "sliding"
STANDARD = "standard"


def evaluate(
    config: str = "pr592",
    sequences: int = 32,
    stride: int = 64,
    runs: int = 10,
    profile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    reference: Path | None = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Time scoring on one device: the last tokens of sliding windows, and all tokens of as many rows.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      sequences: Windows scored at once.
      stride: Last tokens of a window that are scored.
      runs: How often to measure.
      profile: Also show where the device's time goes in sliding evaluation, by kernel.
      reference: A PyTorch training script to run beside it.
      json: Print JSON instead of a table.
    """
    prepare_reference(reference)
    options = {"config": config, "sequences": sequences, "stride": stride, "runs": runs}
    command = command_line("evaluate", **options, profile=profile, reference=reference)
    publish(measure_evaluation(bench_config(config, sequences), stride, runs, command, profile, reference), json)


def measure_evaluation(
    config: Config, stride: int, runs: int, command: str, with_profile: bool = False, reference: Path | None = None
) -> Report:
    """Times the scoring of a batch of windows: their last `stride` targets, then all."""
    model, seq_len = scoring_model(config.model), config.train.seq_len
    stride = min(stride, seq_len)
    params = jax.device_put(random_params(config.model))
    batch = Batch(*(part[0].astype("int32") for part in random_batch(config)))
    sequences = len(batch.inputs)
    theirs = _measure_reference(config, params, batch, stride, runs, reference) if reference else {}
    figures, traced = [], None
    for name, last in ((SLIDING, stride), (STANDARD, seq_len)):
        arguments = jax.device_put((params, batch.inputs, batch.targets[:, seq_len - last :]))
        lowered = jax.jit(partial(token_losses, model)).lower(*arguments)
        compiled = lowered.compile(compiler_options=compiling.options())
        run = partial(compiled, *arguments)
        timing = measure(run, runs)
        figures.append(timed(name, timing, forward_flops(model, sequences, seq_len, last)))
        figures.append(Figure(f"{name}, scored tokens a second", 1000 * sequences * last / timing.median_ms, ""))
        if with_profile and name == SLIDING:
            traced = trace.profile(run, own=trace.own_kernels(compiled.as_text()))
    title = f"{config.name}, {sequences} windows of {seq_len:,}, last {stride} or all tokens, {model.compute_dtype}"
    return Report("evaluate", title, command, beside(figures, theirs), traced)


def _measure_reference(
    config: Config, params: Params, batch: Batch, stride: int, runs: int, script: Path
) -> dict[str, float]:
    from jgolf.bench.reference import opened  # PyTorch is optional

    with opened(script, config, params) as theirs:
        return {
            SLIDING: theirs.measure_losses(batch.inputs, batch.targets[:, -stride:], runs),
            STANDARD: theirs.measure_losses(*batch, runs),
        }
