"""Setting a run up: its folder, its data, its devices, its first state, its compiled step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jgolf import config as configs
from jgolf.config import Config
from jgolf.data.demo import build_demo
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.tokenizer import find_tokenizer
from jgolf.errors import JgolfError
from jgolf.evaluate.validation import Validation
from jgolf.load import load_params
from jgolf.model.attention import attention_kernel
from jgolf.model.functional import Params
from jgolf.train.checkpoint import CONFIG_FILE, Checkpoints, abstract_state
from jgolf.train.clock import Clock
from jgolf.train.log import RunLog
from jgolf.train.mesh import BatchSource, CompiledStep, make_mesh, replicated
from jgolf.train.step import TrainState, init_state, new_state

WARMUP_STEPS = 2


@dataclass
class Run:
    """A run that is ready to train."""

    config: Config
    run_dir: Path
    mesh: Mesh
    source: BatchSource
    validation: Validation
    checkpoints: Checkpoints
    log: RunLog
    step: CompiledStep
    state: TrainState
    first_step: int
    """Steps that were finished when this process began."""
    clock: Clock


@contextlib.contextmanager
def prepared_run(config: Config, run_dir: Path, init_from: str | None, resume: bool) -> Iterator[Run]:
    """Sets up a run and closes what it opened.

    Args:
      config: the resolved settings.
      run_dir: the run's folder.
      init_from: a model file to take the first parameters from.
      resume: go on from the folder's newest checkpoint.

    Raises:
      JgolfError: the settings, the data, the folder or the file cannot be used; nothing was changed.
    """
    started = time.perf_counter()
    configs.validate(config)
    if config.data.build_demo and jax.process_index() == 0:
        build_demo(config.data.dir)
    config = _with_absolute_paths(config)
    mesh = make_mesh()
    validation = Validation.open(config)
    source = BatchSource(config, TokenStream(find_shards(config.data.dir, "train"), config.model.vocab_size), mesh)
    initial = load_params(init_from, config.model) if init_from else None
    claim_run_dir(run_dir, config, resume)
    checkpoints = Checkpoints(run_dir, config.train.keep_checkpoints)
    state, elapsed_s = _first_state(config, mesh, checkpoints, initial, resume)
    first_step = int(state.step)
    log = RunLog(run_dir, jax.process_index() == 0, first_step)
    try:
        log.line(_description(config, mesh, state))
        step = CompiledStep(config, mesh, state, source(first_step))
        _warm_up(step, state, source(first_step))
        log.line(f"ready in {time.perf_counter() - started:.1f}s, compilation included")
        yield Run(
            config, run_dir, mesh, source, validation, checkpoints, log, step, state, first_step, Clock(elapsed_s)
        )
    finally:
        checkpoints.close()
        log.close()


def claim_run_dir(run_dir: Path, config: Config, resume: bool) -> None:
    """Makes the run's folder and stores its settings there.

    Raises:
      JgolfError: it holds a run already and is not to be resumed, or the other way round.
    """
    holds_run = (run_dir / CONFIG_FILE).exists()
    if resume and not holds_run:
        raise JgolfError(f"{run_dir}: there is no run to resume ({CONFIG_FILE} is missing); leave --resume out")
    if holds_run and not resume:
        raise JgolfError(
            f"{run_dir}: already holds a run; go on with it by --resume, choose another --run-dir, or remove the folder"
        )
    if jax.process_index() == 0:
        configs.write_json(config, run_dir / CONFIG_FILE)


def _with_absolute_paths(config: Config) -> Config:
    """The data's paths as they hold from any working directory: the run's config is read from others."""
    data_dir = Path(config.data.dir).absolute()
    tokenizer = find_tokenizer(data_dir, config.data.tokenizer).resolve()
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, dir=str(data_dir), tokenizer=str(tokenizer))
    )


def _first_state(
    config: Config, mesh: Mesh, checkpoints: Checkpoints, initial: Params | None, resume: bool
) -> tuple[TrainState, float]:
    sharding = replicated(mesh)
    if resume and checkpoints.latest_step is not None:
        return checkpoints.restore(abstract_state(config, sharding))
    if initial is not None:
        make = jax.jit(lambda params: init_state(config, params), out_shardings=sharding)
        return make(jax.device_put(initial, sharding)), 0.0
    return jax.jit(lambda key: new_state(config, key), out_shardings=sharding)(jax.random.key(config.train.seed)), 0.0


def _warm_up(step: CompiledStep, state: TrainState, batch) -> None:
    """Runs throw-away steps, so that loading kernels and capturing graphs is outside the clock."""
    if jax.default_backend() == "cpu":
        return  # nothing to load, and a step at full size takes minutes
    scratch = jax.tree.map(jnp.copy, state)
    for _ in range(WARMUP_STEPS):
        scratch, _ = step(scratch, batch)
    jax.block_until_ready(scratch)


def _description(config: Config, mesh: Mesh, state: TrainState) -> str:
    num_params = sum(value.size for value in state.params.values())
    train = config.train
    device = mesh.devices[0].device_kind
    return (
        f"{config.name}: {num_params:,} parameters, {train.batch_tokens:,} tokens a step in sequences of {train.seq_len}, "
        f"{mesh.size} × {device} in {jax.process_count()} process{'es' * (jax.process_count() > 1)}, "
        f"{config.model.compute_dtype}, attention by {attention_kernel(config.model)}"
    )
