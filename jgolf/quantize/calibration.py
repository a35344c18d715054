"""What quantization reads of the training text, and quantization with it."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Int

from jgolf.config import Config, ModelConfig
from jgolf.data.run_data import training_stream
from jgolf.quantize.curvature import input_moments
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import StoredTensor
from jgolf.watch import Progress, unwatched

CPU_TOKENS = 32_768  # where a full-size model takes seconds a thousand
GPTQ_BATCHES = 16  # of a rank's micro-step
COUNTED_RUNS, COUNTED_RUN = 1024, 65_536  # at most, and tokens of each: 67 million, a second or two


def calibration_rows(config: Config, many: int, wanted: int = 0) -> Int[np.ndarray, "sequences time"]:
    """Training text from all over the split: int32 [sequences, train.seq_len].

    Args:
      config: the run, for its data.
      many: about how many tokens where nothing else is said; CPU_TOKENS at most on a CPU.
      wanted: how many instead; 0 for `many`.
    """
    stream = training_stream(config)
    seq_len = config.train.seq_len
    tokens = wanted or (min(many, CPU_TOKENS) if jax.default_backend() == "cpu" else many)
    starts = np.linspace(0, max(0, len(stream) - seq_len), max(1, tokens // seq_len)).astype(int)
    return np.stack([stream.take(start, seq_len) for start in starts.tolist()]).astype(np.int32)


def counted_runs(config: Config) -> list[Int[np.ndarray, " time"]]:
    """Runs of training text in which to count what occurs: all of it, or as many from all over the split as there may
    be, uint16 each.

    Args:
      config: the run, for its data.
    """
    stream = training_stream(config)
    starts = range(0, len(stream), COUNTED_RUN)
    if len(starts) > COUNTED_RUNS:
        starts = np.linspace(0, len(stream) - COUNTED_RUN, COUNTED_RUNS).astype(int).tolist()
    return [stream.take(start, min(COUNTED_RUN, len(stream) - start)) for start in starts]


def quantize_run(
    config: Config,
    model: ModelConfig,
    params: Mapping[str, np.ndarray],
    wanted: int = 0,
    progress: Progress = unwatched,
) -> dict[str, StoredTensor]:
    """Every parameter of a run in its storage form; with GPTQ the run's training text is read.

    Args:
      config: the run.
      model: its network, as it is scored here.
      params: path → array.
      wanted: see `calibration_rows`.
      progress: shows how many sequences are done.

    Raises:
      ArtifactError: a parameter is not finite, or too large for its form.
      DataError: the training text is missing or damaged.
    """
    if not config.quantize.gptq:
        return quantize(params, config.quantize)
    batch_tokens = config.train.run_tokens
    tokens = calibration_rows(config, GPTQ_BATCHES * batch_tokens, wanted)
    moments = input_moments(model, params, tokens, batch_tokens, progress, config.train.piece_length)
    return quantize(params, config.quantize, moments)
