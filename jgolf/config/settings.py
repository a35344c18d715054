"""Every setting of a run, as a tree of frozen dataclasses: its type, its bound, what it does.

The defaults are a plain transformer that trains: every technique is off, and what only matters to one that is on
has its usual value. Recipes are composed of parts (`jgolf.config.parts`).

A new setting is one field here, off by default: its annotation bears a `Bound` if it is a number, and the marks that
apply (`jgolf.config.marks`); its docstring is its help on the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import tyro

from jgolf.config.marks import (
    DECAY,
    DECAY_OR_OFF,
    MULTIPLIER,
    NOT_NEGATIVE,
    OFF_OR_MORE,
    POSITIVE,
    QUANTILE,
    QUANTILES,
    Bound,
    Mark,
)
from jgolf.options import PathText

StorageForm = Literal["int4", "int5", "int6", "int7", "int8", "fp16", "fp32"]
Average = Literal["raw", "ema", "swa", "ema+swa"]
Addition = Literal["q", "k", "v", "o", "mlp", "head"]

VOCABULARY = Bound(
    lambda value: 0 <= value <= 1 << 16,
    "from 1 to 65536, the ids that shards can hold, or 0 for the tokenizer's",
)
ABOVE_0 = Bound(lambda value: 0 < value < math.inf, "more than 0")
ABOVE_1 = Bound(lambda value: 1 < value < math.inf, "more than 1")
BUCKETS = Bound(lambda value: value == 0 or value >= 2, "0 (off) or at least 2")
SEED = Bound(lambda value: 0 <= value < 1 << 32, "from 0 to 4294967295")
SLOPE = Bound(lambda value: 0 <= value < 1, "0 (ReLU²) or more, and below 1")
AVERAGED_SHARE = Bound(
    lambda value: 0 <= value <= 12**-0.5, f"0 (off) or more, up to {12**-0.5:.5f}, that of the mean of all steps"
)
FRACTION = Bound(lambda value: 0 <= value <= 1, "a part of the run, from 0 to 1")
FACTOR_BITS = Bound(lambda value: 2 <= value <= 8, "from 2 to 8")
DIFFERENT = Bound(lambda words: len(set(words)) == len(words), "different ones")
RISING_WIDTHS = Bound(
    lambda widths: all(width >= 1 for width in widths) and list(widths) == sorted(set(widths)),
    "different numbers of tokens from 1 on, rising; none for parts of the context",
)
RISING_ORDERS = Bound(
    lambda orders: len(orders) > 0 and RISING_WIDTHS.allowed(orders), "one or more numbers of tokens from 1 on, rising"
)
SHARE = Bound(lambda value: 0 < value <= 1, "a share above 0, up to 1")
STRENGTHS = Bound(
    lambda values: len(values) > 0 and all(0 <= value <= 100 for value in values), "one or more numbers from 0 to 100"
)
CHUNKS_BY_LENGTH = Bound(
    lambda steps: _rises(steps) and all(chunk >= 1 for _, chunk in steps),
    "pairs of a length, rising, and a chunk of at least 1",
)
RATES_BY_LENGTH = Bound(
    lambda steps: _rises(steps) and all(0 <= rate < math.inf for _, rate in steps),
    "pairs of a length, rising, and a learning rate of 0 or more",
)
FLOATING_POINT = Bound(lambda form: form in ("fp16", "fp32"), "fp16 or fp32")


def _rises(steps: tuple[tuple[int, float], ...]) -> bool:
    """Whether the lengths that pairs begin with are different and in order."""
    lengths = [length for length, _ in steps]
    return all(length >= 1 for length in lengths) and lengths == sorted(set(lengths))


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    vocab_size: Annotated[int, VOCABULARY] = 0
    """Number of pieces of the tokenizer; 0 takes it from the tokenizer."""
    num_layers: Annotated[int, POSITIVE] = 9
    """Blocks; the first half encode, the second half decode."""
    model_dim: Annotated[int, POSITIVE] = 512
    """Width of the residual stream."""
    num_heads: Annotated[int, POSITIVE] = 8
    """Query heads."""
    num_kv_heads: Annotated[int, POSITIVE] = 4
    """Key/value heads; each serves num_heads / num_kv_heads query heads."""
    mlp_multiple: Annotated[float, ABOVE_0] = 2.0
    """Hidden width of the MLP as a multiple of model_dim."""
    activation_slope: Annotated[float, SLOPE] = 0.0
    """Slope of the MLP's activation below zero, before it is squared; 0 for ReLU²."""
    tie_embeddings: bool = False
    """Use the token embedding as the output head."""
    bigram_buckets: Annotated[int, BUCKETS] = 0
    """Rows of the hashed bigram table; 0 leaves it out."""
    bigram_dim: Annotated[int, POSITIVE] = 128
    """Width of the bigram table, projected to model_dim where they differ."""
    smear_gate: bool = False
    """Blend every position's embedding with the one before it."""
    gated_smear: bool = False
    """Add to every token's embedding a learnt share of the one before it, but for a document's first."""
    unet_skips: bool = False
    """Add encoder outputs to the decoder layers, last in, first out."""
    skip_gates: bool = False
    """Blend a skip and the stream by a learnt share per channel, instead of adding the skip."""
    loop_layers: Annotated[tuple[int, ...], Mark.LAYERS] = ()
    """Layers that follow one another and run more than once, with the same weights; none for no loop."""
    num_loops: Annotated[int, POSITIVE] = 2
    """How often the loop's layers run again after the first time."""
    lanes_from: Annotated[int, Mark.LAYERS] = 0
    """First layer, from 0 or from the end (-1), with two residual lanes, one for attention and one for the MLP; 0 for
    one lane throughout."""
    xsa_layers: Annotated[tuple[int, ...], Mark.LAYERS] = ()
    """Layers, from 0 or from the end (-1), whose attention output loses its component along its own value (XSA)."""
    rope_dims: Annotated[int, OFF_OR_MORE] = 0
    """Dimensions of each head that are rotated; 0 rotates all."""
    rope_base: Annotated[float, ABOVE_1] = 10000.0
    """Base of the rotary frequencies."""
    rope_original_length: Annotated[int, OFF_OR_MORE] = 0
    """Sequences longer than this raise the rotary base, to rope_base * (length / this) ** (d / (d - 2)) for d rotated
    dimensions, in training too; 0 leaves it at any length."""
    rope_frequency_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the rotary frequencies are rounded to."""
    attention_gate: bool = False
    """Multiply every head's output by a gate that reads the first gate_window channels of attention's input."""
    attention_gate_scale: Annotated[float, NOT_NEGATIVE] = 0.5
    """Factor in front of that gate's logit."""
    gate_window: Annotated[int, POSITIVE] = 12
    """Channels that the attention gate and the gated smear read."""
    value_embedding_layers: Annotated[tuple[int, ...], Mark.LAYERS] = ()
    """Layers, from 0 or from the end (-1), whose values receive the shared value embedding; none leaves it out."""
    value_embedding_dim: Annotated[int, POSITIVE] = 128
    """Width of the value-embedding table."""
    ln_scale: bool = False
    """Scale each block's normalised inputs by 1 / sqrt(layer + 1)."""
    q_gain: Annotated[float, OFF_OR_MORE] = 0.0
    """Initial gain of every query head; 0 leaves the gain out."""
    logit_softcap: Annotated[float, OFF_OR_MORE] = 0.0
    """Logits are softcap * tanh(logits / softcap); 0 leaves them as they are."""
    orthogonal_init: bool = False
    """Orthogonal matrices at the start; otherwise uniform within ±1 / sqrt(inputs), PyTorch's own start."""
    embedding_init_std: Annotated[float, NOT_NEGATIVE] = 0.005
    """Standard deviation of the token embedding at the start."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of matrix products and activations; parameters are always float32."""
    kernels: Literal["auto", "plain", "interpret"] = "auto"
    """auto runs kernels of our own and a fused attention on NVIDIA GPUs, the written model elsewhere; plain runs the
    written model everywhere; interpret runs our kernels in an interpreter, to try them without a GPU."""
    repeatable: bool = True
    """Gradients of attention are the same to the bit every time, which on a Hopper GPU costs some speed."""

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


