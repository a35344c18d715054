"""The same optimizer steps on both sides: the script's own optimizers beside jgolf's, with their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
import optax
import torch

from jgolf.config import Config, MuonConfig
from jgolf.data.batches import Batch, BatchOrder
from jgolf.data.shards import TokenStream
from jgolf.errors import error_in_file
from jgolf.model import functional
from jgolf.optim.optimizer import make_optimizer
from jgolf.torch_bridge import comparison, names
from jgolf.torch_bridge.comparison import Check, Tolerances
from jgolf.torch_bridge.kernels import KernelLaunchedError
from jgolf.torch_bridge.own_optimizers import OwnOptimizers
from jgolf.torch_bridge.script import ScriptError
from jgolf.torch_bridge.torch_model import TorchModel

Params = Mapping[str, np.ndarray]
Step = tuple[float, Params]  # the loss before it, the parameters after it


@dataclass(frozen=True)
class StepComparison:
    """One optimizer step on both sides; `looped` is whether the loop was on in it."""

    step: int
    looped: bool
    loss: Check
    distance: Check
    worst_parameter: str


def compare_steps(
    own: OwnOptimizers,
    torch_model: TorchModel,
    config: Config,
    params: Params,
    batches: list[Batch],
    tolerances: Tolerances,
    looped: Sequence[bool],
    piece_length: int,
) -> Iterator[StepComparison]:
    """Takes a step on each batch, on both sides from `params`, and yields how they compare.

    `looped` says of each step whether the loop is on; for `piece_length` see `jgolf.model.functional`.

    Both sides have the settings of `own`. The learning-rate multiplier stays 1 and Muon's momentum warms up from
    step 0. Distances are relative to how far the reference's parameters have moved since the start. Casts that the
    script would make to bfloat16 are float32 where the cross-check is, Newton-Schulz iterations included.

    Raises:
      ScriptError: an optimizer of the script fails.
    """
    config = replace(config, optim=own.config)
    how = (batches, looped, piece_length)
    reference = torch_steps(own.optimizers, torch_model, config, *how)
    ours = jax_steps(config, params, *how)
    for step, ((torch_loss, torch_params), (jax_loss, jax_params)) in enumerate(zip(reference, ours, strict=True)):
        apart = {path: float(np.linalg.norm(torch_params[path] - jax_params[path])) for path in params}
        moved = {path: float(np.linalg.norm(torch_params[path] - params[path])) for path in params}
        total = comparison.norm(apart.values()) / max(comparison.norm(moved.values()), 1e-30)
        worst = max(apart, key=lambda path: apart[path] / max(moved[path], 1e-30))
        yield StepComparison(
            step,
            looped[step],
            comparison.relative(f"loss of step {step + 1}", torch_loss, jax_loss, tolerances.train_loss),
            Check(f"parameters after step {step + 1}", total, tolerances.distance),
            f"{names.torch_name(worst)} {apart[worst] / max(moved[worst], 1e-30):.1e}",
        )


def batches_of(stream: TokenStream, rows: int, seq_len: int, steps: int, documents: bool = False) -> list[Batch]:
    """The first `steps` batches of a stream, in the order in which one rank trains on them.

    They are [rows, seq_len], or where documents are kept apart one row of as many tokens within a shard,
    from its first BOS on.
    """
    tokens = rows * seq_len
    order = BatchOrder(tokens, tokens if documents else seq_len, 1, 1, take_runs=int(documents))
    taken = [order.batch(stream, step) for step in range(steps)]
    return [Batch(*(array[0, 0].astype(np.int32) for array in batch)) for batch in taken]


def jax_steps(
    config: Config, params: Params, batches: list[Batch], looped: Sequence[bool], piece_length: int
) -> Iterator[Step]:
    """jgolf's steps: the loss before each, and the parameters after it."""
    optimizer = make_optimizer(replace(config.optim, clip="mean"))  # there is one rank

    @partial(jax.jit, static_argnames="looped")
    def step(params: functional.Params, state: optax.OptState, batch: Batch, looped: bool) -> tuple:
        loss_of = partial(functional.loss, config.model, looped=looped, piece_length=piece_length)
        loss, gradients = jax.value_and_grad(loss_of)(params, *batch)
        updates, state = optimizer.update(gradients, state, params, learning_rate_multiplier=1.0)
        return loss, optax.apply_updates(params, updates), state

    current = {path: jax.numpy.asarray(array) for path, array in params.items()}
    state = optimizer.init(current)
    for batch, with_loop in zip(batches, looped, strict=True):
        loss, current, state = step(current, state, batch, with_loop)
        yield float(loss), {path: np.asarray(array) for path, array in current.items()}


def torch_steps(
    optimizers: list[torch.optim.Optimizer],
    torch_model: TorchModel,
    config: Config,
    batches: list[Batch],
    looped: Sequence[bool],
    piece_length: int,
) -> Iterator[Step]:
    """The reference's steps: gradient clipping, then each of the script's optimizers."""
    model = torch_model.model.train()
    clip = config.optim.grad_clip
    for step, batch in enumerate(batches):
        torch_model.set_looped(looped[step])
        model.zero_grad(set_to_none=True)
        with torch_model.running():
            loss = torch_model.loss(*batch, piece_length)
        try:
            loss.backward()
        except KernelLaunchedError as error:
            raise ScriptError(f"{torch_model.script}: its model fails backwards: {error}") from None
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if "momentum" in group:
                    group["momentum"] = _momentum(config.optim.muon, step)
            try:
                optimizer.step()
            except Exception as error:
                failed = f"{type(optimizer).__name__} fails: {error_in_file(error, torch_model.script)}"
                raise ScriptError(f"{torch_model.script}: {failed}") from None
        yield float(loss.detach()), _params_of(model)


def _momentum(muon: MuonConfig, step: int) -> float:
    done = min(step / muon.momentum_warmup_steps, 1.0) if muon.momentum_warmup_steps else 1.0
    return muon.momentum_warmup_start + (muon.momentum - muon.momentum_warmup_start) * done


def _params_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    state, _ = names.canonical(dict(model.named_parameters()))
    return names.to_params({name: value.detach().float().cpu().numpy() for name, value in state.items()})[0]
