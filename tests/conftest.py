"""How the tests compile, and the PyTorch reference's numbers as they read them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# Before JAX starts, here and in the processes that tests start: programs of tests run for milliseconds and compile for
# seconds, many of them more than once, so they are compiled simply, and kept until the end.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
OWN_PROGRAMS = Path(tempfile.gettempdir()) / f"jgolf-tests-{os.getpid()}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(OWN_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.config import ModelConfig
from jgolf.model.functional import Params
from jgolf.rules import path_of_torch_name, rule_of

GOLDEN = Path(__file__).parent / "golden"

TINY = ModelConfig(
    vocab_size=128,
    num_layers=4,
    model_dim=64,
    num_heads=4,
    num_kv_heads=2,
    bigram_buckets=97,
    bigram_dim=16,
    xsa_layers=(2, 3),
    rope_dims=8,
    value_embedding_dim=16,
    value_embedding_layers=(2, 3),
    compute_dtype="float32",
)


def pytest_unconfigure():
    shutil.rmtree(OWN_PROGRAMS, ignore_errors=True)


def params_of(arrays: Mapping[str, np.ndarray], prefix: str) -> Params:
    """The arrays called `prefix` + a PyTorch name, under our paths and our way round."""
    params = {}
    for name in arrays:
        if name.startswith(prefix):
            path = path_of_torch_name(name.removeprefix(prefix))
            params[path] = jnp.asarray(arrays[name].T if rule_of(path).transposed else arrays[name])
    return params


def relative_distances(found: Params, expected: Params) -> dict[str, float]:
    """‖found − expected‖ / ‖expected‖ of each parameter."""
    assert found.keys() == expected.keys()
    norm = np.linalg.norm
    return {path: float(norm(found[path] - expected[path]) / max(norm(expected[path]), 1e-30)) for path in expected}


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return TINY
