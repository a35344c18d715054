"""A PyTorch training script, compiled where there is a GPU, timed at the same work from the same weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from jgolf.bench.running import AVERAGED_STEP
from jgolf.bench.timing import measure
from jgolf.config import Config
from jgolf.data.batches import Batch
from jgolf.model.functional import Params
from jgolf.optim.schedule import ema_decay
from jgolf.torch_bridge import script
from jgolf.torch_bridge.own_optimizers import make_optimizers
from jgolf.torch_bridge.torch_model import TorchModel

NEWTON_SCHULZ = "zeropower_via_newtonschulz5"
"""The function that the challenge's scripts compile by itself in their `main`."""
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""PyTorch's kernels, the fastest first, where the script's own flash attention is not installed."""


@contextlib.contextmanager
def opened(path: Path, config: Config, params: Params) -> Iterator[Reference]:
    """Yields the script's model and optimizers, with these weights, on the GPU where there is one.

    Raises:
      ScriptError: the script cannot be used. ConfigError, ArtifactError: it has no such model.
    """
    on_cpu = not torch.cuda.is_available()
    weights = {name: np.asarray(value) for name, value in params.items()}
    with script.imported(path, float32_only=False, on_cpu=on_cpu, compiled=not on_cpu) as module:
        model, _ = script.build_model(module, path, config.model, weights, "cpu" if on_cpu else "cuda")
        with sdpa_kernel(ATTENTION, set_priority=True):
            yield Reference(module, TorchModel(model, path, config.model.compute_dtype), config, compiled=not on_cpu)


class Reference:
    """Times the script's model under autocast to the config's type."""

    def __init__(self, module: ModuleType, wrapped: TorchModel, config: Config, compiled: bool):
        model = wrapped.model
        if wrapped.bfloat16:
            # As the challenge's scripts do: with float32 rows the whole residual stream would be float32.
            for part in model.modules():
                if isinstance(part, torch.nn.Embedding):
                    part.bfloat16()
        if compiled and hasattr(module, NEWTON_SCHULZ):
            setattr(module, NEWTON_SCHULZ, torch.compile(getattr(module, NEWTON_SCHULZ)))
        self._wrapped, self._config = wrapped, config
        self._loss = torch.compile(model, dynamic=False) if compiled else model
        self._logits = torch.compile(model.forward_logits, dynamic=False) if compiled else model.forward_logits
        self._optimizers = make_optimizers(module, wrapped, config, **({"fused": True} if compiled else {}))
        self._ema = {name: value.detach().float().clone() for name, value in model.state_dict().items()}

    def measure_step(self, batch: Batch, runs: int) -> dict[str, float]:
        """Times a training step and its parts on a batch [1, B, T].

        Returns:
          Medians in milliseconds of "step", "gradients" and "update"; on a GPU also the peak in GB, "memory".
        """
        forward_backward = self._forward_backward(batch)

        def step() -> None:
            forward_backward()
            self._update()

        torch.cuda.reset_peak_memory_stats()
        medians = {"step": self._median_ms(step, runs)}
        if peak_bytes := torch.cuda.max_memory_allocated():
            medians["memory"] = peak_bytes / 1e9
        medians["gradients"] = self._median_ms(forward_backward, runs)
        return medians | {"update": self.measure_update(runs)}

    def measure_update(self, runs: int) -> float:
        """Median in milliseconds of clipping, optimizers and EMA on given gradients."""
        for parameter in self._wrapped.model.parameters():
            parameter.grad = 0.01 * torch.randn_like(parameter)
        return self._median_ms(self._update, runs)

    def measure_losses(self, inputs: np.ndarray, targets: np.ndarray, runs: int) -> float:
        """Median in milliseconds of the losses of the last targets [B, S] of sequences [B, T]."""
        inputs, targets = self._wrapped.tensor(inputs), self._wrapped.tensor(targets)

        def losses() -> torch.Tensor:
            with self._wrapped.running(), torch.no_grad():
                logits = self._logits(inputs)[:, -targets.shape[1] :].float()
                return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")

        self._wrapped.model.eval()
        return self._median_ms(losses, runs)

    def _forward_backward(self, batch: Batch) -> Callable[[], None]:
        model = self._wrapped.model.train()
        inputs, targets = (self._wrapped.tensor(np.asarray(part)[0]) for part in batch)

        def run() -> None:
            model.zero_grad(set_to_none=True)
            with self._wrapped.running():
                loss = self._loss(inputs, targets)
            loss.backward()

        return run

    @torch.no_grad()
    def _update(self) -> None:
        model, clip = self._wrapped.model, self._config.optim.grad_clip
        decay = float(ema_decay(self._config.average, AVERAGED_STEP))
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimizer in self._optimizers:
            optimizer.step()
        if decay:
            for name, value in model.state_dict().items():
                self._ema[name].mul_(decay).add_(value.detach().float(), alpha=1 - decay)

    @staticmethod
    def _median_ms(run: Callable, runs: int) -> float:
        return measure(run, runs, wait=lambda result: torch.cuda.synchronize()).median_ms
