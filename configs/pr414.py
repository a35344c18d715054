"""Pull request #414: 11 layers, Int6 everywhere, BigramHash 2,048; 1.1233 BPB on eight H100."""

from jgolf.config import Config, load
from jgolf.config.parts import compose


def config() -> Config:
    return compose(
        "pr414",
        load("pr592"),
        {"model.num_layers": 11, "model.bigram_buckets": 2048, "quantize.mlp": "int6"},
    )