@dataclass(frozen=True)
class MuonConfig:
    """Muon: momentum, then orthogonalization, for the matrices."""

    learning_rate: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.04
    """Learning rate before the schedule's multiplier."""
    momentum: Annotated[float, DECAY, Mark.TRACED] = 0.95
    """Momentum after its warm-up."""
    momentum_warmup_start: Annotated[float, DECAY, Mark.TRACED] = 0.85
    """Momentum at step 0."""
    momentum_warmup_steps: Annotated[int, NOT_NEGATIVE] = 0
    """Steps over which the momentum rises linearly; 0 starts at its full value."""
    weight_decay: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.0
    """Decoupled weight decay."""
    row_normalization: bool = False
    """Normalize every output's row before the orthogonalization."""
    neuron_normalization: bool = False
    """Divide every output's row after the orthogonalization by the root of its mean square over the steps, and keep the
    matrix's norm (NorMuon)."""
    neuron_decay: Annotated[float, DECAY, Mark.TRACED] = 0.95
    """Decay of that mean over the steps."""
    look_ahead: Annotated[float, OFF_OR_MORE, Mark.TRACED_ABOVE_0] = 0.0
    """Gradients are taken at weights moved on by this much of their distance from their own moving average; 0 takes
    them at the weights themselves."""
    look_ahead_decay: Annotated[float, DECAY, Mark.TRACED] = 0.99
    """Decay of that moving average."""
    newton_schulz_coefficients: Literal["standard", "polar_express"] = "standard"
    """Coefficients of the iterations: the same in all, or the five of Polar Express."""
    newton_schulz_steps: Annotated[int, NOT_NEGATIVE] = 5
    """Iterations of the orthogonalization."""
    newton_schulz_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type in which the iterations run."""


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW for the tables, vectors and scalars."""

    token_learning_rate: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.05
    """Learning rate of the embedding tables before the schedule's multiplier; the challenge's scripts take 0.6 beside
    an untied head, with a token embedding that starts with a standard deviation of 1."""
    scalar_learning_rate: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.04
    """Learning rate of everything else that Muon does not update."""
    head_learning_rate: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.008
    """Learning rate of an untied head, which starts at zero."""
    matrix_learning_rate: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.002
    """Learning rate of the matrices where `optim.matrices` is adamw."""
    token_weight_decay: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.0
    """Decoupled weight decay of the embedding tables."""
    scalar_weight_decay: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.0
    """Decoupled weight decay of everything else that Muon does not update."""
    head_weight_decay: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.0
    """Decoupled weight decay of an untied head."""
    matrix_weight_decay: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 0.0
    """Decoupled weight decay of the matrices where `optim.matrices` is adamw."""
    beta1: Annotated[float, DECAY, Mark.TRACED] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, DECAY, Mark.TRACED] = 0.95
    """Decay of the second moment."""
    epsilon: Annotated[float, NOT_NEGATIVE, Mark.TRACED] = 1e-8
    """Added to the root of the second moment."""


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated."""

    muon: MuonConfig = field(default_factory=MuonConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    matrices: Literal["muon", "adamw"] = "adamw"
    """What updates the matrices."""
    cautious_decay: bool = False
    """Decay a weight only in steps whose update shrinks it, too."""
    grad_clip: Annotated[float, OFF_OR_MORE, Mark.TRACED] = 0.0
    """Largest global norm of the gradients; 0 does not clip."""
    clip: Literal["mean", "rank"] = "mean"
    """What is clipped: the mean of the gradients, or those of each of `train.num_ranks` parts, before their mean."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batches and schedule of a run."""

    steps: Annotated[int, tyro.conf.arg(aliases=["--steps"]), NOT_NEGATIVE] = 20000
    """Optimizer steps, unless the time cap comes first."""
    time_cap_s: Annotated[float, OFF_OR_MORE] = 0.0
    """Training time in seconds after which the run ends; 0 for no cap."""
    warmdown_steps: Annotated[int, OFF_OR_MORE, Mark.TRACED] = 0
    """Last steps, or their worth of time under a cap, in which the learning rate falls to 0; 0 for none."""
    warmdown_fraction: Annotated[float, FRACTION, Mark.TRACED] = 0.0
    """The same as a part of the whole run, of its steps or its time, in place of `warmdown_steps`; 0 for none."""
    learning_rate_floor: Annotated[float, MULTIPLIER, Mark.TRACED] = 0.0
    """Learning-rate multiplier below which the warmdown does not go."""
    loop_start_fraction: Annotated[float, FRACTION, Mark.TRACED] = 0.0
    """Part of the run after which the loop's layers run more than once."""
    batch_tokens: Annotated[int, POSITIVE] = 524_288
    """Tokens of one optimizer step, over all devices."""
    seq_len: Annotated[int, POSITIVE] = 1024
    """Tokens of one sequence."""
    documents: bool = False
    """Keep documents apart: a rank's tokens are one row; attention stays within a document, and seq_len of it."""
    shuffle_documents: bool = False
    """Shuffle the documents of each shard, from the second pass over the text on, anew in every pass; all seeds
    read alike."""
    fp8: bool = False
    """Multiply in eight bits where the MLPs' activations and gradients allow it, on GPUs that can (Hopper), elsewhere
    rounded alike; in training only: scores are computed without."""
    num_ranks: Annotated[int, POSITIVE] = 1
    """Parts of a micro-step, each of consecutive tokens: the order of the data, whatever the number of devices."""
    accumulation: Annotated[int, POSITIVE] = 1
    """Micro-steps of one optimizer step."""
    seed: Annotated[int, tyro.conf.arg(aliases=["--seed"]), SEED] = 1337
    """Seed of the initial parameters."""
    validate_every: Annotated[int, NOT_NEGATIVE] = 500
    """Steps between validations; 0 validates at the start and the end only."""
    log_every: Annotated[int, NOT_NEGATIVE] = 100
    """Steps between log lines (the first ten are always logged)."""
    checkpoint_every_steps: Annotated[int, OFF_OR_MORE] = 0
    """Steps between checkpoints; 0 for none by steps."""
    checkpoint_every_s: Annotated[float, OFF_OR_MORE] = 120.0
    """Seconds between checkpoints; 0 for none by time."""
    keep_checkpoints: Annotated[int, POSITIVE] = 2
    """Checkpoints that are kept."""

    @property
    def piece_length(self) -> int:
        """Most tokens that attend to one another where documents are kept apart; 0 where they are not."""
        return self.seq_len if self.documents else 0

    @property
    def run_tokens(self) -> int:
        """Inputs in one run of consecutive tokens, m in the definition of the batch order."""
        return self.batch_tokens // (self.num_ranks * self.accumulation)

    @property
    def run_multiple(self) -> int:
        """What `run_tokens` is a multiple of: whole sequences, or where documents are kept apart any number."""
        return 1 if self.documents else self.seq_len


