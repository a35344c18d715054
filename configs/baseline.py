"""The challenge's baseline: 9 layers, none of the additions; 1.2244 BPB on eight H100."""

from jgolf.config import (
    AdamWConfig,
    AverageConfig,
    Config,
    ModelConfig,
    MuonConfig,
    OptimConfig,
    QuantizeConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="baseline",
        model=ModelConfig(
            num_layers=9,
            mlp_multiple=2.0,
            bigram_buckets=0,
            smear_gate=False,
            xsa_layers=(),
            rope_dims=0,
            value_embedding_layers=(),
            ln_scale=False,
            orthogonal_init=False,
        ),
        optim=OptimConfig(
            muon=MuonConfig(
                learning_rate=0.04,
                momentum=0.95,
                momentum_warmup_start=0.85,
                momentum_warmup_steps=500,
                weight_decay=0.0,
            ),
            adamw=AdamWConfig(
                token_learning_rate=0.05,
                scalar_learning_rate=0.04,
                head_learning_rate=0.04,
                token_weight_decay=0.0,
                scalar_weight_decay=0.0,
                head_weight_decay=0.0,
                matrix_weight_decay=0.0,
            ),
            grad_clip=0.0,
        ),
        train=TrainConfig(batch_tokens=524_288, seq_len=1024, warmdown_steps=1200),
        average=AverageConfig(ema_decay=0.0, swa_start=0.0, export="raw"),
        quantize=QuantizeConfig(mlp="int8", attention="int8", late_qat_start=0.0),
    )
