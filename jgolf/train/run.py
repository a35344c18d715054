"""Setting a run up: its folder, its data, its devices, its first state, its compiled step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jgolf import compiling, files
from jgolf import config as configs
from jgolf.config import Config, ModelConfig, TrainConfig
from jgolf.data.demo import build_missing_demo
from jgolf.data.run_data import run_tokenizer, training_tokens
from jgolf.data.vocabulary import resolved_for
from jgolf.errors import JgolfError
from jgolf.evaluate.validation import Validation
from jgolf.lock import locked
from jgolf.model.functional import Params, description
from jgolf.optim.schedule import fraction, loop_is_on
from jgolf.run_dir import CONFIG_FILE, REQUIREMENTS_FILE
from jgolf.train.beginning import compiling_step, random_state
from jgolf.train.checkpoint import Checkpoints, copied
from jgolf.train.clock import Clock
from jgolf.train.log import RunLog
from jgolf.train.memory import check_room
from jgolf.train.mesh import BatchSource, CompiledStep, make_mesh, replicate_from_first, replicated
from jgolf.train.peers import Peers
from jgolf.train.requirements import pinned
from jgolf.train.resume import changed_settings, keep_settings
from jgolf.train.same_data import check_same_data
from jgolf.train.starts import keep_start
from jgolf.train.step import TrainState, abstract_state, init_state

WARMUP_STEPS = 2
FirstParams = Callable[[ModelConfig], Mapping[str, np.ndarray]]
"""Gives parameters for a network of these settings, from whatever file."""


@dataclass
class Run:
    """A run that is ready to train."""

    config: Config
    run_dir: Path
    mesh: Mesh
    source: BatchSource
    validation: Validation
    checkpoints: Checkpoints | None
    """None where the first process writes them."""
    log: RunLog
    step: CompiledStep | None
    """None where no step is left to train."""
    state: TrainState
    first_step: int
    """Steps that were finished when this process began."""
    first_is_validated: bool
    """Whether they were followed by a validation."""
    clock: Clock


@contextlib.contextmanager
def prepared_run(
    config: Config,
    run_dir: Path,
    first_params: FirstParams | None,
    resume: bool,
    peers: Peers,
    skip_damaged: bool = False,
) -> Iterator[Run]:
    """Sets up a run and closes what it opened.

    Args:
      config: the resolved settings; those of the first process count.
      run_dir: the run's folder, used by the first process alone.
      first_params: gives the parameters to begin with, called by the first process alone; None draws them.
      resume: go on from the folder's newest checkpoint.
      peers: the processes of this run.
      skip_damaged: where the newest checkpoint is damaged, go on from the newest that is not.

    Raises:
      JgolfError: the settings, the data, the folder or the file cannot be used; nothing was changed.
    """
    started = time.perf_counter()
    configs.validate(config)
    compiling.keep_programs()
    config, data = _agreed_settings(config, peers)
    check_room(config)
    mesh = make_mesh()
    validation = Validation.open(config)
    source = BatchSource(config, training_tokens(config), mesh)
    initial = first_params(config.model) if first_params and peers.is_first else None
    with contextlib.ExitStack() as stack:
        checkpoints, notes = None, []
        if peers.is_first:
            checkpoints = Checkpoints(run_dir, config.train.keep_checkpoints, config, data)
            stack.callback(checkpoints.close)
            if resume and skip_damaged:
                notes += [f"damaged, and set aside: {path}" for path in checkpoints.set_damaged_aside(config)]
            if resume:
                changed = changed_settings(config, data, run_dir, checkpoints)
                notes += [f"changed by --resume: {change}" for change in changed]
        compiled_step = None
        if config.train.steps and not resume:
            compiled_step = stack.enter_context(compiling_step(config, mesh, source(0)))
        state, elapsed_s = _first_state(config, mesh, checkpoints if resume else None, initial, peers)
        first_step = int(state.step)
        if peers.is_first:
            keep_settings(config, run_dir, first_step)
            files.write_text(run_dir / REQUIREMENTS_FILE, pinned())
            keep_start(run_dir, mesh.devices.ravel(), first_step)
        log = stack.enter_context(contextlib.closing(RunLog(run_dir, peers.is_first, first_step)))
        log.line(_description(config, mesh, state))
        if config.train.steps < config.train.warmdown_steps:
            log.line(_warmdown_notice(config.train))
        if config.model.loop_layers and _never_loops(config.train):
            log.line(_loop_notice(config.train))
        if resume:
            log.line(f"resumed after step {first_step}" if first_step else "no checkpoint yet: starting from step 0")
            for note in notes:
                log.line(note)
        first_is_validated = json.loads(peers.agree("validated", json.dumps(log.holds_validation(first_step))))
        clock = Clock(json.loads(peers.agree("clock", json.dumps(elapsed_s))))
        step = None
        if not _is_over(config.train, first_step, clock.elapsed_s):
            step = compiled_step() if compiled_step else CompiledStep(config, mesh, state, source(first_step))
            _warm_up(step, state, source(first_step))
            if checkpoints:
                checkpoints.warm_up(state)
            log.line(f"ready in {time.perf_counter() - started:.1f}s, compilation included")
        yield Run(
            config=config,
            run_dir=run_dir,
            mesh=mesh,
            source=source,
            validation=validation,
            checkpoints=checkpoints,
            log=log,
            step=step,
            state=state,
            first_step=first_step,
            first_is_validated=first_is_validated,
            clock=clock,
        )
        if checkpoints:
            checkpoints.finish()


def _agreed_settings(config: Config, peers: Peers) -> tuple[Config, str]:
    """The first process's settings as plain numbers, with the data as they are found here, and their fingerprint."""
    config = configs.from_dict(json.loads(peers.agree("config", json.dumps(configs.to_dict(config)))), Config)
    if config.data.build_demo:
        if peers.is_first:
            build_missing_demo(config)
        peers.barrier("demo")
        build_missing_demo(config)  # on hosts that do not share the first one's folders
    config = _with_found_data(config)
    data = check_same_data(config, peers)
    return dataclasses.replace(config, model=resolved_for(config.data, config.model)), data


