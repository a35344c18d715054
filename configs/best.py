"""What was best, part by part, for 180 s on one H100 and text that is seen several times: `pr1855` without its loop.

docs/recipe.md has the evidence for each of these settings.
"""

from jgolf.config import Config, load
from jgolf.config.parts import LOOP, compose


def config() -> Config:
    return compose(
        "best",
        load("pr1855"),
        LOOP.off,
        {
            "optim.muon.learning_rate": 0.018,
            "optim.muon.weight_decay": 0.15,
            "optim.adamw.token_learning_rate": 0.021,
            "optim.adamw.token_weight_decay": 0.15,
            "train.time_cap_s": 180.0,
            "train.batch_tokens": 65_536,
            "train.seq_len": 4096,
            "train.num_ranks": 1,
            "train.shuffle_documents": True,
            "train.validate_every": 0,
            "train.checkpoint_every_s": 0.0,
            "average.ema_decay": 0.993,
            "evaluate.adapted.phases": 0,
            "evaluate.adapted.chunk": 64,
            "evaluate.hints.min_count": 1,
            "data.dir": "data/best",
        },
    )
