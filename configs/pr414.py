"""Pull request #414: 11 layers, Int6 everywhere, BigramHash 2,048; 1.1233 BPB on eight H100."""

from jgolf.config import Config, ModelConfig, QuantizeConfig


def config() -> Config:
    return Config(
        name="pr414",
        model=ModelConfig(
            num_layers=11,
            bigram_buckets=2048,
            xsa_layers=(7, 8, 9, 10),
            value_embedding_layers=(9, 10),
        ),
        quantize=QuantizeConfig(mlp="int6", embedding="int8", symmetric_levels=True),
    )
