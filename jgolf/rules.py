"""What becomes of each parameter: one table over parameter paths.

Parameters are a flat dictionary from path to array, such as `blocks/0/attn/q_proj/kernel`. For each
path the table gives its kind (which decides its storage form), the optimizer group that updates it,
and its name in a PyTorch checkpoint. Kernels are (in, out) here and (out, in) there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jgolf.config import QuantizeConfig, form_bits
from jgolf.errors import ArtifactError

Kind = Literal["attention", "mlp", "embedding", "table", "table_projection", "control"]
Group = Literal["muon", "adamw_token", "adamw_scalar", "adam_head"]


@dataclass(frozen=True)
class Rule:
    """One row of the table; `{}` in `path` and `torch_name` stands for the same number."""

    path: str
    torch_name: str
    kind: Kind
    group: Group

    @property
    def transposed(self) -> bool:
        """Whether PyTorch stores the matrix the other way round."""
        return self.path.endswith("/kernel")


RULES = (
    Rule("embed/embedding", "tok_emb.weight", "embedding", "adamw_token"),
    Rule("head/kernel", "lm_head.weight", "embedding", "adam_head"),
    Rule("bigram/embedding", "bigram.embed.weight", "table", "adamw_token"),
    Rule("bigram/proj/kernel", "bigram.proj.weight", "table_projection", "muon"),
    Rule("bigram/scale", "bigram.scale", "control", "adamw_scalar"),
    Rule("smear/gate", "smear.gate", "control", "adamw_scalar"),
    Rule("skip_weights", "skip_weights", "control", "adamw_scalar"),
    Rule("blocks/{}/attn_scale", "blocks.{}.attn_scale", "control", "adamw_scalar"),
    Rule("blocks/{}/mlp_scale", "blocks.{}.mlp_scale", "control", "adamw_scalar"),
    Rule("blocks/{}/resid_mix", "blocks.{}.resid_mix", "control", "adamw_scalar"),
    Rule("blocks/{}/attn/q_gain", "blocks.{}.attn.q_gain", "control", "adamw_scalar"),
    Rule("blocks/{}/attn/q_proj/kernel", "blocks.{}.attn.c_q.weight", "attention", "muon"),
    Rule("blocks/{}/attn/k_proj/kernel", "blocks.{}.attn.c_k.weight", "attention", "muon"),
    Rule("blocks/{}/attn/v_proj/kernel", "blocks.{}.attn.c_v.weight", "attention", "muon"),
    Rule("blocks/{}/attn/out_proj/kernel", "blocks.{}.attn.proj.weight", "attention", "muon"),
    Rule("blocks/{}/mlp/up_proj/kernel", "blocks.{}.mlp.fc.weight", "mlp", "muon"),
    Rule("blocks/{}/mlp/down_proj/kernel", "blocks.{}.mlp.proj.weight", "mlp", "muon"),
    Rule("value_embed/embedding", "ve_shared.embed.weight", "table", "adamw_token"),
    Rule("value_embed/proj/kernel", "ve_shared.proj.weight", "table_projection", "muon"),
    Rule("value_embed/scale", "ve_shared.scale", "control", "adamw_scalar"),
    Rule("value_embed/layer_scales/{}", "ve_layer_scales.{}", "control", "adamw_scalar"),
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


def torch_name(path: str) -> str:
    """The name of a parameter in a PyTorch checkpoint."""
    numbers = re.findall(r"\d+", path)
    return rule_of(path).torch_name.format(*numbers)


def path_of_torch_name(name: str) -> str | None:
    """The inverse of `torch_name`; None for a name that no rule has."""
    for rule in RULES:
        match = re.fullmatch(re.escape(rule.torch_name).replace(r"\{\}", r"(\d+)"), name)
        if match:
            return rule.path.format(*match.groups())
    return None


def storage_form(path: str, shape: tuple[int, ...], quantize: QuantizeConfig) -> str:
    """The form in which an artifact holds a parameter: int4 … int8, fp16 or fp32."""
    kind = rule_of(path).kind
    if kind == "control":
        return quantize.control
    if math.prod(shape) <= quantize.small_size:
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
    }[kind]