@dataclass(frozen=True)
class AverageConfig:
    """Averages of the parameters over training."""

    ema_decay: Annotated[float, DECAY_OR_OFF, Mark.TRACED_ABOVE_0] = 0.0
    """Decay of the exponential moving average, every step; 0 leaves it out."""
    ema_share: Annotated[float, AVERAGED_SHARE, Mark.TRACED_ABOVE_0] = 0.0
    """Reach of the same average as a part of all steps so far, in place of ema_decay: the standard deviation of when
    its weights are from; an ema_decay has one of 1 / (1 - ema_decay) steps. 0 leaves it out."""
    swa_start: Annotated[float, MULTIPLIER, Mark.TRACED_ABOVE_0] = 0.0
    """SWA sums parameters while the learning-rate multiplier is below this; 0 leaves it out."""
    swa_every: Annotated[int, POSITIVE] = 50
    """Steps between two parameter sets of the SWA."""
    export: Annotated[Average, Mark.AFTER_TRAINING] = "raw"
    """The weights that are exported unless the command line says otherwise."""

    @property
    def keeps_ema(self) -> bool:
        """Whether there is an exponential moving average, of either kind."""
        return bool(self.ema_decay or self.ema_share)


@dataclass(frozen=True)
class LqerConfig:
    """Corrections of the matrices that rounding changes most: low-rank products that are added to them."""

    rank: Annotated[int, OFF_OR_MORE, Mark.AFTER_TRAINING] = 0
    """Singular vectors of a matrix's rounding error that are kept; 0 for no corrections."""
    top: Annotated[int, NOT_NEGATIVE, Mark.AFTER_TRAINING] = 3
    """Matrices that are corrected: those whose errors have the largest norms."""
    bits: Annotated[int, FACTOR_BITS, Mark.AFTER_TRAINING] = 4
    """Bits of a level of both factors; of the asymmetric form's left one it is always 2."""
    asymmetric: Annotated[bool, Mark.AFTER_TRAINING] = False
    """The left factor in levels −2 … 1 of one step, the right one with a step for each `group`; smaller, less exact."""
    group: Annotated[int, POSITIVE, Mark.AFTER_TRAINING] = 64
    """Values of the asymmetric right factor that share a step; where they do not divide it, both are symmetric."""
    dead_columns: Annotated[bool, Mark.AFTER_TRAINING] = False
    """Correct columns that no input reaches, too, as the original does; they are of no use."""


