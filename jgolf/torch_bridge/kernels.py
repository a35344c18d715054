"""Triton kernels of a script where there is no GPU: importable, and something else is computed in their place.

Where a kernel is launched, the innermost module that does so is run in one of two other ways: as the script itself runs
it outside training, or, where a kernel is launched there too, with mathematics written out here for the function that
launches it, told by what that function is called with. Either is said in a notice.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef

PACKAGE = "triton"
NOT_NEEDED = ("brotli", "brotlicffi", "zstandard", "sentencepiece", "lrzip", "tiktoken", "huggingface_hub", "wandb")
"""Packages that scripts import for what a comparison does not run: tokenizers, compression, downloads, logs."""


class KernelLaunchedError(RuntimeError):
    """The kernel of this name would have been launched."""

    def __init__(self, kernel: str):
        super().__init__(
            f"its Triton kernel {kernel} needs a GPU, and nothing else is known to compute the same: looked for a "
            "module that launches none outside training, and for a function that is called with an MLP's x, W_up and "
            "W_down, or with logits, targets and the softcap"
        )
        self.kernel = kernel


class Kernel:
    """What `triton.jit` gives: it can be passed on and asked to run."""

    def __init__(self, function: Callable):
        self.fn, self.__name__ = function, getattr(function, "__name__", "a kernel")

    def __getitem__(self, grid: Any) -> Callable:
        return self

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise KernelLaunchedError(self.__name__)

    run = warmup = __call__


def _decorator(function: Callable | None = None, *args: Any, **options: Any) -> Any:
    """`triton.jit`, bare and called."""
    return Kernel(function) if callable(function) else Kernel


FUNCTIONS: dict[str, Any] = {
    "jit": _decorator,
    "autotune": lambda *args, **options: lambda kernel: kernel,
    "heuristics": lambda *args, **options: lambda kernel: kernel,
    "cdiv": lambda a, b: -(-a // b),
    "next_power_of_2": lambda n: 1 << max(0, int(n) - 1).bit_length(),
    "__version__": "3.0.0",
}


class _Finder(MetaPathFinder, Loader):
    """Finds packages and all modules in them, whose every name means something that can be called and looked into."""

    def __init__(self, packages: Sequence[str]):
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found = name.partition(".")[0] in self.packages
        return ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == PACKAGE:
            vars(module).update(FUNCTIONS)

        def missing(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__} has no attribute {name}")
            value = mock.MagicMock(name=f"{module.__name__}.{name}")
            setattr(module, name, value)
            return value

        module.__getattr__ = missing


@contextlib.contextmanager
def importable(always: bool) -> Iterator[None]:
    """Makes Triton importable without being there, or in place of the one that is there where `always`; and the
    packages that are `NOT_NEEDED` where they are not installed. Imports mean what they did before afterwards.
    """
    import torch._dynamo  # noqa: F401 – it looks for Triton when it is first imported, and should find what there is

    absent = [name for name in NOT_NEEDED if name not in sys.modules and importlib.util.find_spec(name) is None]
    without = always or importlib.util.find_spec(PACKAGE) is None
    finder = _Finder([*absent, *([PACKAGE] if without else [])])

    def ours() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in finder.packages}

    before = ours()
    for name in before:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


class Replaced:
    """What was computed in the place of kernels.

    Attributes:
      notices: a sentence for each module of the script that would have launched one.
    """

    def __init__(self) -> None:
        self.notices: list[str] = []
        self._ways: dict[type, str] = {}  # of the modules that launch kernels
        self._written_out: list[str] | None = None  # what has been, while it may be

    def run(self, call: Callable, module: nn.Module, args: tuple, options: dict) -> Any:
        """A call of a module, without kernels."""
        kind = type(module)
        if kind not in self._ways:
            try:
                return call(module, *args, **options)
            except KernelLaunchedError as error:
                return self._found(call, module, args, options, error)
        return self._in_way(self._ways[kind], call, module, args, options)

    def _found(self, call: Callable, module: nn.Module, args: tuple, options: dict, error: KernelLaunchedError) -> Any:
        kind = type(module)
        for way in ("outside training", "written out"):
            if self._written_out is not None or (way == "outside training" and not module.training):
                continue  # a module around this one already tries
            try:
                result = self._in_way(way, call, module, args, options)
            except KernelLaunchedError:
                continue
            self._ways[kind] = way
            if way == "outside training":
                needs = f"{kind.__name__}: its kernel {error.kernel} needs a GPU"
                self.notices.append(f"{needs}; run as the script itself runs it outside training")
            return result
        raise error

    def _in_way(self, way: str, call: Callable, module: nn.Module, args: tuple, options: dict) -> Any:
        if way == "outside training":
            with mock.patch.object(module, "training", False):
                return call(module, *args, **options)
        before, self._written_out = self._written_out, []
        try:
            result = call(module, *args, **options)
            self.notices += [notice for notice in self._written_out if notice not in self.notices]
            return result
        finally:
            self._written_out = before

    def of_function(self, name: str, call: Callable, args: tuple, options: dict) -> Any:
        """A call of a differentiable function of the script's, without kernels where they are to be written out."""
        try:
            return call()
        except KernelLaunchedError as error:
            found = None if self._written_out is None else written_out([*args, *options.values()])
            if found is None:
                raise
            result, formula = found
            self._written_out.append(f"{name}: its kernel {error.kernel} needs a GPU; {formula} in its place")
            return result


