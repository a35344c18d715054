"""How programs are compiled: XLA's options, and the cache that keeps compiled programs for the next start."""

from __future__ import annotations

import os
from pathlib import Path

import jax

GPU_OPTIONS: dict[str, bool | str] = {
    # cuBLAS has been as fast in every product of the network, and trying the alternatives takes 10 s.
    "xla_gpu_enable_triton_gemm": False,
}
NO_GRAPHS = {"xla_gpu_enable_command_buffer": ""}
"""Kernels are started one by one: where they are long, bringing CUDA graphs up to date takes longer than that."""


def options(long_kernels: bool = False) -> dict[str, bool | str]:
    """XLA's options for this machine, as `jax.jit` and `Lowered.compile` take them (`compiler_options`).

    Args:
      long_kernels: the device has more to do in most kernels than the host to start them.
    """
    if jax.default_backend() != "gpu":
        return {}
    return GPU_OPTIONS | NO_GRAPHS if long_kernels else GPU_OPTIONS


def keep_programs() -> None:
    """Keeps what is compiled for a GPU, so that the next start of the same program takes seconds.

    The folder is that of `JAX_COMPILATION_CACHE_DIR`, or `jgolf` in the user's cache folder.
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off. On a CPU nothing is kept: programs compiled for
    one processor may not run on another that shares the folder.
    """
    if jax.default_backend() != "gpu":
        return
    if jax.config.jax_compilation_cache_dir is None:
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(user_cache / "jgolf"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
