"""How the tests compile, models and data that they share, and the PyTorch reference's numbers as they read them."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import gc
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

# Before JAX starts, here and in the processes that tests start: programs of tests run for milliseconds and compile for
# seconds, many of them more than once, so they are compiled simply, each by the one thread that its worker has a core
# for, and kept until the end.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if metadata.version("jaxlib").startswith("0.10."):  # a flag that is not known ends the process
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
OWN_PROGRAMS = Path(tempfile.gettempdir()) / f"jgolf-tests-{os.getpid()}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's and NumPy's: there are as many workers as cores
os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(OWN_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf import config as configs
from jgolf import files
from jgolf.config import ModelConfig
from jgolf.data.demo import build_demo
from jgolf.data.shards import write_shard
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.model.functional import Params
from jgolf.torch_bridge import names

gc.set_threshold(20_000, 20, 20)  # tracing makes objects by the hundred thousand, of which few are cyclic garbage
with contextlib.suppress(ImportError, AttributeError):
    # The parser reads the sources of the settings' classes with every command, which takes longer than all else in it.
    from tyro._docstrings import _ClassTokenization

    _ClassTokenization.make = staticmethod(functools.cache(_ClassTokenization.make))

GOLDEN = Path(__file__).parent / "golden"
RECIPE = configs.load("pr592")
RECIPE = dataclasses.replace(RECIPE, model=configs.resolved(RECIPE.model))
"""The recipe whose numbers the PyTorch reference gave; tests that want all of its parts begin with it."""

TINY = dataclasses.replace(
    RECIPE.model,
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
NANO = dataclasses.replace(
    RECIPE.model,
    vocab_size=320,
    num_layers=2,
    model_dim=32,
    num_heads=2,
    num_kv_heads=1,
    bigram_buckets=64,
    bigram_dim=16,
    xsa_layers=(1,),
    rope_dims=8,
    value_embedding_layers=(1,),
    value_embedding_dim=8,
    orthogonal_init=False,
    compute_dtype="float32",
)
"""Every part of the recipe, small enough to compile in seconds."""
SHALLOW = dataclasses.replace(NANO, num_layers=1, xsa_layers=(0,), value_embedding_layers=(0,))
"""NANO in half the time, without its skips, for what asks for parameters of every kind and not for depth."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each of xdist's workers whole files, as far as it goes: neighbours share fixtures and programs."""
    if config.getvalue("dist") == "load":
        from xdist.scheduler import WorkStealingScheduling

        return WorkStealingScheduling(config, log)


def pytest_unconfigure():
    shutil.rmtree(OWN_PROGRAMS, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> None:
    """Has the garbage collector pass over what earlier files left: JAX keeps millions of objects."""
    gc.collect()
    gc.freeze()


def params_of(arrays: Mapping[str, np.ndarray], prefix: str) -> Params:
    """The arrays called `prefix` + a PyTorch name, under our paths and our way round."""
    tensors = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    params, unknown = names.to_params(tensors)
    assert not unknown
    return {path: jnp.asarray(value) for path, value in params.items()}


def relative_distances(found: Params, expected: Params) -> dict[str, float]:
    """‖found − expected‖ / ‖expected‖ of each parameter."""
    assert found.keys() == expected.keys()
    norm, found, expected = np.linalg.norm, jax.device_get(found), jax.device_get(expected)
    return {path: float(norm(found[path] - expected[path]) / max(norm(expected[path]), 1e-30)) for path in expected}


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return TINY


def random_words(seed: int) -> list[str]:
    """A hundred texts of thirty words."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghijklmnop"), size=size)) for size in random.integers(2, 9, 500)]
    return [" ".join(random.choice(words, size=30)) for _ in range(100)]


@pytest.fixture(scope="session")
def nano_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards, 60,000 tokens to train on and 6,000 to validate on, and a tokenizer of 320 pieces."""
    folder = tmp_path_factory.mktemp("nano-data")
    files.write_bytes(folder / "nano.model", train_tokenizer(random_words(0), NANO.vocab_size))
    random = np.random.default_rng(1)
    for split, size in (("train", 60_000), ("val", 6_000)):
        tokens = 4 + random.geometric(0.03, size)
        write_shard(folder / f"nano_{split}_000000.bin", np.minimum(tokens, NANO.vocab_size - 1))
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Has a file or folder of this name made by the first of xdist's workers that asks for it; all of them read it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def demo_dir(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The demo corpus with its tokenizer and shards."""
    return made_once("demo", build_demo)