def written_out(arguments: Sequence[Any]) -> tuple[Tensor, str] | None:
    """What a fused function computes that is called with these arguments, and its formula; None where they do not tell.

    An MLP, of leaky ReLU² with slope ½, is called with x [.., D] and one or two matrices: up [F, D], down [D, F] (or,
    where the widths tell, its transpose). A softcapped loss is called with logits [N, V], N target ids and the softcap.
    """
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    ids = [value for value in tensors if not value.is_floating_point()]
    floating = [value for value in tensors if value.is_floating_point()]
    numbers = [value for value in arguments if isinstance(value, float)]
    if len(ids) == 1 and len(floating) == 1 and len(numbers) == 1:
        logits, targets, (softcap,) = floating[0], ids[0].flatten(), numbers
        if logits.ndim == 2 and len(logits) == len(targets):
            capped = softcap * torch.tanh(logits.float() / softcap)
            losses = nn.functional.cross_entropy(capped, targets.long(), reduction="none")
            return losses, f"the cross-entropy of {softcap:g}·tanh(x/{softcap:g})"
    if not ids and not numbers and len(floating) in (2, 3) and all(matrix.ndim == 2 for matrix in floating[1:]):
        x, up, *down = floating
        if x.shape[-1] != up.shape[1]:
            return None
        hidden = nn.functional.leaky_relu(x @ up.T, 0.5).square()
        if not down:
            return hidden, "leaky_relu(x·W_upᵀ, ½)²"
        for matrix in (down[0].T, down[0]):
            if matrix.shape == (up.shape[0], x.shape[-1]):
                return hidden @ matrix, "leaky_relu(x·W_upᵀ, ½)²·W_downᵀ"
    return None


@contextlib.contextmanager
def replaced() -> Iterator[Replaced]:
    """While the block lasts, modules and functions that would launch a kernel which cannot be launched do without it.

    It has to surround the import of the script.
    """
    record = Replaced()
    module_call, apply, op_call = nn.Module.__call__, torch.autograd.Function.apply.__func__, CustomOpDef.__call__

    def of_module(module: nn.Module, *args: Any, **options: Any) -> Any:
        return record.run(module_call, module, args, options)

    def of_autograd(kind: type, *args: Any, **options: Any) -> Any:
        if kind.__module__.partition(".")[0] == "torch":
            return apply(kind, *args, **options)
        return record.of_function(kind.__name__, lambda: apply(kind, *args, **options), args, options)

    def of_operator(operator: CustomOpDef, *args: Any, **options: Any) -> Any:
        def call() -> Any:
            return op_call(operator, *args, **options)

        if len(operator._opoverload._schema.returns) != 1:  # which of several results is which, nobody says
            return call()
        return record.of_function(operator._name, call, args, options)

    with (
        mock.patch.object(nn.Module, "__call__", of_module),
        mock.patch.object(torch.autograd.Function, "apply", classmethod(of_autograd)),
        mock.patch.object(CustomOpDef, "__call__", of_operator),
    ):
        yield record
