"""The whole chain as pure functions, for research.

    text → tokens → loss(params) → gradients → train_step → average → quantize → pack → bits per byte

A model is its settings (a frozen `ModelConfig`) and a flat dictionary of arrays, path → float32. Everything
up to `train_step` can be traced: `jax.jit`, `jax.vmap` and `jax.grad` work on it, in any composition. How often it can
be differentiated, and in which mode, depends on `model.kernels`:

    "plain"      any number of times, in reverse and in forward mode: the written model everywhere
    "auto"       the same where there is no NVIDIA GPU; with one, once and in reverse mode (`jax.grad`, `jax.vjp`)
    "interpret"  once and in reverse mode

because the kernels' derivatives are kernels, too, written by hand. So set "plain" for `jax.jvp`, `jax.hessian` or the
`grad` of a `grad`. Settings are static, so close over them or bind them with `functools.partial`. From `quantize` on,
functions run on the host, in NumPy.

    params = init(config, jax.random.key(0))
    logits = jax.jit(partial(apply, config))(params, tokens)
    per_example = jax.vmap(jax.grad(partial(loss, config)), in_axes=(None, 0, 0))
    data = pack(quantize(params, QuantizeConfig()), {"note": "mine"})

A model that was trained and scored, from its run's folder or any file of it (`jgolf.load`):

    model = load_model("runs/demo/artifact/model.jgolf")
    logits = apply(model.config.model, model.params, tokens)

examples/functional.py shows them at work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jgolf.artifact.container import CodecName
from jgolf.artifact.container import pack as _pack
from jgolf.artifact.container import unpack as _unpack
from jgolf.config import Config, ModelConfig, QuantizeConfig
from jgolf.data.tokenizer import Tokenizer, load_tokenizer
from jgolf.evaluate.score import bits_per_byte
from jgolf.load import LoadedModel, load_model
from jgolf.model import functional, initial
from jgolf.model.functional import Params
from jgolf.quantize import export as _export
from jgolf.quantize import fake as _fake
from jgolf.quantize import stored as _stored
from jgolf.quantize.stored import StoredTensor
from jgolf.train import step as _step
from jgolf.train.averages import averaged_params
from jgolf.train.step import StepMetrics, TrainState

__all__ = [
    "Batch",
    "Config",
    "LoadedModel",
    "ModelConfig",
    "Params",
    "QuantizeConfig",
    "StepMetrics",
    "StoredTensor",
    "Tokenizer",
    "TrainState",
    "apply",
    "averaged_params",
    "bits_per_byte",
    "dequantize",
    "fake_quantize",
    "init",
    "init_many",
    "init_state",
    "load_model",
    "load_tokenizer",
    "loss",
    "pack",
    "quantize",
    "token_losses",
    "train_step",
    "unpack",
]


class Batch(NamedTuple):
    """What one step trains on: token ids, and the next token at every position.

    Either [B, T], sequences of one micro-batch, or [A, B, T], A micro-batches whose gradients are averaged.
    """

    inputs: Int[Array, "*A B T"]
    targets: Int[Array, "*A B T"]


def init(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Parameters at step 0: path → float32 array. Each depends on the key and its own path only.

    Use `init_many` rather than `vmap` for several: an orthogonal start is a QR decomposition, and XLA can
    deadlock on a CPU when it runs batches of them.
    """
    return initial.init(config, key)


def init_many(config: ModelConfig, keys: PRNGKeyArray) -> Params:
    """Parameters for each of R keys, one after the other: path → array [R, …], ready for `vmap`."""
    return jax.lax.map(lambda key: initial.init(config, key), keys)


def apply(config: ModelConfig, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Float32 logits in nats for the token after each position. It sees the past only.

    Can be jitted, differentiated by `params` (how often, see the module) and vmapped over `params` and `tokens`.
    """
    return functional.apply(config, params, tokens)


def token_losses(
    config: ModelConfig, params: Params, inputs: Int[Array, "B T"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Negative log likelihood of every target in nats, float32. As traceable as `apply`."""
    return functional.token_losses(config, params, inputs, targets)


def loss(
    config: ModelConfig, params: Params, inputs: Int[Array, "*B T"], targets: Int[Array, "*B T"]
) -> Float[Array, ""]:
    """Mean negative log likelihood in nats, of a batch [B, T] or of one sequence [T]. As traceable as `apply`."""
    rows = (-1, inputs.shape[-1])
    return functional.loss(config, params, inputs.reshape(rows), targets.reshape(rows))


def init_state(config: Config, params: Params) -> TrainState:
    """The state of a run that starts from `params`: these, zero moments, the averages, step 0. Can be vmapped."""
    return _step.init_state(config, params)


def train_step(
    config: Config, state: TrainState, batch: Batch, elapsed_s: Float[Array, ""] | float = 0.0
) -> tuple[TrainState, StepMetrics]:
    """One step of training: clipping, Muon and AdamW, the schedule, late QAT, EMA and SWA.

    Can be jitted (donate `state`) and vmapped over the state. The settings that `jgolf.sweep.grid.TRACEABLE`
    names may be traced values, so it can be vmapped over these too: build the config inside, with
    `jgolf.config.replace`.

    Args:
      config: the run.
      state: see `init_state`.
      batch: what to train on.
      elapsed_s: training time so far, for the schedule under a time cap.

    Returns:
      The next state, and scalars such as the loss in nats and the gradients' norm.
    """
    parts = (part if part.ndim == 3 else part[None] for part in batch)
    return _step.train_step(config, state, *parts, elapsed_s)


def fake_quantize(params: Params, rules: QuantizeConfig) -> Params:
    """The parameters as late QAT sees them: matrices rounded to their storage form's levels. Can be jitted and vmapped.

    Rounding has no useful derivative: take gradients at the result, for the straight-through estimate.
    """
    return _fake.fake_quantize(params, rules)


def quantize(
    params: Mapping[str, Array | np.ndarray], rules: QuantizeConfig, moments: Mapping[str, np.ndarray] | None = None
) -> dict[str, StoredTensor]:
    """Every parameter in its storage form. On the host.

    Args:
      params: path → array.
      rules: forms, steps, rounding, corrections.
      moments: for GPTQ, what `jgolf.quantize.curvature.input_moments` gives: path → Σ x xᵀ over the inputs of a matrix.

    Raises:
      ArtifactError: a parameter is not finite, or too large for its form.
    """
    return _export.quantize({path: np.asarray(values) for path, values in params.items()}, rules, moments)


def dequantize(stored: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    """The float32 parameters that stored ones stand for. On the host."""
    return _stored.dequantize(stored)


def pack(stored: Mapping[str, StoredTensor], metadata: Mapping[str, Any], codec: CodecName = "zstd") -> bytes:
    """An artifact: stored parameters and anything that JSON can hold. On the host.

    Raises:
      ArtifactError: there is too much of either.
    """
    return _pack(stored, metadata, codec)


def unpack(data: bytes) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The inverse of `pack`. On the host.

    Raises:
      ArtifactError: `data` is not a whole and unchanged artifact.
    """
    return _unpack(data)