@dataclass(frozen=True)
class QuantizeConfig:
    """Storage of the exported weights."""

    mlp: StorageForm = "int8"
    """MLP matrices."""
    attention: StorageForm = "int8"
    """Attention matrices and table projections."""
    embedding: Annotated[StorageForm, Mark.AFTER_TRAINING] = "fp16"
    """The token embedding and an untied head."""
    table: Annotated[StorageForm, Mark.AFTER_TRAINING] = "int8"
    """Bigram and value tables."""
    control: Annotated[StorageForm, FLOATING_POINT, Mark.AFTER_TRAINING] = "fp32"
    """Vectors and scalars."""
    gate: Annotated[StorageForm, Mark.AFTER_TRAINING] = "fp32"
    """Attention gates of 32 to 8,192 values; integers have the largest magnitude of their row as the clip."""
    small: Annotated[StorageForm, Mark.AFTER_TRAINING] = "fp16"
    """Matrices and tables of at most small_size values."""
    small_size: Annotated[int, NOT_NEGATIVE, Mark.AFTER_TRAINING] = 65_536
    """Most values of a matrix or table that is stored in the form of `small`."""
    clip_percentiles: Annotated[tuple[float, ...], QUANTILES, Mark.AFTER_TRAINING] = (1.0,)
    """Quantiles of a row's magnitudes tried as its clip; the best for the whole matrix is taken."""
    table_clip_percentile: Annotated[float, QUANTILE, Mark.AFTER_TRAINING] = 1.0
    """Quantile of a row's magnitudes at which Int8 rows, of tables or matrices, are clipped."""
    symmetric_levels: Annotated[bool, Mark.AFTER_TRAINING] = False
    """Export levels −c … c of an integer form, without its lowest one, −c − 1; late QAT always has them all."""
    mlp_clip_sigmas: Annotated[float, OFF_OR_MORE, Mark.AFTER_TRAINING] = 0.0
    """Clip of a row of an MLP matrix in its standard deviations, which sets its step; 0 searches by quantiles."""
    attention_clip_sigmas: Annotated[float, OFF_OR_MORE, Mark.AFTER_TRAINING] = 0.0
    """The same for attention matrices."""
    embedding_clip_sigmas: Annotated[float, OFF_OR_MORE, Mark.AFTER_TRAINING] = 0.0
    """The same for the token embedding and an untied head."""
    table_clip_sigmas: Annotated[float, OFF_OR_MORE, Mark.AFTER_TRAINING] = 0.0
    """The same for bigram and value tables and their projections."""
    gptq: Annotated[bool, Mark.AFTER_TRAINING] = False
    """Round the columns of a matrix one by one; later ones make up for the errors of those before, by training text."""
    scale_floor: bool = False
    """Keep every row's step at 1 / levels or more, as the reference does."""
    late_qat_start: Annotated[float, MULTIPLIER, Mark.TRACED] = 0.0
    """Train on quantized weights while the learning-rate multiplier is below this; 0 never does."""
    lqer: LqerConfig = field(default_factory=LqerConfig)


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens are."""

    dir: Annotated[PathText, tyro.conf.arg(aliases=["--data"])] = "data/datasets/fineweb10B_sp1024"
    """Folder of the shards, *_train_*.bin and *_val_*.bin."""
    tokenizer: Annotated[PathText, tyro.conf.arg(aliases=["--tokenizer"])] = ""
    """A SentencePiece model, or a byte tokenizer's JSON; empty takes the one in dir, or in its ../../tokenizers."""
    build_demo: bool = False
    """Build the demo corpus first where dir is data/demo, its own folder, and that is missing."""


