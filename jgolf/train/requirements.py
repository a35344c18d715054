"""The packages that a run was made with, as pip takes them: each pinned to the version that is installed."""

from __future__ import annotations

import platform
import re
from importlib import metadata

CORE_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "zstandard")
PACKAGES = (
    *CORE_PACKAGES,
    *("dacite", "jaxtyping", "rich", "tyro", "constriction", "jax-linear-attention"),
)
"""What training, exports and scoring may import."""
CUDA_PLUGIN = "jax-cuda13-plugin"


def pinned() -> str:
    """A line for each of PACKAGES that is installed, and for JAX on NVIDIA GPUs and its libraries where they are."""
    names = [*PACKAGES]
    if _version(CUDA_PLUGIN):
        required = metadata.requires(CUDA_PLUGIN) or []
        names += [CUDA_PLUGIN, *sorted({re.match(r"[\w.-]+", line)[0] for line in required} - {*names})]
    found = [f"{name}=={version}" for name in names if (version := _version(name))]
    return "\n".join([f"# Python {platform.python_version()}", *found, ""])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
