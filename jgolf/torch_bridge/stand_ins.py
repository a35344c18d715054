"""What lets a script that is written for CUDA be imported and run where there is none."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jgolf.torch_bridge import kernels

FLASH_ATTENTION_MODULES = ("flash_attn_interface", "flash_attn", "flash_attn.flash_attn_interface")
LAUNCHER_VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
# Calls for a device's state, with what they give where there is no device.
CUDA_CALLS: dict[str, Any] = {
    "set_device": None,
    "synchronize": None,
    "empty_cache": None,
    "manual_seed": None,
    "manual_seed_all": None,
    "reset_peak_memory_stats": None,
    "current_device": 0,
    "max_memory_allocated": 0,
    "max_memory_reserved": 0,
    "memory_allocated": 0,
    "mem_get_info": (0, 0),
    "get_device_capability": (9, 0),
    "get_device_name": "no device",
    "get_device_properties": SimpleNamespace(
        name="no device", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
    ),
    "Event": mock.MagicMock(),
    "Stream": mock.MagicMock(),
}
FLASH_ATTENTION = ("flash_attn_func", "flash_attn_3_func", "flash_attn_varlen_func")
NO_WINDOW = (None, -1)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, causal: bool = False, **options: Any) -> Tensor:
    """flash_attn_func in PyTorch's own attention: q [B, T, heads, d], k and v [B, T, kv heads, d].

    Raises:
      TypeError: an option other than the scale and a window of keys before causal queries is used; the numbers would
        not be those of the script.
    """
    scale, (before, after) = options.pop("softmax_scale", None), options.pop("window_size", None) or (-1, -1)
    used = [name for name, value in options.items() if value not in (None, False, 0, 0.0, 1)]
    if after not in ((*NO_WINDOW, 0) if causal else NO_WINDOW) or (before not in NO_WINDOW and not causal):
        used.append(f"window_size=({before}, {after})")
    if args or used:
        raise TypeError(f"flash attention with the options {[*args, *used]} has no stand-in here")
    groups, length = q.shape[2] // k.shape[2], q.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)))
    what: dict[str, Any] = {"is_causal": causal}
    if before not in NO_WINDOW and before < length - 1:
        what = {"attn_mask": torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(-before)}
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, **what).transpose(1, 2)


def flash_attention_of_sequences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *args: Any,
    **options: Any,
) -> Tensor:
    """flash_attn_varlen_func: sequences packed one after the other, q [T, heads, d], k and v [T, kv heads, d].

    Args:
      q, k, v: of all sequences.
      cu_seqlens_q, cu_seqlens_k: where each begins and the last ends, 0 … T; one that ends where it begins is empty.
      max_seqlen_q, max_seqlen_k: length of the longest, which only a kernel has to know.
      *args: as of `flash_attention`.
      **options: as of `flash_attention`.

    Raises:
      TypeError: an option has no stand-in, or queries and keys are not of the same sequences, from the first to the
        last position.
    """
    bounds = cu_seqlens_q.tolist()
    if bounds != cu_seqlens_k.tolist() or bounds != sorted(bounds) or (bounds[0], bounds[-1]) != (0, len(q)):
        raise TypeError("flash attention of sequences that do not make up all positions has no stand-in here")
    pieces = [slice(*ends) for ends in itertools.pairwise(bounds) if ends[0] < ends[1]]
    return torch.cat([flash_attention(q[None, p], k[None, p], v[None, p], *args, **options)[0] for p in pieces])


class Redirect(TorchFunctionMode):
    """Sends tensors meant for a missing GPU to the CPU, and where asked keeps float32 what would become bfloat16.

    The latter lets all of a script, its optimizer too, be compared in float32.
    """

    def __init__(self, without_cuda: bool, float32_only: bool):
        super().__init__()
        self.without_cuda, self.float32_only = without_cuda, float32_only

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.without_cuda and func is Tensor.cuda:
            return args[0]
        if self.float32_only and func in (Tensor.bfloat16, Tensor.half):
            func, args = Tensor.to, (args[0], torch.float32)
        kwargs = {name: self._redirected(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._redirected, args), **kwargs)

    def _redirected(self, value: Any) -> Any:
        if self.float32_only and isinstance(value, torch.dtype) and value in (torch.bfloat16, torch.float16):
            return torch.float32
        if self.without_cuda:
            if isinstance(value, torch.device) and value.type == "cuda":
                return torch.device("cpu")
            if isinstance(value, str) and value.partition(":")[0] == "cuda":
                return "cpu"
        return value


@contextlib.contextmanager
def installed(source: str, float32_only: bool, on_cpu: bool, compiled: bool = False) -> Iterator[None]:
    """Stand-ins for what a script may need; the environment is as before afterwards.

    They are for flash attention, Triton, packages that no comparison needs, CUDA calls, calls of `torch.distributed`
    outside a group, and compilation.

    Args:
      source: the script's text.
      float32_only: whether casts to bfloat16 and float16 are to stay in float32.
      on_cpu: whether the script is to run on the CPU even where there is a GPU.
      compiled: whether `torch.compile` is to compile.
    """
    without_cuda = on_cpu or not torch.cuda.is_available()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {**LAUNCHER_VARIABLES, **os.environ}))
        modules = _flash_attention_modules(without_cuda or float32_only, gives_tuple(source))
        stack.enter_context(modules_added(modules))
        stack.enter_context(kernels.importable(without_cuda or float32_only))
        stack.enter_context(_alone())
        if not compiled:
            stack.enter_context(mock.patch.object(torch, "compile", _not_compiled))
        if without_cuda:
            calls = {name: mock.MagicMock(return_value=value) for name, value in CUDA_CALLS.items()}
            stack.enter_context(mock.patch.multiple(torch.cuda, is_available=lambda: False, **calls))
        if without_cuda or float32_only:  # compiled programs are slower, or not compiled whole, under such a mode
            stack.enter_context(Redirect(without_cuda, float32_only))
        yield


@contextlib.contextmanager
def modules_added(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Makes `modules` importable by their names; afterwards those names mean what they did before."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def gives_tuple(source: str) -> bool:
    """Whether a script takes what flash attention gives apart, as versions 3 up to some give it: output, log-sums.

    It does where a result is unpacked, or where its first part is taken though the query is no batch of one
    made for the call.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # whoever imports it says so
        return False
    names = set(FLASH_ATTENTION)
    for part in ast.walk(tree):
        if isinstance(part, ast.ImportFrom) and part.module in FLASH_ATTENTION_MODULES:
            names |= {alias.asname for alias in part.names if alias.name in FLASH_ATTENTION and alias.asname}

    def called(node: ast.AST) -> bool:
        func = getattr(node, "func", None)
        return isinstance(node, ast.Call) and (getattr(func, "id", None) in names or getattr(func, "attr", "") in names)

    for part in ast.walk(tree):
        if isinstance(part, ast.Assign) and called(part.value) and isinstance(part.targets[0], (ast.Tuple, ast.List)):
            return True
        if isinstance(part, ast.Subscript) and called(part.value) and ast.unparse(part.slice) == "0":
            query = ast.unparse(part.value.args[0]) if part.value.args else ""
            if not query.endswith(("[None]", "unsqueeze(0)")):
                return True
    return False


