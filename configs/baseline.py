"""The challenge's baseline: 9 layers, none of the additions; 1.2244 BPB on eight H100."""

from jgolf.config import Config
from jgolf.config.parts import (
    CLIP_SEARCH,
    LOGIT_SOFTCAP,
    MOMENTUM_WARMUP,
    MUON,
    Q_GAIN,
    TIED_EMBEDDINGS,
    UNET_SKIPS,
    WARMDOWN,
    compose,
)


def config() -> Config:
    return compose(
        "baseline",
        Config(),
        UNET_SKIPS,
        Q_GAIN,
        LOGIT_SOFTCAP,
        TIED_EMBEDDINGS,
        MUON,
        MOMENTUM_WARMUP,
        WARMDOWN,
        CLIP_SEARCH,
        {
            "model.vocab_size": 1024,
            "optim.muon.momentum_warmup_steps": 500,
            "train.time_cap_s": 600.0,
            "train.warmdown_steps": 1200,
            "train.num_ranks": 8,
            "quantize.table_clip_percentile": 0.9999984,
            "quantize.scale_floor": True,
        },
    )
