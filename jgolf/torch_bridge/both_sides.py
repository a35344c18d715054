"""The PyTorch script's model and jgolf's, with the same weights, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import torch
from jax.sharding import Mesh

from jgolf.config import Config
from jgolf.data.shards import TokenStream
from jgolf.data.text import Text
from jgolf.evaluate import score
from jgolf.evaluate.windows import Windows
from jgolf.model import functional
from jgolf.progress import progress_bar
from jgolf.torch_bridge import comparison, crosscheck_train, own_optimizers, own_settings, script, torch_model
from jgolf.torch_bridge.comparison import Check, Tolerances
from jgolf.torch_bridge.crosscheck_train import StepComparison
from jgolf.torch_bridge.own_optimizers import OwnOptimizers
from jgolf.torch_bridge.torch_model import TorchModel


@dataclass(frozen=True)
class Result:
    """What a comparison without training found.

    Attributes:
      checks: each figure with its difference and tolerance.
      layers: the largest difference of every intermediate result, in order.
      first_departure: name of the first of them beyond its tolerance; None where there is none.
    """

    checks: list[Check]
    layers: list[Check]
    first_departure: str | None

    @property
    def passed(self) -> bool:
        """Whether every check and every layer is within its tolerance."""
        return all(check.passed for check in [*self.checks, *self.layers])


@dataclass(frozen=True)
class BothSides:
    """Two models that should agree; made by `prepared`."""

    module: ModuleType
    torch_model: TorchModel
    config: Config
    params: Mapping[str, np.ndarray]
    tolerances: Tolerances
    jax_device: jax.Device
    notices: list[str]

    @property
    def where(self) -> str:
        """The devices, for a message."""
        return f"PyTorch on {self.torch_model.device}, jgolf on {self.jax_device.device_kind}"

    def compare(self, text: Text, windows: Mapping[str, Windows], seq_len: int, rows: int) -> Result:
        """Compares logits, loss and every block on the first rows, and bits per byte on all windows.

        Args:
          text: what to run and score.
          windows: name of an evaluation → what it runs and scores.
          seq_len: length of the rows and windows.
          rows: sequences run at once.
        """
        tokens = text.tokens.astype(np.int32)
        whole = min(rows, (len(tokens) - 1) // seq_len)
        inputs = tokens[: whole * seq_len].reshape(whole, seq_len)
        targets = tokens[1 : whole * seq_len + 1].reshape(whole, seq_len)
        with jax.default_device(self.jax_device):
            ours = jax.jit(partial(functional.block_outputs, self.config.model))(dict(self.params), inputs)
        theirs = self.torch_model.block_outputs(inputs)
        layers, first_departure = comparison.by_layer(theirs, ours, self.tolerances.values)
        pair = (theirs["logits"], np.asarray(ours["logits"]))
        values = self.tolerances.values
        checks = [
            comparison.largest("logits, largest difference", *pair, values),
            comparison.mean("logits, mean difference", *pair, values),
            comparison.relative("loss", *(_mean_nll(logits, targets) for logits in pair), self.tolerances.loss),
        ]
        for name, chosen in windows.items():
            checks.append(self._bits_per_byte(name, text, chosen, seq_len, rows))
        return Result(checks, layers, first_departure)

    def _bits_per_byte(self, name: str, text: Text, windows: Windows, seq_len: int, rows: int) -> Check:
        what, mesh = (text.tokens, windows, seq_len), Mesh(np.array([self.jax_device]), ("data",))
        sides = (
            torch_model.window_nats(self.torch_model, *what, rows, progress_bar(f"PyTorch, {name}")),
            score.window_nats(
                self.config.model, dict(self.params), *what, rows * seq_len, mesh, progress_bar(f"jgolf, {name}")
            ),
        )
        theirs, ours = (score.summarize(*score.gathered(parts, text)).val_bpb for parts in sides)
        return comparison.absolute(f"bits per byte, {name}", theirs, ours, self.tolerances.bits_per_byte)

    def own_optimizers(self) -> OwnOptimizers:
        """The script's optimizers; ScriptError where it has no Muon, or not one that suits."""
        return own_optimizers.of_script(self.module, self.torch_model, self.config)

    def train(
        self, own: OwnOptimizers, stream: TokenStream, rows: int, seq_len: int, steps: int
    ) -> Iterator[StepComparison]:
        """Optimizer steps on both sides; the PyTorch model is left trained."""
        batches = crosscheck_train.batches_of(stream, rows, seq_len, steps)
        with jax.default_device(self.jax_device):
            yield from crosscheck_train.compare_steps(
                own, self.torch_model, self.config, self.params, batches, self.tolerances
            )


@contextlib.contextmanager
def prepared(
    reference: str | Path,
    config: Config,
    params: Mapping[str, np.ndarray],
    tolerances: Tolerances,
    assumed: Sequence[str] = (),
) -> Iterator[BothSides]:
    """Yields both models; while the block lasts, the stand-ins that the script may need are installed.

    `config.model.compute_dtype` decides: float32 runs on the CPU, bfloat16 on the GPU where there is one.
    Of the settings whose names are in `assumed`, the script's rotary tables have the last word.

    Raises:
      ScriptError: the script cannot be used. ConfigError, ArtifactError: it has no such model.
    """
    float32 = config.model.compute_dtype == "float32"
    device = "cuda" if torch.cuda.is_available() and not float32 else "cpu"
    jax_device = jax.local_devices(backend="cpu" if float32 else None)[0]
    with script.imported(reference, float32_only=float32, on_cpu=device == "cpu") as module:
        model, notices = script.build_model(module, reference, config.model, params, device)
        wrapped = TorchModel(model, reference, config.model.compute_dtype)
        rotary = own_settings.rotary_of(wrapped)
        told, more = own_settings.with_rotary_of(config.model, rotary, assumed, str(reference))
        config = replace(config, model=told)
        yield BothSides(module, wrapped, config, params, tolerances, jax_device, notices + more)


def _mean_nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log likelihood in nats, in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(logits).sum(axis=-1)) - picked).mean())
