"""The script's model as functions from tokens to arrays."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jgolf.data.shards import BOS_ID
from jgolf.errors import error_in_file
from jgolf.evaluate.nats import ScoredTargets
from jgolf.evaluate.windows import Windows
from jgolf.torch_bridge import interface
from jgolf.torch_bridge.interface import Call, Switch
from jgolf.torch_bridge.kernels import KernelLaunchedError
from jgolf.torch_bridge.script import ScriptError
from jgolf.watch import Progress, unwatched

PARTS = {"attn": "attention of ", "mlp": "MLP of "}
"""Modules of a block → what their results are called, before the block's name."""
BOUNDS_MULTIPLE = 64


class TorchModel:
    """Logits, losses and intermediate results of a script's GPT, in float32 or under bfloat16 autocast.

    Where `piece_length` is not 0, attention stays within documents, and within pieces of that many tokens of longer
    ones: each row is run by itself, with the boundaries of its pieces.

    Attributes:
      model: the GPT.
      script: the path of its script.
      device: where it is.
      bfloat16: whether it runs under autocast.
      notices: what was not the script's own.
      switch: turns its loop off and on; None until `find_switch` has found it.
    """

    def __init__(self, model: torch.nn.Module, script: str | Path, dtype: str):
        self.model, self.script = model, script
        self.device = next(model.parameters()).device
        self.bfloat16 = dtype == "bfloat16"
        self.notices: list[str] = []
        self.switch: Switch | None = None
        self._logits, self._loss = self._calls()

    def _calls(self) -> tuple[Call, Call | None]:
        """How logits and the loss are asked for.

        Raises:
          ScriptError: there is no way to logits.
        """
        forward = interface.call_of(self.model, "forward")
        loss = forward if forward is not None and forward.has_targets else None
        calls = [interface.call_of(self.model, method) for method in interface.logits_methods(self.model)]
        calls = [call for call in calls if call is not None and (call.method == "forward" or not call.needs_targets)]
        if not calls:
            raise ScriptError(
                f"{self.script}: its GPT gives no logits: looked for a method forward_logits(input_ids), or another "
                "with logits in its name, and for forward(input_ids, target_ids), which need no further arguments; "
                "give it one"
            )
        packed = [call for call in calls if call.bounds is not None and loss is not None and loss.bounds is not None]
        return (packed or calls)[0], loss  # one that can be given documents, where the loss can

    @property
    def takes_documents(self) -> bool:
        """Whether the boundaries of documents can be given to it."""
        return all(call is None or call.bounds is not None for call in (self._logits, self._loss))

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

    def logits(self, tokens: np.ndarray, piece_length: int = 0) -> Tensor:
        """Float32 logits [B, T, V] of tokens [B, T], without a gradient."""
        with self.running(), torch.no_grad():
            if piece_length:
                rows = [self._logits_of(row, self._bounds(row, piece_length), piece_length) for row in tokens[:, None]]
                return torch.cat(rows)
            return self._logits_of(tokens)

    def _logits_of(self, tokens: np.ndarray, bounds: Tensor | None = None, longest: int = 0) -> Tensor:
        call, ids = self._logits, self.tensor(tokens)
        if not call.needs_targets:
            found = interface.tensor_in(call(self.model, ids, None, bounds, longest), lambda one: one.ndim == 3)
        else:
            with _Heard() as heard:
                call(self.model, ids, ids, bounds, longest)
            found = heard.logits
        if found is None or found.shape[:-1].numel() != ids.numel():
            raise ScriptError(
                f"{self.script}: its GPT gives no logits: looked for a result [B, T, V] of {call.method}, or, as that "
                "wants targets, for its call of cross_entropy; give it a method forward_logits(input_ids)"
            )
        return found.reshape(*ids.shape, -1).float()

    def loss(self, inputs: np.ndarray, targets: np.ndarray, piece_length: int = 0) -> Tensor:
        """The script's own mean loss of a batch [B, T], with a gradient."""
        ids, wanted = self.tensor(inputs), self.tensor(targets)
        bounds = self._bounds(inputs, piece_length) if piece_length else None
        if self._loss is not None:
            try:
                found = self._loss(self.model, ids, wanted, bounds, piece_length)
                scalar = interface.tensor_in(found, lambda one: one.ndim == 0)
                return scalar if scalar is not None else interface.tensor_in(found, lambda one: True).mean()
            except KernelLaunchedError as error:
                launched = f"its loss has the kernel {error.kernel}, which needs a GPU"
        else:
            launched = "its forward takes no targets"
        notice = f"GPT: {launched}; the cross-entropy of its own logits in its place"
        if notice not in self.notices:
            self.notices.append(notice)
        logits = self._logits_of(inputs, bounds, piece_length)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    def _bounds(self, tokens: np.ndarray, piece_length: int) -> Tensor:
        return torch.from_numpy(document_bounds(tokens.ravel(), piece_length)).to(self.device)

    def losses(self, inputs: np.ndarray, targets: np.ndarray, piece_length: int = 0) -> np.ndarray:
        """Negative log likelihood of every target in nats, float32 [B, T]."""
        logits = self.logits(inputs, piece_length)
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.tensor(targets).flatten(), reduction="none")
        return nll.reshape(inputs.shape).cpu().numpy()

    def block_outputs(self, tokens: np.ndarray, piece_length: int = 0) -> dict[str, np.ndarray]:
        """Results by name in order, "embedding", "block 0", …, "logits"; only the logits without a list `blocks`.

        Names are those of `jgolf.model.functional.block_outputs`: of every run of a block, and of its attention and
        MLP where the script has modules for them.
        """
        seen: dict[str, Tensor] = {}
        hooks = []
        for layer, block in enumerate(getattr(self.model, "blocks", [])):
            hooks.append(block.register_forward_pre_hook(_keeping_first(seen), with_kwargs=True))
            hooks.append(block.register_forward_hook(_keeping(seen, f"block {layer}")))
            for part, name in PARTS.items():
                if isinstance(module := getattr(block, part, None), torch.nn.Module):
                    hooks.append(module.register_forward_hook(_keeping(seen, f"{name}block {layer}")))
        try:
            seen["logits"] = self.logits(tokens, piece_length)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: value.detach().float().cpu().numpy() for name, value in seen.items()}

    def visits(self) -> set[str]:
        """Names of the runs of its blocks, as far as modules tell them."""
        names = self.block_outputs(np.zeros((1, 2), np.int32))
        return {name.removeprefix(PARTS["attn"]) for name in names if name.startswith(("block", PARTS["attn"]))}

    def find_switch(self, off: frozenset[str], on: frozenset[str]) -> None:
        """Looks for what turns the loop off and on; see `interface.find_switch`."""
        self.switch = interface.find_switch(self.model, self.visits, off, on)

    def set_looped(self, looped: bool) -> None:
        """Turns the loop off or on, where it is known how."""
        if self.switch is not None:
            interface.set_switch(self.model, self.switch.name, looped)