@dataclass(frozen=True)
class SGDConfig:
    """SGD of all weights on text whose score has been counted."""

    learning_rate: Annotated[float, NOT_NEGATIVE] = 0.001
    """Learning rate of the first chunk after the warm-up; from there it falls, half a cosine, to 0 at the last."""
    momentum: Annotated[float, DECAY] = 0.9
    """Momentum."""
    grad_clip: Annotated[float, OFF_OR_MORE] = 1.0
    """Largest global norm of the gradients; 0 does not clip."""
    chunk_tokens: Annotated[int, POSITIVE] = 32_768
    """Tokens that are trained on at one learning rate; of the last chunk nothing is."""
    epochs: Annotated[int, POSITIVE] = 1
    """How often each chunk is trained on before the next."""
    warmup_chunks: Annotated[int, NOT_NEGATIVE] = 0
    """Chunks over which the learning rate rises first."""
    row_length: Annotated[int, OFF_OR_MORE] = 0
    """Tokens of a row of a chunk; 0 for the length that the model was trained with."""
    num_ranks: Annotated[int, POSITIVE] = 8
    """Shares that a chunk's rows are dealt in, whatever the number of devices; the mean of their gradients is taken."""
    batch_rows: Annotated[int, POSITIVE] = 32
    """Most rows of a share in one step."""