def _is_over(train: TrainConfig, step: int, elapsed_s: float) -> bool:
    """Whether a run that goes on after this step has nothing left to train."""
    return step >= train.steps or 0 < train.time_cap_s <= elapsed_s


@contextlib.contextmanager
def own_run_dir(run_dir: Path, resume: bool, peers: Peers) -> Iterator[None]:
    """Keeps a run's folder from other processes while the block runs; see `check_run_dir` for what it raises."""
    if not peers.is_first:
        yield
        return
    check_run_dir(run_dir, resume)
    with locked(run_dir, "wait for its end or stop it, or choose another --run-dir"):
        check_run_dir(run_dir, resume)  # again: another process may have begun a run, and ended, in between
        yield


def check_run_dir(run_dir: Path, resume: bool) -> None:
    """Checks that a run can begin, or go on, in a folder.

    Raises:
      JgolfError: it is a file, or it holds a run already and is not to be resumed, or the other way round.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise JgolfError(f"--run-dir {run_dir}: a file, expected a folder, new or of a run to --resume")
    holds_run = (run_dir / CONFIG_FILE).exists()
    if resume and not holds_run:
        raise JgolfError(f"{run_dir}: there is no run to resume ({CONFIG_FILE} is missing); leave --resume out")
    if holds_run and not resume:
        raise JgolfError(
            f"{run_dir}: already holds a run; go on with it by --resume, choose another --run-dir, or remove the folder"
        )


def _with_found_data(config: Config) -> Config:
    """The settings with the absolute paths of the data and of the tokenizer that is found there."""
    data = configs.with_absolute_paths(config.data)
    tokenizer = str(run_tokenizer(config).path.resolve())
    return dataclasses.replace(config, data=dataclasses.replace(data, tokenizer=tokenizer))


def _first_state(
    config: Config, mesh: Mesh, checkpoints: Checkpoints | None, initial: Params | None, peers: Peers
) -> tuple[TrainState, float]:
    """The state to begin with, whole on every device, and its training time in seconds."""
    if checkpoints is not None and checkpoints.latest_step is not None:
        state, elapsed_s = checkpoints.restore(config)
    elif initial is not None:
        state, elapsed_s = init_state(config, initial), 0.0
    else:
        state, elapsed_s = None, 0.0
    sharding = replicated(mesh)
    if peers.agree("start", "random" if state is None else "given") == "random":
        return random_state(config, mesh), elapsed_s
    if state is None:  # another process has it
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(config, sharding))
    return replicate_from_first(state, mesh), elapsed_s


def _warm_up(step: CompiledStep, state: TrainState, batch) -> None:
    """Runs throw-away steps, so that loading kernels and capturing graphs is outside the clock."""
    if jax.default_backend() == "cpu":
        return  # nothing to load, and a step at full size takes minutes
    scratch = copied(state)
    for _ in range(WARMUP_STEPS):
        scratch, _ = step(scratch, batch)
    jax.block_until_ready(scratch)


def _warmdown_notice(train: TrainConfig) -> str:
    steps, warmdown = train.steps, train.warmdown_steps
    return (
        f"note: the warmdown of {warmdown:,} steps is longer than the run: the learning rate begins at "
        f"{steps / warmdown:.2g} of its value; --train.warmdown-steps shortens it"
    )


def _never_loops(train: TrainConfig) -> bool:
    """Whether the last step begins before the loop is turned on; a time cap may turn it on at any step."""
    if train.time_cap_s or not train.steps:
        return False
    return not loop_is_on(fraction(train, train.steps - 1, 0.0), train.loop_start_fraction)


def _loop_notice(train: TrainConfig) -> str:
    return (
        f"note: none of the {train.steps:,} steps begins after {train.loop_start_fraction:g} of the run, so the loop, "
        "with which the weights are exported and scored, is not trained; a lower --train.loop-start-fraction trains it"
    )


def _description(config: Config, mesh: Mesh, state: TrainState) -> str:
    num_params = sum(value.size for value in state.params.values())
    train = config.train
    device = mesh.devices[0].device_kind
    return (
        f"{config.name}: {num_params:,} parameters, {train.batch_tokens:,} tokens a step in sequences of "
        f"{train.seq_len}, {mesh.size} × {device} in {jax.process_count()} process{'es' * (jax.process_count() > 1)}, "
        f"{config.model.compute_dtype}, {description(config.model, train.documents)}"
    )
