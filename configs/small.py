"""A `pr592` for a laptop's CPU, more of one than the demo: 1.7 million parameters, half an hour on two cores."""

from jgolf.config import Config, load
from jgolf.config.parts import compose


def config() -> Config:
    return compose(
        "small",
        load("demo"),
        {
            "model.vocab_size": 0,
            "model.model_dim": 192,
            "model.num_heads": 6,
            "model.num_kv_heads": 3,
            "model.xsa_layers": (-2, -1),
            "model.value_embedding_layers": (-2, -1),
            "train.steps": 20_000,
            "train.time_cap_s": 1800.0,
            "train.warmdown_steps": 0,
            "train.warmdown_fraction": 0.7,
            "train.validate_every": 200,
            "train.checkpoint_every_s": 30.0,
            "average.ema_decay": 0.97,
        },
    )
