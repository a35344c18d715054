"""What becomes of each parameter: one table over parameter paths.

Parameters are a flat dictionary from path to array, such as `blocks/0/attn/q_proj/kernel`. For each path the table
gives the value it starts from, the optimizer group that updates it and with what multiples of the group's rates, its
kind (which decides its storage form), and what counts the curvature of the loss along it. Kernels are (in, out) here
and (out, in) in PyTorch; what they are called there is in `jgolf.torch_bridge.families`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jgolf.config import QuantizeConfig, form_bits
from jgolf.errors import ArtifactError

Kind = Literal["attention", "mlp", "embedding", "table", "table_projection", "gate", "control"]
Group = Literal["muon", "adamw_token", "adamw_scalar", "adamw_head"]
Curvature = Literal["gradients", "token lookups", "pair lookups", "nothing"]

GATE_SIZES = range(32, 8193)
"""Numbers of values of the attention gates that have a form of their own; other gates have that of controls."""


@dataclass(frozen=True)
class Constant:
    """Every value starts from `value`."""

    value: float


@dataclass(frozen=True)
class Setting:
    """Every value starts from what the setting `model.NAME` says."""

    name: str


@dataclass(frozen=True)
class Normal:
    """Values are drawn from a normal distribution of this standard deviation: a number, or a setting's name."""

    std: float | str


@dataclass(frozen=True)
class Matrix:
    """A random matrix: orthogonal, or uniform, as `model.orthogonal_init` says.

    Attributes:
      by_depth: divided by the square root of twice the number of layers.
    """

    by_depth: bool = False


@dataclass(frozen=True)
class FirstRow:
    """The first row starts from ones, the rest from zeros."""


Start = Constant | Setting | Normal | Matrix | FirstRow


@dataclass(frozen=True)
class Rule:
    """One row of the table; `{}` in `path` stands for a number."""

    path: str
    kind: Kind
    group: Group
    start: Start
    curvature: Curvature = "nothing"
    learning_rate: float = 1.0
    """Multiple of the group's learning rate."""
    weight_decay: float = 1.0
    """Multiple of the group's weight decay."""

    @property
    def transposed(self) -> bool:
        """Whether the matrix is stored, and scaled by rows, the other way round: (out, in), as PyTorch has it."""
        return self.path.endswith("/kernel")


def _table(path: str, kind: Kind, start: Start, curvature: Curvature) -> Rule:
    return Rule(path, kind, "adamw_token", start, curvature)


def _matrix(path: str, kind: Kind, start: Start = Matrix()) -> Rule:  # noqa: B008
    return Rule(path, kind, "muon", start, "gradients")


def _control(path: str, start: float | Start) -> Rule:
    start = Constant(start) if isinstance(start, float) else start
    return Rule(path, "control", "adamw_scalar", start)


RULES = (
    _table("embed/embedding", "embedding", Normal("embedding_init_std"), "gradients"),
    Rule("head/kernel", "embedding", "adamw_head", Constant(0.0), "gradients"),
    _table("bigram/embedding", "table", Constant(0.0), "pair lookups"),
    _matrix("bigram/proj/kernel", "table_projection", Matrix(by_depth=True)),
    _control("bigram/scale", 0.05),
    _control("smear/gate", 0.0),
    _control("gated_smear/gate", 0.0),
    _control("gated_smear/scale", 0.0),
    _control("skip_weights", 1.0),
    _control("skip_gates", 0.0),
    _control("lanes/residual", 1.1015625),  # 1.1 as the original has it, in bfloat16
    _control("lanes/post", 1.0),
    _control("blocks/{}/attn_scale", 1.0),
    _control("blocks/{}/mlp_scale", 1.0),
    _control("blocks/{}/resid_mix", FirstRow()),
    _control("blocks/{}/attn/q_gain", Setting("q_gain")),
    Rule("blocks/{}/attn/gate", "gate", "adamw_scalar", Constant(0.0)),
    _matrix("blocks/{}/attn/q_proj/kernel", "attention"),
    _matrix("blocks/{}/attn/k_proj/kernel", "attention"),
    _matrix("blocks/{}/attn/v_proj/kernel", "attention"),
    _matrix("blocks/{}/attn/out_proj/kernel", "attention", Constant(0.0)),
    _matrix("blocks/{}/mlp/up_proj/kernel", "mlp"),
    _matrix("blocks/{}/mlp/down_proj/kernel", "mlp", Constant(0.0)),
    _table("value_embed/embedding", "table", Normal(0.01), "token lookups"),
    _matrix("value_embed/proj/kernel", "table_projection", Matrix(by_depth=True)),
    _control("value_embed/scale", 0.1),
    _control("value_embed/layer_scales/{}", 1.0),
)


@cache
def rule_of(path: str) -> Rule:
    """The rule for a parameter path.

    Raises:
      ArtifactError: no rule has this path.
    """
    for rule in RULES:
        if re.fullmatch(rule.path.replace("{}", r"\d+"), path):
            return rule
    raise ArtifactError(f"no parameter is called {path!r}; the rules are in {__name__}.RULES")


def storage_form(path: str, shape: tuple[int, ...], quantize: QuantizeConfig) -> str:
    """The form in which an artifact holds a parameter: int4 … int8, fp16 or fp32."""
    kind, size = rule_of(path).kind, math.prod(shape)
    if kind == "control" or (kind == "gate" and size not in GATE_SIZES):
        return quantize.control
    if kind != "gate" and size <= quantize.small_size:
        return quantize.small
    return _form_of_kind(kind, quantize)


def fake_quantize_bits(path: str, quantize: QuantizeConfig) -> int | None:
    """Bits at which late QAT rounds a parameter, whatever its size; None for those left alone.

    Every matrix that Muon updates takes part.
    """
    rule = rule_of(path)
    return form_bits(_form_of_kind(rule.kind, quantize)) if rule.group == "muon" else None


def _form_of_kind(kind: Kind, quantize: QuantizeConfig) -> str:
    return {
        "mlp": quantize.mlp,
        "attention": quantize.attention,
        "table_projection": quantize.attention,
        "embedding": quantize.embedding,
        "table": quantize.table,
        "gate": quantize.gate,
    }[kind]
