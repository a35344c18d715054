"""Pull request #592: 12 layers, Int5 MLP, BigramHash 10,240, EMA; 1.1476 BPB on eight H100."""

from jgolf.config import Config, load
from jgolf.config.parts import (
    BIGRAM_HASH,
    EMA,
    GRADIENT_CLIP,
    INT5_MLP,
    LATE_QAT,
    LN_SCALE,
    MLP_3X,
    MOMENTUM_WARMUP,
    ORTHO_INIT,
    PARTIAL_ROPE,
    ROPE_RESCALING,
    SMEAR_GATE,
    VALUE_EMBEDDING,
    WARMDOWN,
    WEIGHT_DECAY,
    XSA,
    compose,
)


def config() -> Config:
    return compose(
        "pr592",
        load("baseline"),
        BIGRAM_HASH,
        SMEAR_GATE,
        XSA,
        PARTIAL_ROPE,
        ROPE_RESCALING,
        VALUE_EMBEDDING,
        LN_SCALE,
        MLP_3X,
        ORTHO_INIT,
        MOMENTUM_WARMUP,
        WEIGHT_DECAY,
        GRADIENT_CLIP,
        WARMDOWN,
        EMA,
        LATE_QAT,
        INT5_MLP,
        {
            "model.num_layers": 12,
            "optim.muon.learning_rate": 0.025,
            "optim.muon.momentum": 0.99,
            "optim.muon.momentum_warmup_start": 0.92,
            "optim.adamw.token_learning_rate": 0.035,
            "optim.adamw.scalar_learning_rate": 0.025,
            "train.batch_tokens": 786_432,
            "train.seq_len": 2048,
            "average.swa_start": 0.2,  # beside the EMA
            "quantize.attention": "int6",
        },
    )
