"""The same numbers as a PyTorch training script, from the same weights and tokens: `jgolf crosscheck`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from rich.text import Text

from jgolf import config as configs
from jgolf.config import Config
from jgolf.data.shards import TokenStream
from jgolf.data.text import read_text, without_sidecars
from jgolf.data.tokenizer import load_tokenizer
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, JgolfError
from jgolf.load import load_model
from jgolf.options import PathText
from jgolf.progress import table_console
from jgolf.torch_bridge.torch_extra import import_torch


def crosscheck(
    reference: Path,
    checkpoint: Path,
    tokens: tuple[Path, ...],
    tokenizer: Path,
    config: PathText | None = None,
    average: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    seq_len: int = 0,
    stride: int = 64,
    batch: int = 4,
    max_tokens: int = 4096,
    train_steps: int = 0,
    reference_windows: bool = False,
) -> int:
    """Compare jgolf with a PyTorch training script: logits, loss, bits per byte, and training where asked.

    The script is imported, not run; it needs no GPU, no flash-attention and no Triton. float32 runs both sides on
    the CPU, and keeps in float32 what the script casts to bfloat16; bfloat16 runs them on the GPU where there is one.
    What the checkpoint does not tell of its model is taken from the script, and where that differs from jgolf's
    recipe it is said, as is what was computed in place of the script's kernels. Training steps are those of the
    script's own optimizers, settings and groups; where layers run more than once, the second half of the steps does
    so. The exit status is 1 where a difference exceeds its tolerance.

    Args:
      reference: The training script, a Python file with a class GPT.
      checkpoint: The weights for both sides: a .pt state dict, a .ptz or .jgolf artifact, or a run directory.
      tokens: Token shards.
      tokenizer: The shards' own.
      config: Settings that the tensors do not tell, in the script's place: a config's name, config.json or JSON object.
      average: Weights of a run: raw, ema, swa or ema+swa.
      dtype: Arithmetic of both sides; each has its own tolerances.
      seq_len: Tokens of a sequence, or of the longest piece of a document; 0 takes the script's train_seq_len.
      stride: Tokens between two windows of the sliding evaluation.
      batch: Sequences run at once, and in one training step.
      max_tokens: Compare on this many tokens, the first of the shards; 0 takes all.
      train_steps: Also compare this many optimizer steps from these weights, by the script's own optimizers.
      reference_windows: Sliding evaluation as the reference does it, with windows that hang over the end.
    """
    import_torch("jgolf crosscheck")
    if min(batch, stride) < 1 or min(seq_len, max_tokens, train_steps) < 0:
        raise JgolfError(
            "expected --batch and --stride of 1 or more; --seq-len, --max-tokens, --train-steps of 0 or more"
        )
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both sides share the GPU's memory
    from jgolf.torch_bridge import both_sides, comparison, own_settings, report

    own = own_settings.of_script(reference)
    model = load_model(checkpoint, config, average, own)
    settings = in_dtype(model.config, dtype)
    pieces = load_tokenizer(tokenizer, settings.model.vocab_size)
    stream = TokenStream(without_sidecars(tokens), settings.model.vocab_size)
    seq_len = seq_len or own.seq_len or settings.train.seq_len
    text = read_text(tokens, pieces, max_tokens + 1 if max_tokens else 0)
    tolerances = comparison.TOLERANCES[dtype]
    console = table_console()
    with both_sides.prepared(reference, settings, model.params, tolerances, model.assumed) as sides:
        console.print(f"{reference} and jgolf, weights of {checkpoint}, {dtype}: {sides.where}", soft_wrap=True)
        for notice in [*own_settings.differences(own, settings.model, model.assumed), *sides.notices]:
            console.print(notice, soft_wrap=True)
        if sides.documents and reference_windows:
            raise JgolfError("--reference-windows: expected with a script that does not keep documents apart")
        ways = sides.evaluations(text, seq_len, stride, batch, reference_windows)
        passed = True
        for looped in sides.phases:
            result = sides.compare(text, ways, seq_len, batch, looped)
            title = f"{len(text.tokens) - 1:,} tokens, {'documents' if sides.documents else 'sequences'} of {seq_len:,}"
            loop = f", loop {'on' if looped else 'off'}" if len(sides.phases) > 1 else ""
            report.print_result(console, result, title + loop)
            passed &= result.passed
        if train_steps:
            optimizers = sides.own_optimizers()
            passed &= report.print_optimizers(console, optimizers)
            passed &= report.print_steps(console, sides.train(optimizers, stream, batch, seq_len, train_steps))
        for sentence in sides.replacements:
            console.print(sentence, soft_wrap=True)
    console.print("the cross-check passed" if passed else Text("the cross-check FAILED", style="bold red"))
    return EXIT_OK if passed else EXIT_CHECK_FAILED


def in_dtype(config: Config, dtype: str) -> Config:
    """The config with all arithmetic in `dtype`, the orthogonalization's too."""
    settings = {"model.compute_dtype": dtype, "optim.muon.newton_schulz_dtype": dtype}
    return configs.replace_all(config, settings)
