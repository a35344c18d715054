"""Every setting of a run, as a tree of frozen dataclasses.

A file in configs/ is a function `config()` that returns a `Config`; the command line overrides any
leaf by its dotted name. `validate` refuses combinations that make no sense before anything is
compiled. The values below are the recipe `pr592`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import dacite
import tyro

from jgolf import files
from jgolf.errors import ConfigError

StorageForm = Literal["int4", "int5", "int6", "int7", "int8", "fp16", "fp32"]
Average = Literal["raw", "ema", "swa", "ema+swa"]


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    vocab_size: int = 1024
    """Number of pieces of the tokenizer."""
    num_layers: int = 12
    """Blocks; the first half encode, the second half decode."""
    model_dim: int = 512
    """Width of the residual stream."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 4
    """Key/value heads; each serves num_heads / num_kv_heads query heads."""
    mlp_multiple: float = 3.0
    """Hidden width of the MLP as a multiple of model_dim."""
    tie_embeddings: bool = True
    """Use the token embedding as the output head."""
    bigram_buckets: int = 10240
    """Rows of the hashed bigram table; 0 leaves it out."""
    bigram_dim: int = 128
    """Width of the bigram table, projected to model_dim where they differ."""
    smear_gate: bool = True
    """Blend every position's embedding with the one before it."""
    unet_skips: bool = True
    """Add encoder outputs to the decoder layers, last in, first out."""
    xsa_layers: tuple[int, ...] = (8, 9, 10, 11)
    """Layers whose attention output loses its component along its own value (XSA)."""
    rope_dims: int = 16
    """Dimensions of each head that are rotated; 0 rotates all."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    rope_original_length: int = 1024
    """Sequences longer than this raise the rotary base."""
    value_embedding_layers: tuple[int, ...] = (10, 11)
    """Layers whose values receive the shared value embedding; none leaves it out."""
    value_embedding_dim: int = 128
    """Width of the value-embedding table."""
    ln_scale: bool = True
    """Scale each block's normalised inputs by 1 / sqrt(layer + 1)."""
    q_gain: float = 1.5
    """Initial gain of every query head; 0 leaves the gain out."""
    logit_softcap: float = 30.0
    """Logits are softcap * tanh(logits / softcap); 0 leaves them as they are."""
    orthogonal_init: bool = True
    """Orthogonal matrices at the start; otherwise normal with std 1 / sqrt(inputs)."""
    embedding_init_std: float = 0.005
    """Standard deviation of the token embedding at the start."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of matrix products and activations; parameters are always float32."""
    attention: Literal["auto", "cudnn", "xla"] = "auto"
    """Attention kernel; auto takes cuDNN on NVIDIA GPUs with bfloat16 and XLA elsewhere."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Width of all keys, or all values, of one position."""
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP."""
        return int(self.mlp_multiple * self.model_dim)

    @property
    def num_encoder_layers(self) -> int:
        """Layers whose outputs are kept for the decoder."""
        return self.num_layers // 2


@dataclass(frozen=True)
class MuonConfig:
    """Muon: momentum, then orthogonalization, for the matrices."""

    learning_rate: float = 0.025
    """Learning rate before the schedule's multiplier."""
    momentum: float = 0.99
    """Momentum after its warm-up."""
    momentum_warmup_start: float = 0.92
    """Momentum at step 0."""
    momentum_warmup_steps: int = 1500
    """Steps over which the momentum rises linearly; 0 starts at its full value."""
    weight_decay: float = 0.04
    """Decoupled weight decay."""
    newton_schulz_steps: int = 5
    """Iterations of the orthogonalization."""
    newton_schulz_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type in which the iterations run."""


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW for the tables, vectors and scalars."""

    token_learning_rate: float = 0.035
    """Learning rate of the embedding tables before the schedule's multiplier."""
    scalar_learning_rate: float = 0.025
    """Learning rate of everything else that Muon does not update."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.04
    """Decoupled weight decay."""


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated."""

    muon: MuonConfig = field(default_factory=MuonConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    grad_clip: float = 0.3
    """Largest global norm of the gradients; 0 does not clip."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batches and schedule of a run."""

    steps: Annotated[int, tyro.conf.arg(aliases=["--steps"])] = 20000
    """Optimizer steps, unless the time cap comes first."""
    time_cap_s: float = 600.0
    """Training time in seconds after which the run ends; 0 for no cap."""
    warmdown_steps: int = 3500
    """Last steps, or their worth of time under a cap, in which the learning rate falls to 0."""
    batch_tokens: int = 786_432
    """Tokens of one optimizer step, over all devices."""
    seq_len: int = 2048
    """Tokens of one sequence."""
    num_ranks: int = 8
    """Runs of consecutive tokens that a micro-step takes: the order of the data, not the number of devices."""
    accumulation: int = 1
    """Micro-steps of one optimizer step."""
    seed: Annotated[int, tyro.conf.arg(aliases=["--seed"])] = 1337
    """Seed of the initial parameters."""
    validate_every: int = 500
    """Steps between validations; 0 validates at the start and the end only."""
    log_every: int = 100
    """Steps between log lines (the first ten are always logged)."""
    checkpoint_every_steps: int = 0
    """Steps between checkpoints; 0 for none by steps."""
    checkpoint_every_s: float = 120.0
    """Seconds between checkpoints; 0 for none by time."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept."""

    @property
    def run_tokens(self) -> int:
        """Inputs in one run of consecutive tokens, m in the definition of the batch order."""
        return self.batch_tokens // (self.num_ranks * self.accumulation)


@dataclass(frozen=True)
class AverageConfig:
    """Averages of the parameters over training."""

    ema_decay: float = 0.997
    """Decay of the exponential moving average, every step; 0 leaves it out."""
    swa_start: float = 0.2
    """SWA sums parameters while the learning-rate multiplier is below this; 0 leaves it out."""
    swa_every: int = 50
    """Steps between two parameter sets of the SWA."""
    export: Average = "ema"
    """The weights that are exported unless the command line says otherwise."""


@dataclass(frozen=True)
class QuantizeConfig:
    """Storage of the exported weights."""

    mlp: StorageForm = "int5"
    """MLP matrices."""
    attention: StorageForm = "int6"
    """Attention matrices and table projections."""
    embedding: StorageForm = "fp16"
    """The token embedding and an untied head."""
    table: StorageForm = "int8"
    """Bigram and value tables."""
    control: StorageForm = "fp32"
    """Vectors and scalars."""
    small: StorageForm = "fp16"
    """Matrices and tables of at most small_size values."""
    small_size: int = 65_536
    """See small."""
    clip_percentiles: tuple[float, ...] = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
    """Quantiles of a row's magnitudes tried as its clip; the best for the whole matrix is taken."""
    table_clip_percentile: float = 0.9999984
    """Quantile of a table row's magnitudes at which Int8 tables are clipped."""
    scale_floor: bool = True
    """Keep every row's step at 1 / levels or more, as the reference does."""
    late_qat_start: float = 0.15
    """Train on quantized weights while the learning-rate multiplier is below this; 0 never does."""


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens are."""

    dir: Annotated[str, tyro.conf.arg(aliases=["--data"])] = "data/datasets/fineweb10B_sp1024"
    """Folder of the shards, *_train_*.bin and *_val_*.bin."""
    tokenizer: Annotated[str, tyro.conf.arg(aliases=["--tokenizer"])] = ""
    """SentencePiece model; empty takes the only *.model in dir, or in its ../../tokenizers."""
    build_demo: bool = False
    """Build the demo corpus in dir where it is missing."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How validation is scored."""

    batch_tokens: int = 65_536
    """Tokens scored at once on each device."""
    sliding_stride: int = 64
    """Tokens between the starts of two sliding windows."""
    max_tokens: int = 0
    """Validate during training on this many tokens only; 0 takes all."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "pr592"
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


# --- files -----------------------------------------------------------------------------------


def config_folder() -> Path:
    """The folder configs/: beside the package in a clone, inside it when installed."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Names that `load` knows."""
    return sorted(path.stem for path in config_folder().glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> Config:
    """The config called `name`: a name in configs/, a path of such a .py file, or a run's config.json.

    Raises:
      ConfigError: there is none, or it cannot be used.
    """
    path = Path(name)
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix != ".py":
        path = config_folder() / f"{name}.py"
    if not path.is_file():
        known = ", ".join(config_names())
        raise ConfigError(f"no config {name!r}: expected one of {known}, or the path of a .py or config.json file")
    spec = importlib.util.spec_from_file_location(f"jgolf_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "config", None)):
        raise ConfigError(f"{path}: expected a function config() that returns a jgolf.config.Config, found none")
    return module.config()


def read_json(path: str | Path) -> Config:
    """Reads what `write_json` wrote."""
    try:
        return from_dict(json.loads(Path(path).read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{path}: not a jgolf config: {error}") from None


def write_json(config: Config, path: str | Path) -> None:
    """Writes every setting of `config`."""
    files.write_text(path, json.dumps(to_dict(config), indent=1) + "\n")


def to_dict(config: Any) -> dict[str, Any]:
    """A config, or a part of one, as plain dictionaries."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type = Config) -> Any:
    """The inverse of `to_dict`; unknown names and wrong types raise ConfigError."""
    options = dacite.Config(strict=True, cast=[tuple], type_hooks={float: float})
    try:
        return dacite.from_dict(kind, values, options)
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name → value of every setting."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = value
    return found


def replace(config: Any, name: str, value: Any) -> Any:
    """A copy of `config` with the setting of that dotted name changed."""
    first, _, rest = name.partition(".")
    if first not in {item.name for item in dataclasses.fields(config)}:
        raise ConfigError(f"no setting {name!r}: expected one of {', '.join(leaves(config))}")
    return dataclasses.replace(config, **{first: replace(getattr(config, first), rest, value) if rest else value})


# --- sense -----------------------------------------------------------------------------------


def validate(config: Config) -> Config:
    """Returns `config`, or raises one ConfigError that lists every setting that makes no sense."""
    problems = [*_model_problems(config.model), *_train_problems(config)]
    if problems:
        raise ConfigError("settings that cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    return config


def _model_problems(model: ModelConfig) -> list[str]:
    problems = []

    def need(holds: bool, name: str, expected: str) -> None:
        if not holds:
            problems.append(f"model.{name} is {getattr(model, name)}: expected {expected}")

    for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "rope_original_length"):
        need(getattr(model, name) >= 1, name, "at least 1")
    for name in ("bigram_buckets", "rope_dims", "q_gain", "logit_softcap", "embedding_init_std"):
        need(getattr(model, name) >= 0, name, "0 (off) or more")
    need(model.mlp_dim >= 1, "mlp_multiple", "a hidden width of at least 1")
    need(model.rope_base > 1, "rope_base", "more than 1")
    if problems:
        return problems
    divisors = [heads for heads in range(1, model.model_dim + 1) if model.model_dim % heads == 0]
    need(model.num_heads in divisors, "num_heads", f"a divisor of model_dim {model.model_dim}")
    need(
        model.num_heads % model.num_kv_heads == 0,
        "num_kv_heads",
        f"a divisor of num_heads {model.num_heads}",
    )
    need(model.bigram_buckets != 1, "bigram_buckets", "0 (off) or at least 2")
    need(model.bigram_dim >= 1 or not model.bigram_buckets, "bigram_dim", "at least 1")
    head_dim = model.head_dim
    need(
        model.rope_dims % 2 == 0 and model.rope_dims <= head_dim and (model.rope_dims or head_dim % 2 == 0),
        "rope_dims",
        f"an even number up to the head width {head_dim}, or 0 for all of an even head width",
    )
    for name in ("xsa_layers", "value_embedding_layers"):
        layers = getattr(model, name)
        valid = all(0 <= layer < model.num_layers for layer in layers) and list(layers) == sorted(set(layers))
        need(valid, name, f"different layers in rising order, each from 0 to {model.num_layers - 1}")
    need(model.value_embedding_dim >= 1 or not model.value_embedding_layers, "value_embedding_dim", "at least 1")
    return problems


def _train_problems(config: Config) -> list[str]:
    problems = []
    values = leaves(config)

    def need(holds: bool, name: str, expected: str) -> None:
        if not holds:
            problems.append(f"{name} is {values[name]}: expected {expected}")

    for name in [
        "train.batch_tokens",
        "train.seq_len",
        "train.num_ranks",
        "train.accumulation",
        "train.keep_checkpoints",
        "average.swa_every",
        "evaluate.batch_tokens",
        "evaluate.sliding_stride",
    ]:
        need(values[name] >= 1, name, "at least 1")
    for name in [
        "train.steps",
        "train.time_cap_s",
        "train.warmdown_steps",
        "train.validate_every",
        "train.log_every",
        "train.checkpoint_every_steps",
        "train.checkpoint_every_s",
        "optim.grad_clip",
        "optim.muon.momentum_warmup_steps",
        "optim.muon.newton_schulz_steps",
        "optim.muon.learning_rate",
        "optim.muon.weight_decay",
        "optim.adamw.token_learning_rate",
        "optim.adamw.scalar_learning_rate",
        "optim.adamw.weight_decay",
        "quantize.small_size",
        "evaluate.max_tokens",
    ]:
        need(values[name] >= 0, name, "0 or more")
    for name in ["optim.muon.momentum", "optim.muon.momentum_warmup_start", "optim.adamw.beta1", "optim.adamw.beta2"]:
        need(0 <= values[name] < 1, name, "at least 0 and below 1")
    need(0 <= config.average.ema_decay < 1, "average.ema_decay", "0 (off), or below 1")
    for name in ("average.swa_start", "quantize.late_qat_start"):
        need(0 <= values[name] <= 1, name, "a learning-rate multiplier from 0 (off) to 1")
    clips = config.quantize.clip_percentiles
    need(bool(clips) and all(0 < p <= 1 for p in clips), "quantize.clip_percentiles", "quantiles above 0, up to 1")
    need(0 < config.quantize.table_clip_percentile <= 1, "quantize.table_clip_percentile", "above 0, up to 1")
    need(config.quantize.control in ("fp16", "fp32"), "quantize.control", "fp16 or fp32")
    exported = config.average.export
    need("ema" not in exported or config.average.ema_decay > 0, "average.export", "an average that is switched on")
    need("swa" not in exported or config.average.swa_start > 0, "average.export", "an average that is switched on")
    if problems:
        return problems
    train = config.train
    unit = train.num_ranks * train.accumulation * train.seq_len
    nearest = max(unit, round(train.batch_tokens / unit) * unit)
    need(
        train.batch_tokens % unit == 0,
        "train.batch_tokens",
        f"a multiple of num_ranks {train.num_ranks} × accumulation {train.accumulation} × "
        f"seq_len {train.seq_len} = {unit}, such as {nearest}",
    )
    return problems


def form_bits(form: str) -> int | None:
    """Bits of an integer storage form, None for a floating-point one."""
    return int(form[3:]) if form.startswith("int") else None


STORAGE_FORMS: tuple[str, ...] = get_args(StorageForm)
