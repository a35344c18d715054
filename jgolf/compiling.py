"""How programs are compiled: XLA's options, where what it makes is kept for the next start, and a head start."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import jax

Options = dict[str, bool | int | str]
GPU_OPTIONS: Options = {
    # cuBLAS has been as fast in every product of the network, and trying the alternatives takes 10 s.
    "xla_gpu_enable_triton_gemm": False,
}
NO_GRAPHS: Options = {"xla_gpu_enable_command_buffer": ""}
"""Kernels are started one by one: where they are long, bringing CUDA graphs up to date takes longer than that."""
OVERLAP: Options = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Less than a layer's gradients: combined, those of several layers would wait for the last of them.
    "xla_gpu_all_reduce_combine_threshold_bytes": 1 << 20,
    "xla_gpu_all_gather_combine_threshold_bytes": 1 << 20,
}
"""What devices exchange travels while they compute: the gradients of a layer, and Muon's updates of a shape."""


def options(long_kernels: bool = False, overlap: bool = False) -> Options:
    """XLA's options for this machine, as `jax.jit` and `Lowered.compile` take them (`compiler_options`).

    Args:
      long_kernels: the device has more to do in most kernels than the host to start them.
      overlap: several devices exchange a layer's gradients at a time (`jgolf.train.exchange`).
    """
    if jax.default_backend() != "gpu":
        return {}
    return GPU_OPTIONS | (NO_GRAPHS if long_kernels else {}) | (OVERLAP if overlap else {})


def keep_programs() -> None:
    """Keeps what is compiled for a GPU, so that the next start of the same program takes seconds.

    That is JAX's cache, what XLA found out about the speed of its kernels included, and whole programs beside it
    (`jgolf.programs`). The folder is that of `JAX_COMPILATION_CACHE_DIR`, or `jgolf` in the user's cache folder.
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off. On a CPU nothing is kept, unless that
    variable names a folder: programs compiled for one processor may not run on another that shares it.
    """
    if jax.default_backend() != "gpu":
        return
    if jax.config.jax_compilation_cache_dir is None:
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(user_cache / "jgolf"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def wake_devices() -> None:
    """Starts the devices' drivers in a thread, while this one goes on importing what trains; before JAX is used.

    Where that fails, whoever uses JAX first is told.
    """
    threading.Thread(target=_devices, name="devices").start()


def _devices() -> None:
    with contextlib.suppress(RuntimeError):
        jax.local_devices()
