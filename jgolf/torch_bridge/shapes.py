"""What the shapes of a checkpoint's tensors tell about its model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jgolf.errors import ArtifactError
from jgolf.torch_bridge import names

Shape = tuple[int, ...]

# Size → the parameters, and the axis of each, that have it: most of them must be right.
SIZES = {
    "vocab_size": (("embed/embedding", 0), ("head/kernel", 1), ("value_embed/embedding", 0)),
    "model_dim": (
        ("blocks/{}/attn_scale", 0),
        ("blocks/{}/mlp_scale", 0),
        ("blocks/{}/attn/q_proj/kernel", 0),
        ("blocks/{}/mlp/up_proj/kernel", 0),
        ("embed/embedding", 1),
    ),
    "kv_dim": (("blocks/{}/attn/k_proj/kernel", 1), ("blocks/{}/attn/v_proj/kernel", 1)),
    "mlp_dim": (("blocks/{}/mlp/up_proj/kernel", 1), ("blocks/{}/mlp/down_proj/kernel", 0)),
    "num_heads": (("blocks/{}/attn/q_gain", 0), ("blocks/{}/attn/gate", 0)),
    "gate_window": (("blocks/{}/attn/gate", 1), ("gated_smear/gate", 1)),
    "num_skips": (("skip_weights", 0), ("skip_gates", 0)),
    "bigram_buckets": (("bigram/embedding", 0),),
    "bigram_dim": (("bigram/embedding", 1), ("bigram/proj/kernel", 0)),
    "value_embedding_dim": (("value_embed/embedding", 1), ("value_embed/proj/kernel", 0)),
}
FEATURES = {
    "smear_gate": "smear/gate",
    "unet_skips": "skip_weights",
    "q_gain": "blocks/{}/attn/q_gain",
    "gated_smear": "gated_smear/",
    "skip_gates": "skip_gates",
    "attention_gate": "blocks/{}/attn/gate",
    "lanes": "lanes/",
    "bigram": "bigram/",
    "value_embedding": "value_embed/",
    "head": "head/kernel",
}


@dataclass(frozen=True)
class Told:
    """A size or a feature, and the tensor that tells it."""

    value: Any
    by: str


def told_by(found: Mapping[str, Shape], source: str) -> dict[str, Told]:
    """Sizes (where any tensor tells them), features (always), `num_layers` and `num_value_layers`.

    Args:
      found: path → shape of each parameter.
      source: what they were read from, for the error.

    Raises:
      ArtifactError: there is no block.
    """
    told = {}
    for size, places in SIZES.items():
        votes = [(found[path][axis], path) for path, axis in _places(found, places) if axis < len(found[path])]
        if votes:
            value, _ = Counter(value for value, _ in votes).most_common(1)[0]
            told[size] = Told(value, _shown(found, next(path for vote, path in votes if vote == value)))
    for feature, prefix in FEATURES.items():
        path = next((path for path in found if re.match(_pattern(prefix), path)), None)
        absent = f"there is no {_torch_name(prefix)}"
        told[feature] = Told(path is not None, _shown(found, path) if path else absent)
    for count, prefix in (("num_layers", "blocks/"), ("num_value_layers", "value_embed/layer_scales/")):
        numbers = {int(match[1]): path for path in found if (match := re.match(rf"{prefix}(\d+)", path))}
        last = max(numbers, default=-1)
        by = _shown(found, numbers[last]) if numbers else f"there is no {_torch_name(prefix)}"
        told[count] = Told(last + 1, by)
    if not told["num_layers"].value:
        raise ArtifactError(f"{source}: no tensor of it is called blocks.…: not a checkpoint of this family of models")
    return told


def _places(found: Mapping[str, Shape], places: tuple[tuple[str, int], ...]) -> list[tuple[str, int]]:
    return [(path, axis) for template, axis in places for path in found if re.fullmatch(_pattern(template), path)]


def _pattern(template: str) -> str:
    return template.replace("{}", r"\d+")


def _shown(found: Mapping[str, Shape], path: str) -> str:
    return f"{names.torch_name(path)} {list(names.to_torch_shape(path, found[path]))}"


def _torch_name(prefix: str) -> str:
    return next(name for path, name in names.NAMES.items() if path.startswith(prefix)).format("N")