@dataclass(frozen=True)
class AdaptedConfig:
    """Score-first test-time training by document; the defaults are those of pull request #1855."""

    additions: Annotated[tuple[Addition, ...], DIFFERENT] = ("q", "k", "v", "o", "mlp", "head")
    """What has low-rank additions; nothing leaves only the phases."""
    rank: Annotated[int, POSITIVE] = 80
    """Rank of every addition."""
    alpha: Annotated[float, NOT_NEGATIVE] = 144.0
    """Additions are multiplied by alpha / rank."""
    chunk: Annotated[int, POSITIVE] = 48
    """Tokens of a document that are scored between two steps of its additions."""
    chunk_by_length: Annotated[tuple[tuple[int, int], ...], CHUNKS_BY_LENGTH] = ()
    """Other chunks for short documents: pairs of a number of targets up to which, and the chunk; the first pair that
    fits counts."""
    context: Annotated[int, OFF_OR_MORE] = 0
    """Longest context; 0 for the length that the model was trained with."""
    learning_rate: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Constant learning rate of the additions' AdamW, whose first moment is the gradient itself."""
    learning_rate_by_length: Annotated[tuple[tuple[int, float], ...], RATES_BY_LENGTH] = ()
    """Other learning rates for short documents: pairs as of chunk_by_length."""
    beta2: Annotated[float, DECAY] = 0.99
    """Decay of the second moment."""
    epsilon: Annotated[float, ABOVE_0] = 1e-10
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.5
    """Decoupled weight decay of the additions."""
    grad_steps: Annotated[int, POSITIVE] = 1
    """Steps on each chunk."""
    batch_documents: Annotated[int, POSITIVE] = 64
    """Documents that are adapted to side by side."""
    warm_start: bool = True
    """Each document's additions begin with the down-projection that its place in the batch before ended with."""
    seed: Annotated[int, SEED] = 0
    """Seed of fresh down-projections."""
    phases: Annotated[int, NOT_NEGATIVE] = 3
    """How often all weights are trained on scored documents; 0 for never."""
    phase_documents: Annotated[int, NOT_NEGATIVE] = 2500
    """Documents, the longest, by whose score the last phase has come."""
    sgd: SGDConfig = field(default_factory=SGDConfig)
    widths: Annotated[tuple[int, ...], RISING_WIDTHS] = ()
    """Lengths that windows are padded to besides the whole context, each a program of its own; none for an eighth, a
    quarter, a half and three quarters of it. It changes no score."""
    batch_tokens: Annotated[int, POSITIVE] = 32_768
    """Tokens run at once on each device. It changes no score."""


@dataclass(frozen=True)
class HintsConfig:
    """Hints at the next token by what followed the same tokens before, and how far a prediction is tilted to them."""

    orders: Annotated[tuple[int, ...], RISING_ORDERS] = (4, 8, 12, 16)
    """Tokens of the contexts that are looked for; the longest that is known often enough counts."""
    min_count: Annotated[int, POSITIVE] = 2
    """How often a context has to be known."""
    share: Annotated[float, SHARE] = 0.8
    """Of these times, the share in which the hinted token has to have followed."""
    strengths: Annotated[tuple[float, ...], STRENGTHS] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
    """What may be added to the hinted token's logit; all of them are mixed, by how well they did so far."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How validation is scored."""

    batch_tokens: Annotated[int, POSITIVE] = 65_536
    """Tokens scored at once on each device."""
    sliding_stride: Annotated[int, POSITIVE] = 64
    """Tokens between the starts of two sliding windows."""
    max_tokens: Annotated[int, OFF_OR_MORE] = 0
    """Validate, during training and in sweeps, on this many tokens only; 0 takes all."""
    adapted: AdaptedConfig = field(default_factory=AdaptedConfig)
    tuned: SGDConfig = field(default_factory=lambda: SGDConfig(learning_rate=0.005, epochs=3))
    hints: HintsConfig = field(default_factory=HintsConfig)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "plain"
    """What the run is called; its folder is runs/NAME unless --run-dir says otherwise."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def form_bits(form: str) -> int | None:
    """Bits of an integer storage form, None for a floating-point one."""
    return int(form[3:]) if form.startswith("int") else None


STORAGE_FORMS: tuple[str, ...] = get_args(StorageForm)
