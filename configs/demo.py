"""A small model on text from this Python's own library: minutes on two cores, nothing to download."""

from jgolf.config import (
    AverageConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    MuonConfig,
    OptimConfig,
    QuantizeConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="demo",
        model=ModelConfig(
            num_layers=4,
            model_dim=128,
            num_heads=4,
            num_kv_heads=2,
            bigram_buckets=2048,
            bigram_dim=64,
            xsa_layers=(3,),
            value_embedding_layers=(3,),
            value_embedding_dim=64,
            compute_dtype="float32",
        ),
        optim=OptimConfig(muon=MuonConfig(momentum=0.95, momentum_warmup_steps=100, newton_schulz_dtype="float32")),
        train=TrainConfig(
            steps=200,
            time_cap_s=0.0,
            warmdown_steps=160,
            batch_tokens=4096,
            seq_len=256,
            num_ranks=1,
            validate_every=100,
            log_every=20,
        ),
        average=AverageConfig(ema_decay=0.95, swa_every=10),
        quantize=QuantizeConfig(small_size=8192, scale_floor=False),
        data=DataConfig(dir="data/demo", build_demo=True),
        evaluate=EvaluateConfig(batch_tokens=8192),
    )