def document_bounds(tokens: np.ndarray, piece_length: int) -> np.ndarray:
    """Where the pieces of a packed row begin: at 0, at every BOS, and every `piece_length` tokens after either.

    The row's length follows once or more, until there are a multiple of `BOUNDS_MULTIPLE`, int32, as the scripts of
    pull request #1855 give them to the kernel.
    """
    starts = np.union1d([0], np.flatnonzero(tokens == BOS_ID))
    cuts = [np.arange(*ends, piece_length) for ends in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    bounds = np.append(np.concatenate(cuts), len(tokens))
    return np.pad(bounds, (0, -len(bounds) % BOUNDS_MULTIPLE), constant_values=len(tokens)).astype(np.int32)


class _Heard(TorchFunctionMode):
    """Keeps the logits that `cross_entropy` is called with."""

    logits: Tensor | None = None

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.nn.functional.cross_entropy:
            self.logits = args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))


def _keeping(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    """A hook that keeps a module's output, of two lanes their mean, under its name and the number of its run."""
    runs = itertools.count(1)

    def keep(module: torch.nn.Module, args: tuple, output: Tensor | tuple) -> None:
        run = next(runs)
        lanes = [one for one in output if isinstance(one, Tensor)] if isinstance(output, tuple) else [output]
        if lanes and isinstance(lanes[0], Tensor):
            two = len(lanes) == 2 and lanes[0].shape == lanes[1].shape
            seen[name + (f", run {run}" if run > 1 else "")] = sum(lanes) / 2 if two else lanes[0]

    return keep


def _keeping_first(seen: dict[str, Tensor]) -> Callable[..., None]:
    """A hook that keeps what the first block that runs is given first."""

    def keep(module: torch.nn.Module, args: tuple, options: dict) -> None:
        value = next((one for one in (*args, *options.values()) if isinstance(one, Tensor) and one.ndim == 3), None)
        if not seen and value is not None:
            seen["embedding"] = value

    return keep


def window_nats(
    model: TorchModel,
    tokens: np.ndarray,
    windows: Windows,
    seq_len: int,
    rows: int,
    progress: Progress = unwatched,
    piece_length: int = 0,
) -> Iterator[ScoredTargets]:
    """The scores of the windows' targets, `rows` windows at a time; see `jgolf.evaluate.nats.window_nats`.

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
        losses = model.losses(inputs, targets, piece_length)
        for row, (start, length, first_scored) in enumerate(chunk):
            yield ScoredTargets(np.arange(start + first_scored, start + length), losses[row, first_scored:length])
