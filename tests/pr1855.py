"""The recipe of pull request #1855 at the size of the numbers that its script gave, and those numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jgolf.config import (
    AdamWConfig,
    AverageConfig,
    Config,
    ModelConfig,
    MuonConfig,
    OptimConfig,
    TrainConfig,
    load,
)

FOLDER = Path(__file__).parent / "golden" / "pr1855"
SETTINGS = json.loads((FOLDER / "config.json").read_text())
"""By the script's own names."""


def model_of(settings: dict) -> ModelConfig:
    """The network that the script's own settings make, in float32."""
    return ModelConfig(
        vocab_size=settings["vocab_size"],
        num_layers=settings["num_layers"],
        model_dim=settings["model_dim"],
        num_heads=settings["num_heads"],
        num_kv_heads=settings["num_kv_heads"],
        mlp_multiple=settings["mlp_mult"],
        activation_slope=0.5,
        tie_embeddings=True,
        gated_smear=True,
        unet_skips=True,
        skip_gates=True,
        loop_layers=tuple(range(settings["loop_start"], settings["loop_end"] + 1)),
        num_loops=settings["num_loops"],
        lanes_from=settings["parallel_start_layer"],
        xsa_layers=tuple(range(settings["num_layers"] - settings["xsa_last_n"], settings["num_layers"])),
        rope_dims=settings["rope_dims"],
        rope_frequency_dtype="bfloat16",
        attention_gate=True,
        attention_gate_scale=settings["sparse_attn_gate_scale"],
        gate_window=settings["gate_window"],
        ln_scale=True,
        q_gain=settings["qk_gain_init"],
        logit_softcap=settings["logit_softcap"],
        orthogonal_init=True,
        compute_dtype="float32",
        kernels="plain",
    )


MODEL = model_of(SETTINGS)
CONFIG = Config(
    model=MODEL,
    optim=OptimConfig(
        matrices="muon",
        muon=MuonConfig(
            learning_rate=SETTINGS["matrix_lr"],
            momentum=SETTINGS["muon_momentum"],
            momentum_warmup_start=SETTINGS["muon_momentum_warmup_start"],
            momentum_warmup_steps=SETTINGS["muon_momentum_warmup_steps"],
            weight_decay=SETTINGS["muon_wd"],
            row_normalization=SETTINGS["muon_row_normalize"],
            newton_schulz_coefficients="polar_express",
            newton_schulz_steps=SETTINGS["muon_backend_steps"],
            newton_schulz_dtype="float32",
        ),
        adamw=AdamWConfig(
            token_learning_rate=SETTINGS["tied_embed_lr"],
            token_weight_decay=SETTINGS["embed_wd"],
            scalar_learning_rate=SETTINGS["scalar_lr"],
            scalar_weight_decay=SETTINGS["adam_wd"],
            beta1=SETTINGS["beta1"],
            beta2=SETTINGS["beta2"],
            epsilon=SETTINGS["adam_eps"],
        ),
        grad_clip=SETTINGS["grad_clip_norm"],
        clip="rank",
    ),
    train=TrainConfig(
        steps=SETTINGS["iterations"],
        warmdown_fraction=SETTINGS["warmdown_frac"],
        learning_rate_floor=SETTINGS["min_lr"],
        loop_start_fraction=SETTINGS["enable_looping_at"],
        batch_tokens=SETTINGS["train_batch_tokens"],
        num_ranks=SETTINGS["world_size"],
        accumulation=SETTINGS["grad_accum_steps"],
        seq_len=SETTINGS["train_seq_len"],
        documents=True,
    ),
    average=AverageConfig(ema_decay=SETTINGS["ema_decay"]),
)
RECORD = load("pr1855")
"""The recipe in its real size."""


def arrays_of(file: str, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a file whose names begin with `prefix`, by the rest of their names."""
    with np.load(FOLDER / file) as arrays:
        return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
