"""A config small enough to compile in seconds, with every part of the recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jgolf import config as configs
from jgolf.bench import timing
from jgolf.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


@pytest.fixture(scope="session")
def nano() -> Config:
    model = ModelConfig(
        vocab_size=64,
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
    muon = dataclasses.replace(OptimConfig().muon, newton_schulz_dtype="float32", newton_schulz_steps=1)
    return Config(
        name="nano",
        model=model,
        optim=OptimConfig(muon=muon),
        train=TrainConfig(batch_tokens=512, seq_len=16, num_ranks=8),
        data=DataConfig(dir="no such folder"),
    )


@pytest.fixture
def nano_path(nano: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The config as a file, for commands that are not to take long."""
    monkeypatch.setattr(timing, "SAMPLE_S", 0.0)
    path = tmp_path / "nano.json"
    configs.write_json(nano, path)
    return str(path)
