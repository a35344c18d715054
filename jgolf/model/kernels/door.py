"""The door to every operation that has a kernel: which form a program gets depends on what it is lowered for.

A program that is lowered for NVIDIA GPUs gets the kernel, one for anything else the plain form, whatever the
process's default device is. Within a mesh (`jax.shard_map`) that is known while the program is traced; elsewhere both
forms are, and lowering picks one. A process without such a GPU does not trace kernels at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import jax

Choice = Literal["auto", "plain", "interpret"]
"""As the setting `model.kernels`."""

log = logging.getLogger("jgolf")


@cache
def gpu() -> jax.Device | None:
    """An NVIDIA GPU of this process, if it has one; all of a process's are alike."""
    try:
        return jax.local_devices(backend="cuda")[0]
    except RuntimeError:  # no such platform here
        return None


@cache
def triton() -> ModuleType | None:
    """Pallas's backend for kernels on tiles in registers; JAX has announced its end, so it may be missing."""
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return None
    return triton


def is_hopper() -> bool:
    """Whether this process's GPUs have Hopper's matrix units."""
    return gpu() is not None and getattr(gpu(), "compute_capability", "") == "9.0"


def hopper_module(name: str) -> ModuleType | None:
    """That module of this package on a Hopper GPU; it takes most of a second to import, which others are spared."""
    return import_module(f"jgolf.model.kernels.{name}") if is_hopper() else None


def unless_batched(kernel: Callable, plain: Callable) -> Callable:
    """`kernel`, which cannot be batched itself, as a function that is `plain` where it is."""
    function = jax.custom_batching.custom_vmap(kernel)
    function.def_vmap(partial(_each, plain))
    return function


def _each(function, axis_size, batched, *arguments):
    """`function` for every one of a batch, as `custom_vmap` asks for it."""
    results = jax.vmap(function, [0 if one else None for one in batched], axis_size=axis_size)(*arguments)
    return results, jax.tree.map(lambda _: True, results)


def choose(
    choice: Choice, operation: str, plain: Callable, kernel: Callable[..., Any], obstacle: str | None, *arguments: Any
) -> Any:
    """plain(*arguments), or kernel(interpret, *arguments) where the program is lowered for an NVIDIA GPU.

    Args:
      choice: what is allowed.
      operation: its name, for the note that its kernel is not used.
      plain: the operation as ordinary JAX.
      kernel: the same, with a derivative of its own; takes whether to run in an interpreter first.
      obstacle: what keeps the kernel from these arguments; said once. None: nothing does.
      arguments: arrays.
    """
    if choice == "interpret" and obstacle is None:
        return kernel(True, *arguments)
    if choice != "auto" or gpu() is None:
        return plain(*arguments)
    kind = _kind_of_device()
    if kind is not None and kind != gpu().device_kind:
        return plain(*arguments)
    if obstacle is not None:
        note(f"{operation}: without its kernel, since {obstacle}")
        return plain(*arguments)
    if kind is not None:
        return kernel(False, *arguments)
    # Both forms' derivatives share what they keep; a checkpoint keeps arguments only, so the kernel's has nothing more.
    return jax.lax.platform_dependent(
        *arguments, default=jax.checkpoint(plain), cuda=lambda *arguments: kernel(False, *arguments)
    )


def _kind_of_device() -> str | None:
    """What the program that is being traced is for; None where no mesh around it tells."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return None if device is None else device.device_kind


@cache
def note(text: str) -> None:
    """Says once, on the error output, that a slower way is taken, and why."""
    log.warning(text)