def _with_sums(attention: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """The same with its result in a pair; nobody has asked for the log-sums beside it so far."""
    return lambda *args, **options: (attention(*args, **options), None)


def _flash_attention_modules(always: bool, in_tuples: bool = False) -> dict[str, ModuleType]:
    """Stand-ins for those of the modules that are not installed, or for all."""
    modules = {}
    whole, packed = flash_attention, flash_attention_of_sequences
    if in_tuples:
        whole, packed = _with_sums(whole), _with_sums(packed)
    for name in FLASH_ATTENTION_MODULES:
        top = name.partition(".")[0]
        if always or importlib.util.find_spec(top) is None:
            module = modules[name] = ModuleType(name)
            module.__path__ = []
            module.flash_attn_func = module.flash_attn_3_func = whole
            module.flash_attn_varlen_func = packed
    if "flash_attn" in modules:
        modules["flash_attn"].flash_attn_interface = modules["flash_attn.flash_attn_interface"]
    return modules


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Calls of `torch.distributed` outside a group are those of a group of one process."""
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        yield
        return
    done = SimpleNamespace(wait=lambda: None, is_completed=lambda: True)

    def copied(output: Tensor | list[Tensor], tensor: Tensor, *args: Any, **options: Any) -> Any:
        target = output[0] if isinstance(output, list) else output
        target.copy_(tensor.reshape(target.shape))
        return done

    unchanged = dict.fromkeys(("all_reduce", "broadcast", "reduce", "barrier"), lambda *args, **options: done)
    gathering = dict.fromkeys(("all_gather", "all_gather_into_tensor", "reduce_scatter_tensor"), copied)
    counts = {"get_rank": lambda group=None: 0, "get_world_size": lambda group=None: 1}
    with mock.patch.multiple(distributed, **unchanged, **gathering, **counts):
        yield


def _not_compiled(function: Callable | None = None, *args: Any, **options: Any) -> Callable:
    """`torch.compile` as a call and as a decorator, without compiling: the numbers are those of eager execution."""
    return function if function is not None else lambda decorated: decorated
