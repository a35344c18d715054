"""The PyTorch script's model and jgolf's, with the same weights, side by side."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
import torch
from jax.sharding import Mesh

from jgolf.config import Config
from jgolf.config.plan import make_plan
from jgolf.data.shards import TokenStream
from jgolf.data.text import Text
from jgolf.evaluate import score
from jgolf.evaluate.nats import window_nats
from jgolf.evaluate.windows import Windows, document_windows, packed_rows, sliding_windows, standard_windows
from jgolf.model import functional
from jgolf.progress import progress_bar
from jgolf.torch_bridge import (
    comparison,
    crosscheck_train,
    kernels,
    own_optimizers,
    own_settings,
    script,
    torch_model,
)
from jgolf.torch_bridge.comparison import Check, Tolerances
from jgolf.torch_bridge.crosscheck_train import StepComparison
from jgolf.torch_bridge.kernels import Replaced
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


class Evaluation(NamedTuple):
    """A way to score a text on both sides.

    Attributes:
      windows: what is run and scored.
      row_length: length to which windows are padded.
      rows: windows run at once.
      piece_length: see `jgolf.model.functional`.
    """

    windows: Windows
    row_length: int
    rows: int
    piece_length: int = 0


@dataclass(frozen=True)
class BothSides:
    """Two models that should agree; made by `prepared`.

    Attributes:
      documents: whether documents are kept apart, packed into rows.
      phases: the states of the loop that are compared; one, True, where there is none.
    """

    module: ModuleType
    torch_model: TorchModel
    config: Config
    params: Mapping[str, np.ndarray]
    tolerances: Tolerances
    jax_device: jax.Device
    notices: list[str]
    documents: bool
    phases: tuple[bool, ...]
    replaced: Replaced

    @property
    def where(self) -> str:
        """The devices, for a message."""
        return f"PyTorch on {self.torch_model.device}, jgolf on {self.jax_device.device_kind}"

    @property
    def replacements(self) -> list[str]:
        """What was not the script's own so far, a sentence each."""
        return [f"{self.torch_model.script}: {text}" for text in (*self.replaced.notices, *self.torch_model.notices)]

    def evaluations(
        self, text: Text, seq_len: int, stride: int, rows: int, reference_windows: bool
    ) -> dict[str, Evaluation]:
        """Name → way to score: one row after the other, and sliding, each as the network sees text in training."""
        count = len(text.tokens)
        if self.documents:
            packed = packed_rows(count, rows * seq_len)
            slid = document_windows(text.starts, count, seq_len, stride)
            return {
                "packed documents": Evaluation(packed, int(packed.length[0]), 1, seq_len),
                f"sliding within documents, stride {stride}": Evaluation(slid, seq_len, rows),
            }
        slid = sliding_windows(count, seq_len, stride, reference_windows)
        return {
            "standard": Evaluation(standard_windows(count, seq_len), seq_len, rows),
            f"sliding, stride {stride}": Evaluation(slid, seq_len, rows),
        }

    def compare(
        self, text: Text, evaluations: Mapping[str, Evaluation], seq_len: int, rows: int, looped: bool = True
    ) -> Result:
        """Compares logits, loss and every block on the first rows, and bits per byte on all windows.

        Args:
          text: what to run and score.
          evaluations: by name.
          seq_len: length of the rows, or of the pieces of documents in one row.
          rows: sequences run at once, or in one row.
          looped: whether the loop is on.
        """
        self.torch_model.set_looped(looped)
        tokens = text.tokens.astype(np.int32)
        whole = min(rows, (len(tokens) - 1) // seq_len)
        shape = (whole, seq_len)
        if self.documents:
            shape = (1, min(rows * seq_len, len(tokens) - 1))
        count, piece_length = int(np.prod(shape)), seq_len if self.documents else 0
        inputs, targets = tokens[:count].reshape(shape), tokens[1 : count + 1].reshape(shape)
        how = {"looped": looped, "piece_length": piece_length}
        with jax.default_device(self.jax_device):
            ours = jax.jit(partial(functional.block_outputs, self.config.model, **how))(dict(self.params), inputs)
        theirs = self.torch_model.block_outputs(inputs, piece_length)
        layers, first_departure = comparison.by_layer(theirs, ours, self.tolerances.values)
        pair = (theirs["logits"], np.asarray(ours["logits"]))
        values = self.tolerances.values
        checks = [
            comparison.largest("logits, largest difference", *pair, values),
            comparison.mean("logits, mean difference", *pair, values),
            comparison.relative("loss", *(_mean_nll(logits, targets) for logits in pair), self.tolerances.loss),
        ]
        for name, evaluation in evaluations.items():
            checks.append(self._bits_per_byte(name, text, evaluation, looped))
        return Result(checks, layers, first_departure)

    def _bits_per_byte(self, name: str, text: Text, evaluation: Evaluation, looped: bool) -> Check:
        windows, length, rows, piece_length = evaluation
        what, mesh = (text.tokens, windows, length), Mesh(np.array([self.jax_device]), ("data",))
        ours = (self.config.model, dict(self.params), *what, rows * length, mesh, progress_bar(f"jgolf, {name}"))
        theirs = (self.torch_model, *what, rows, progress_bar(f"PyTorch, {name}"))
        sides = (
            torch_model.window_nats(*theirs, piece_length),
            window_nats(*ours, piece_length=piece_length, looped=looped),
        )
        theirs, ours = (score.summarize(*score.gathered(parts, text)).val_bpb for parts in sides)
        return comparison.absolute(f"bits per byte, {name}", theirs, ours, self.tolerances.bits_per_byte)

    def own_optimizers(self) -> OwnOptimizers:
        """The script's optimizers; ScriptError where it has no Muon, or not one that suits."""
        return own_optimizers.of_script(self.module, self.torch_model, self.config)

    def train(
        self, own: OwnOptimizers, stream: TokenStream, rows: int, seq_len: int, steps: int
    ) -> Iterator[StepComparison]:
        """Optimizer steps on both sides, the second half with the loop; the PyTorch model is left trained."""
        batches = crosscheck_train.batches_of(stream, rows, seq_len, steps, self.documents)
        looped = [self.phases[-1 if 2 * step >= steps else 0] for step in range(steps)]
        with jax.default_device(self.jax_device):
            yield from crosscheck_train.compare_steps(
                own,
                self.torch_model,
                self.config,
                self.params,
                batches,
                self.tolerances,
                looped,
                seq_len if self.documents else 0,
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
    with (
        kernels.replaced() as replaced,
        script.imported(reference, float32_only=float32, on_cpu=device == "cpu") as module,
    ):
        model, notices = script.build_model(module, reference, config.model, params, device)
        wrapped = TorchModel(model, reference, config.model.compute_dtype)
        rotary = own_settings.rotary_of(wrapped)
        told, more = own_settings.with_rotary_of(config.model, rotary, assumed, str(reference))
        notices += own_settings.unknown_here(module, str(reference)) + more
        config = replace(config, model=told)
        documents = config.train.documents and wrapped.takes_documents
        if documents != config.train.documents:
            notices.append(
                f"{reference}: its GPT takes no boundaries of documents (looked for a parameter such as cu_seqlens in "
                "its methods): both sides run rows as one piece"
            )
        phases, more = _phases(wrapped, config)
        yield BothSides(
            module,
            wrapped,
            config,
            params,
            tolerances,
            jax_device,
            notices + more,
            documents,
            phases,
            replaced,
        )


def _phases(model: TorchModel, config: Config) -> tuple[tuple[bool, ...], list[str]]:
    """The states of the loop to compare, and notices of what is compared otherwise than in both.

    The model's switch is looked for where jgolf's network has a loop.
    """
    off, on = (frozenset(visit.name for visit in make_plan(config.model, looped)) for looped in (False, True))
    if off == on:
        return (True,), []
    model.find_switch(off, on)
    switch = model.switch
    if switch is None:
        runs = frozenset(model.visits())
        looped = runs != off
        state = "on" if looped else "off"
        return (looped,), [
            f"{model.script}: what turns the loop of its GPT on was not found (looked for an attribute that is true or "
            f"false, or a method with loop in its name, that changes how often its blocks run); compared with the loop "
            f"{state}, as GPT makes itself; a boolean attribute such as looping_active would tell"
        ]
    notices = [f"{model.script}: its loop is turned on by {switch.name}"]
    for state, theirs, ours in (("off", switch.off, off), ("on", switch.on, on)):
        if theirs != ours:
            notices.append(
                f"{model.script}: with the loop {state} its blocks run {_runs(theirs)}, jgolf's {_runs(ours)}"
            )
    return (False, True), notices


def _runs(visits: frozenset[str]) -> str:
    """How often each block runs: 0 1 2 ×3 …."""
    counts = Counter(int(name.split(",")[0].removeprefix("block ")) for name in visits)
    return " ".join(f"{layer}" + f"×{count}" * (count > 1) for layer, count in sorted(counts.items())) or "nowhere"


def _mean_nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log likelihood in nats, in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(logits).sum(axis=-1)) - picked).mean())
