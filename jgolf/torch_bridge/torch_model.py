"""The script's model as functions from tokens to arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jgolf.errors import error_in_file
from jgolf.evaluate.score import ScoredTargets
from jgolf.evaluate.windows import Windows
from jgolf.torch_bridge.script import ScriptError
from jgolf.watch import Progress, unwatched


class TorchModel:
    """Logits and every block's output of a script's GPT, in float32 or under bfloat16 autocast."""

    def __init__(self, model: torch.nn.Module, script: str | Path, dtype: str):
        self.model, self.script = model, script
        self.device = next(model.parameters()).device
        self.bfloat16 = dtype == "bfloat16"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Autocast as asked for; an error in the script's own code becomes a ScriptError."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                yield
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:
            raise ScriptError(f"{self.script}: its model fails: {error_in_file(error, self.script)}") from None

    def tensor(self, tokens: np.ndarray) -> Tensor:
        """Token ids on the model's device."""
        return torch.from_numpy(tokens.astype(np.int64)).to(self.device)

    def logits(self, tokens: np.ndarray) -> Tensor:
        """Float32 logits [B, T, V] of tokens [B, T], without a gradient."""
        with self.running(), torch.no_grad():
            return self.model.forward_logits(self.tensor(tokens)).float()

    def losses(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Negative log likelihood of every target in nats, float32 [B, T]."""
        logits = self.logits(inputs)
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.tensor(targets).flatten(), reduction="none")
        return nll.reshape(inputs.shape).cpu().numpy()

    def block_outputs(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Results by name in order, "embedding", "block 0", …, "logits"; only the logits without a list `blocks`."""
        seen: dict[str, Tensor] = {}
        hooks = []
        for layer, block in enumerate(getattr(self.model, "blocks", [])):
            if layer == 0:
                hooks.append(block.register_forward_pre_hook(_keeping(seen, "embedding")))
            hooks.append(block.register_forward_hook(_keeping(seen, f"block {layer}")))
        try:
            seen["logits"] = self.logits(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: value.detach().float().cpu().numpy() for name, value in seen.items()}


def _keeping(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    """A hook that keeps a block's output, or before it is called its first argument."""

    def keep(module: torch.nn.Module, args: tuple, output: Tensor | tuple | None = None) -> None:
        value = args if output is None else output
        if isinstance(value, tuple):
            value = value[0] if value else None
        if value is not None:
            seen[name] = value

    return keep


def window_nats(
    model: TorchModel,
    tokens: np.ndarray,
    windows: Windows,
    seq_len: int,
    rows: int,
    progress: Progress = unwatched,
) -> Iterator[ScoredTargets]:
    """The scores of the windows' targets, `rows` windows at a time; see `jgolf.evaluate.score.window_nats`.

    Windows shorter than `seq_len` are padded at their end, as the reference does: the rotary base
    depends on the length that is run.
    """
    every = list(zip(windows.start, windows.length, windows.first_scored, strict=True))
    chunks = [every[index : index + rows] for index in range(0, len(every), rows)]
    for chunk in progress(chunks, len(chunks)):
        inputs, targets = np.zeros((2, len(chunk), seq_len), np.int64)
        for row, (start, length, _) in enumerate(chunk):
            inputs[row, :length] = tokens[start : start + length]
            targets[row, :length] = tokens[start + 1 : start + 1 + length]
        losses = model.losses(inputs, targets)
        for row, (start, length, first_scored) in enumerate(chunk):
            yield ScoredTargets(np.arange(start + first_scored, start + length), losses[row, first_scored:length])
