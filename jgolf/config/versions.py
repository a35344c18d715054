"""Configs as files hold them: a version, and what files from before there was one left unsaid.

Up to then the defaults were the recipe `pr592`, so a setting that such a file lacks was pr592's. In a file with a
version, and for settings that came later, a setting that is absent is off: it has its default.
"""

from __future__ import annotations

from typing import Any

from jgolf.errors import ConfigError
from jgolf.reading import excerpt

VERSION = 1
KEY = "version"

UNVERSIONED: dict[str, Any] = {
    "name": "pr592",
    "model": {
        "vocab_size": 1024,
        "num_layers": 12,
        "model_dim": 512,
        "num_heads": 8,
        "num_kv_heads": 4,
        "mlp_multiple": 3.0,
        "tie_embeddings": True,
        "bigram_buckets": 10240,
        "bigram_dim": 128,
        "smear_gate": True,
        "unet_skips": True,
        "xsa_layers": (8, 9, 10, 11),
        "rope_dims": 16,
        "rope_base": 10000.0,
        "rope_original_length": 1024,
        "value_embedding_layers": (10, 11),
        "value_embedding_dim": 128,
        "ln_scale": True,
        "q_gain": 1.5,
        "logit_softcap": 30.0,
        "orthogonal_init": True,
        "embedding_init_std": 0.005,
        "compute_dtype": "bfloat16",
        "attention": "auto",
    },
    "optim": {
        "muon": {
            "learning_rate": 0.025,
            "momentum": 0.99,
            "momentum_warmup_start": 0.92,
            "momentum_warmup_steps": 1500,
            "weight_decay": 0.04,
            "newton_schulz_steps": 5,
            "newton_schulz_dtype": "bfloat16",
        },
        "adamw": {
            "token_learning_rate": 0.035,
            "scalar_learning_rate": 0.025,
            "matrix_learning_rate": 0.002,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-08,
            "weight_decay": 0.04,
        },
        "matrices": "muon",
        "grad_clip": 0.3,
    },
    "train": {
        "steps": 20000,
        "time_cap_s": 600.0,
        "warmdown_steps": 3500,
        "batch_tokens": 786432,
        "seq_len": 2048,
        "num_ranks": 8,
        "accumulation": 1,
        "seed": 1337,
        "validate_every": 500,
        "log_every": 100,
        "checkpoint_every_steps": 0,
        "checkpoint_every_s": 120.0,
        "keep_checkpoints": 2,
    },
    "average": {
        "ema_decay": 0.997,
        "swa_start": 0.2,
        "swa_every": 50,
        "export": "ema",
    },
    "quantize": {
        "mlp": "int5",
        "attention": "int6",
        "embedding": "fp16",
        "table": "int8",
        "control": "fp32",
        "small": "fp16",
        "small_size": 65536,
        "clip_percentiles": (0.999, 0.9995, 0.9999, 0.99999, 1.0),
        "table_clip_percentile": 0.9999984,
        "scale_floor": True,
        "late_qat_start": 0.15,
    },
    "data": {
        "dir": "data/datasets/fineweb10B_sp1024",
        "tokenizer": "",
        "build_demo": False,
    },
    "evaluate": {
        "batch_tokens": 65536,
        "sliding_stride": 64,
        "max_tokens": 0,
    },
}
"""Every setting of the time before versions, with pr592's value. It describes old files: never change it."""


def complete(values: dict[str, Any], version: Any, part: str = "") -> dict[str, Any]:
    """Settings as a file holds them, and what it left unsaid if it is older than versions.

    Args:
      values: plain dictionaries, without the version.
      version: what stands under KEY; 0 where nothing does.
      part: of what part of a config they are, such as "model"; of all of it by default.

    Raises:
      ConfigError: the version is none that this jgolf can read.
    """
    if type(version) is not int or not 0 <= version <= VERSION:
        raise ConfigError(f"its version is {excerpt(version)}, expected at most {VERSION}: use the jgolf that wrote it")
    if version:
        return values
    filled = _filled(values, UNVERSIONED[part] if part else UNVERSIONED)
    return _todays(part, filled)


def _todays(part: str, values: Any) -> Any:
    """Unversioned settings by the names and in the places that they have today."""
    if not isinstance(values, dict):
        return values  # for the reader to refuse
    found = dict(values)
    if part == "":
        found |= {name: _todays(name, found[name]) for name in ("model", "optim")}
    elif part == "optim":
        found["adamw"] = _todays("adamw", found["adamw"])
    elif part == "model":
        attention = found.pop("attention")  # the kernels stood and fell with attention's
        found.setdefault("kernels", "plain" if attention == "xla" else "auto")
    elif part == "adamw" and "weight_decay" in found:
        decay = found.pop("weight_decay")  # an untied head was one of the scalars
        groups = {f"{group}_weight_decay": decay for group in ("token", "scalar", "head", "matrix")}
        found = {**groups, "head_learning_rate": found["scalar_learning_rate"], **found}
    return found


def _filled(values: dict[str, Any], missing: dict[str, Any]) -> dict[str, Any]:
    """`values`, and of `missing` what they lack, within nested objects, too."""
    found = {**missing, **values}
    for name, value in missing.items():
        if isinstance(value, dict) and isinstance(found[name], dict):
            found[name] = _filled(found[name], value)
    return found
