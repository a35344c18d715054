"""What a family of scripts is, and the names that all of them have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MOST_BLOCKS = 1000


@dataclass(frozen=True)
class Bank:
    """A tensor (matrix, outputs, inputs) that holds matrices of all blocks.

    Attributes:
      name: the tensor's.
      parts: paths of the matrices, `{}` for the block: of the first those of all blocks, then of the next.
    """

    name: str
    parts: tuple[str, ...]

    def matrices(self, count: int) -> list[str] | None:
        """The paths of a bank's `count` matrices in their order; None where blocks would not share them evenly, and for
        more blocks than any script has.
        """
        blocks, rest = divmod(count, len(self.parts))
        return (
            None
            if rest or blocks > MOST_BLOCKS
            else [part.format(block) for part in self.parts for block in range(blocks)]
        )


@dataclass(frozen=True)
class Family:
    """Scripts whose checkpoints have the same names.

    Attributes:
      recipe: the config that such a checkpoint is taken for.
      names: path → name of each parameter, `{}` for the same number in both.
      banks: the tensors that hold several of these.
      untold: settings of ModelConfig on which no tensor's shape depends.
    """

    recipe: str
    names: Mapping[str, str]
    banks: tuple[Bank, ...] = ()
    untold: tuple[str, ...] = ("rope_dims", "rope_base", "rope_original_length", "ln_scale", "logit_softcap")

    def lacks(self, paths: Iterable[str]) -> list[str]:
        """Those of the parameters that its scripts do not have."""
        return [path for path in paths if template_of(path) not in self.names]


def template_of(path: str) -> str:
    """A parameter's path with `{}` for numbers."""
    return re.sub(r"(?<=/)[0-9]+(?=/|$)", "{}", path)


COMMON_NAMES = {
    "embed/embedding": "tok_emb.weight",
    "head/kernel": "lm_head.weight",
    "skip_weights": "skip_weights",
    "blocks/{}/attn_scale": "blocks.{}.attn_scale",
    "blocks/{}/mlp_scale": "blocks.{}.mlp_scale",
    "blocks/{}/resid_mix": "blocks.{}.resid_mix",
    "blocks/{}/attn/q_gain": "blocks.{}.attn.q_gain",
    "blocks/{}/attn/q_proj/kernel": "blocks.{}.attn.c_q.weight",
    "blocks/{}/attn/k_proj/kernel": "blocks.{}.attn.c_k.weight",
    "blocks/{}/attn/v_proj/kernel": "blocks.{}.attn.c_v.weight",
    "blocks/{}/attn/out_proj/kernel": "blocks.{}.attn.proj.weight",
    "blocks/{}/mlp/up_proj/kernel": "blocks.{}.mlp.fc.weight",
    "blocks/{}/mlp/down_proj/kernel": "blocks.{}.mlp.proj.weight",
}
