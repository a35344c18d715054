"""`jgolf bench attention`: every attention kernel that runs here, at the config's shape."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import jax
import tyro

from jgolf import compiling
from jgolf.bench.flops import attention_flops, visible_pairs
from jgolf.bench.report import Report, command_line, publish, timed
from jgolf.bench.running import bench_config, describe
from jgolf.bench.timing import measure
from jgolf.config import Config, ModelConfig
from jgolf.errors import first_line
from jgolf.model.kernels import door
from jgolf.model.kernels.attention import attention_name, causal_attention
from jgolf.model.kernels.door import Choice


def attention(
    config: str = "pr592",
    sequences: int = 0,
    runs: int = 10,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Time one layer's causal attention, forward, and forward and backward, by every kernel that runs here.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      sequences: Sequences at once; 0 for what the config gives one device.
      runs: How often to measure.
      json: Print JSON instead of a table.
    """
    command = command_line("attention", config=config, sequences=sequences, runs=runs)
    publish(measure_attention(bench_config(config, sequences), runs, command), json)


def available(model: ModelConfig) -> dict[str, Choice]:
    """The forms of attention that run on this machine in such a network: name → choice."""
    if door.gpu() is None:
        return {"plain": "plain"}
    return {attention_name(model.compute_dtype, model.head_dim, documents=False): "auto", "plain": "plain"}


def measure_attention(config: Config, runs: int, command: str) -> Report:
    """Times each kernel on random queries, keys and values; one that needs too much memory is left out with a note."""
    model, seq_len = config.model, config.train.seq_len
    sequences = config.train.batch_tokens // seq_len
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads, model.num_heads)
    q, k, v, gradient = (
        jax.random.normal(jax.random.key(i), (sequences, seq_len, count, model.head_dim), model.compute_dtype)
        for i, count in enumerate(heads)
    )

    def both(choice, q, k, v, gradient):
        result, differentiate = jax.vjp(partial(causal_attention, choice), q, k, v)
        return result, differentiate(gradient)

    jit = partial(jax.jit, compiler_options=compiling.options())
    flops = attention_flops(model, visible_pairs(sequences, seq_len))
    figures, notes = [], []
    for kernel, choice in available(model).items():
        forward = jit(partial(causal_attention, choice))
        try:
            figures.append(timed(f"{kernel}, forward", measure(partial(forward, q, k, v), runs), flops))
            whole = measure(partial(jit(partial(both, choice)), q, k, v, gradient), runs)
            figures.append(timed(f"{kernel}, forward + backward", whole, 3 * flops))
        except jax.errors.JaxRuntimeError as error:
            notes.append(f"{kernel}: {first_line(error)}")
    return Report("attention", f"{describe(config)}: one layer's attention", command, figures, notes=notes)
