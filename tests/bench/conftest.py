"""A config small enough to compile in seconds, with every part of the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jgolf import config as configs
from jgolf.bench import timing
from jgolf.config import Config, DataConfig
from tests.conftest import RECIPE, SHALLOW


@pytest.fixture(scope="package", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs are compiled once for all these tests, and not made fast."""
    cache = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in cache}
    for name, value in ({"jax_disable_most_optimizations": True} | cache).items():
        jax.config.update(name, value)
    yield
    for name, value in ({"jax_disable_most_optimizations": False} | before).items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def nano() -> Config:
    muon = dataclasses.replace(RECIPE.optim.muon, newton_schulz_dtype="float32", newton_schulz_steps=1)
    return dataclasses.replace(
        RECIPE,
        name="nano",
        model=SHALLOW,
        optim=dataclasses.replace(RECIPE.optim, muon=muon),
        train=dataclasses.replace(RECIPE.train, batch_tokens=512, seq_len=16, num_ranks=8),
        data=DataConfig(dir="no such folder"),
    )


@pytest.fixture
def nano_path(nano: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The config as a file, for commands that are not to take long."""
    monkeypatch.setattr(timing, "SAMPLE_S", 0.0)
    path = tmp_path / "nano.json"
    configs.write_json(nano, path)
    return str(path)
