"""A small `pr592` on text from this Python's own library: minutes on two cores, nothing to download."""

from jgolf.config import Config, load
from jgolf.config.parts import compose


def config() -> Config:
    return compose(
        "demo",
        load("pr592"),
        {
            "model.num_layers": 4,
            "model.model_dim": 128,
            "model.num_heads": 4,
            "model.num_kv_heads": 2,
            "model.bigram_buckets": 2048,
            "model.bigram_dim": 64,
            "model.xsa_layers": (-1,),
            "model.value_embedding_layers": (-1,),
            "model.value_embedding_dim": 64,
            "model.compute_dtype": "float32",
            "optim.muon.momentum": 0.95,
            "optim.muon.momentum_warmup_steps": 100,
            "optim.muon.newton_schulz_dtype": "float32",
            "train.steps": 140,
            "train.time_cap_s": 0.0,
            "train.warmdown_steps": 110,
            "train.batch_tokens": 4096,
            "train.seq_len": 256,
            "train.num_ranks": 1,
            "train.validate_every": 100,
            "train.log_every": 20,
            "average.ema_decay": 0.95,
            "average.swa_every": 10,
            "quantize.small_size": 8192,
            "quantize.scale_floor": False,
            "data.dir": "data/demo",
            "data.build_demo": True,
            "evaluate.batch_tokens": 8192,
        },
    )
