"""Techniques by name, and recipes as compositions of them.

    config = compose("mine", load("baseline"), SMEAR_GATE, LAST_XSA, {"model.num_layers": 10})

The defaults of all settings leave every technique out. So a part is what a recipe sets to have a technique, and the
recipe without it has these settings' defaults back; that is what `jgolf sweep --ablate` trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jgolf.config.settings import Config
from jgolf.config.store import leaves, load_module, replace_all


@dataclass(frozen=True)
class Part:
    """A technique that a recipe may have.

    Attributes:
      name: as tables show it, and as `--techniques` takes it.
      settings: dotted name → value, what turns it on. Numbers may be others in a recipe that has it.
      instead: what a recipe has without it, where that is not the defaults of `settings`.
      exactly: those of `settings` whose other values are no such technique, such as another storage form.
    """

    name: str
    settings: Mapping[str, Any]
    instead: Mapping[str, Any] = field(default_factory=dict)
    exactly: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        replace_all(Config(), {**self.settings, **self.instead})  # an unknown name ends here

    @property
    def off(self) -> dict[str, Any]:
        """Dotted name → value, what leaves the technique out of a recipe."""
        defaults = leaves(Config())
        return dict(self.instead) or {name: defaults[name] for name in self.settings}

    def is_in(self, config: Config) -> bool:
        """Whether a recipe has the technique: leaving it out changes something."""
        values = leaves(config)
        return all(values[name] == self.settings[name] for name in self.exactly) and self.left_out_of(config) != config

    def left_out_of(self, config: Config) -> Config:
        """The recipe without the technique."""
        return replace_all(config, self.off)


def compose(name: str, base: Config, *pieces: Part | Mapping[str, Any]) -> Config:
    """A recipe: another one, with techniques and with settings of its own, each over what stands before it.

    Args:
      name: what the recipe is called.
      base: what it builds on; `Config()` has no technique at all.
      *pieces: techniques, and dotted names of settings → values.

    Raises:
      ConfigError: a name is no setting's.
    """
    for piece in pieces:
        base = replace_all(base, piece.settings if isinstance(piece, Part) else piece)
    return replace_all(base, {"name": name})


BIGRAM_HASH = Part("BigramHash", {"model.bigram_buckets": 10_240})
SMEAR_GATE = Part("SmearGate", {"model.smear_gate": True})
XSA = Part("XSA", {"model.xsa_layers": (-4, -3, -2, -1)})
ROPE_RESCALING = Part("RoPE rescaling", {"model.rope_original_length": 1024})
PARTIAL_ROPE = Part("partial RoPE", {"model.rope_dims": 16})
VALUE_EMBEDDING = Part("value embedding", {"model.value_embedding_layers": (-2, -1)})
GATED_SMEAR = Part("gated SmearGate", {"model.gated_smear": True})
SKIP_GATES = Part("skip gates", {"model.skip_gates": True})
LOOP = Part("loop", {"model.loop_layers": (3, 4, 5), "train.loop_start_fraction": 0.35})
LANES = Part("two lanes", {"model.lanes_from": -3})
ATTENTION_GATE = Part("attention gate", {"model.attention_gate": True})
LEAKY_RELU = Part("leaky ReLU²", {"model.activation_slope": 0.5})
DOCUMENTS = Part("documents apart", {"train.documents": True})
UNET_SKIPS = Part(
    "U-Net skips", {"model.unet_skips": True}, instead={"model.unet_skips": False, "model.skip_gates": False}
)
LN_SCALE = Part("LN scale", {"model.ln_scale": True})
Q_GAIN = Part("q gain", {"model.q_gain": 1.5})
LOGIT_SOFTCAP = Part("logit softcap", {"model.logit_softcap": 30.0})
MLP_3X = Part("3× MLP", {"model.mlp_multiple": 3.0}, exactly=("model.mlp_multiple",))
TIED_EMBEDDINGS = Part("tied embeddings", {"model.tie_embeddings": True})
ORTHO_INIT = Part("OrthoInit", {"model.orthogonal_init": True})
MUON = Part("Muon", {"optim.matrices": "muon"}, exactly=("optim.matrices",))
ROW_NORMALIZATION = Part("row normalization", {"optim.muon.row_normalization": True})
NEURON_NORMALIZATION = Part("NorMuon", {"optim.muon.neuron_normalization": True})
LOOK_AHEAD = Part("look-ahead", {"optim.muon.look_ahead": 0.3})
CAUTIOUS_DECAY = Part("cautious decay", {"optim.cautious_decay": True})
POLAR_EXPRESS = Part("Polar Express", {"optim.muon.newton_schulz_coefficients": "polar_express"})
RANK_CLIP = Part("clip by rank", {"optim.clip": "rank"})
LEARNING_RATE_FLOOR = Part("learning-rate floor", {"train.learning_rate_floor": 0.1})
MOMENTUM_WARMUP = Part("momentum warm-up", {"optim.muon.momentum_warmup_steps": 1500})
WEIGHT_DECAY = Part(
    "weight decay",
    {
        "optim.muon.weight_decay": 0.04,
        "optim.adamw.token_weight_decay": 0.04,
        "optim.adamw.scalar_weight_decay": 0.04,
        "optim.adamw.matrix_weight_decay": 0.04,
    },
)
GRADIENT_CLIP = Part("gradient clip", {"optim.grad_clip": 0.3})
WARMDOWN = Part("warmdown", {"train.warmdown_steps": 3500})
WARMDOWN_FRACTION = Part("warmdown as a fraction", {"train.warmdown_fraction": 0.85})
EMA = Part(
    "EMA",
    {"average.ema_decay": 0.997, "average.export": "ema"},
    instead={"average.export": "raw"},  # the training is the same
    exactly=("average.export",),
)
LATE_QAT = Part("late QAT", {"quantize.late_qat_start": 0.15})
CLIP_SEARCH = Part("clip search", {"quantize.clip_percentiles": (0.999, 0.9995, 0.9999, 0.99999, 1.0)})
SIGMA_CLIPS = Part(
    "clips in sigmas",
    {
        "quantize.mlp_clip_sigmas": 11.5,
        "quantize.attention_clip_sigmas": 13.0,
        "quantize.embedding_clip_sigmas": 14.0,
        "quantize.table_clip_sigmas": 12.85,
    },
)
GPTQ = Part("GPTQ", {"quantize.gptq": True})
LQER = Part("LQER", {"quantize.lqer.rank": 4})
INT5_MLP = Part("Int5 MLP", {"quantize.mlp": "int5"}, instead={"quantize.mlp": "int6"}, exactly=("quantize.mlp",))

PARTS: tuple[Part, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Part))
"""Every part above, in this order."""


def known_parts(name: str = "") -> tuple[Part, ...]:
    """The parts above, and those of its own that a config's file has; `name` is as `jgolf.config.load` takes it."""
    own = vars(load_module(name)).values() if name and not name.endswith(".json") else ()
    parts = {part.name: part for part in (*PARTS, *own) if isinstance(part, Part)}
    return tuple(parts.values())
