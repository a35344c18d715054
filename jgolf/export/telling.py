"""What an export prints of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from jgolf.artifact import size
from jgolf.artifact.scoring import read_artifact
from jgolf.config import QuantizeConfig
from jgolf.evaluate.challenge import CHALLENGE_SECONDS
from jgolf.export.options import ExportOptions
from jgolf.run_dir import ARTIFACT_FILE


def averages_table(averages: dict[str, dict[str, Any]]) -> Table:
    """Scores and sizes of all averages of a run, as result.json has them."""
    table = Table(title="Averages, bits per byte of rows of the sequence length", box=box.SIMPLE)
    for name in ("weights", "before", "after quantization", "gap", "artifact bytes"):
        table.add_column(name, justify="left" if name == "weights" else "right", no_wrap=True)
    for name, row in averages.items():
        if "missing" in row:
            table.add_row(name, "none")
            continue
        before, after = row["pre_quantization_val_bpb"], row["val_bpb"]
        table.add_row(name, f"{before:.5f}", f"{after:.5f}", f"{after - before:.5f}", f"{row['artifact_bytes']:,}")
    return table


def advice(quantize_config: QuantizeConfig, options: ExportOptions, report: size.SizeReport) -> str:
    """How to get back under the limit."""
    budgeted = f"--budget {options.limit_bytes} chooses all steps for the least damage at that size"
    if options.budget is not None:
        return f"{report.over_bytes:,} bytes over the limit: {budgeted}"
    stored = read_artifact(options.run_dir / ARTIFACT_FILE).stored
    forms = size.smaller_forms(stored, quantize_config, options.codec)
    return f"{size.advice(forms, report.over_bytes)}\nor {budgeted}"


def print_result(result: dict[str, Any], run_dir: Path) -> None:
    """Prints the scores of a result.json, the bytes they are over, and what other compressors make of the text."""
    print(
        f"{run_dir / ARTIFACT_FILE}: {result['artifact_bytes']:,} bytes, with {result['code_bytes']:,} of code "
        f"{result['total_bytes']:,} of {result['limit_bytes']:,}"
    )
    if result["tokens"] < result["split_tokens"]:
        print(f"scored on the first {result['tokens']:,} of {result['split_tokens']:,} validation tokens only")
    print(
        f"before quantization ({result['average']}) val_bpb:{result['pre_quantization_val_bpb']:.5f}\n"
        f"after, from the artifact      val_loss:{result['val_loss']:.5f} val_bpb:{result['val_bpb']:.5f}\n"
        f"sliding, stride {result['sliding_stride']:<5}         val_loss:{result['sliding_val_loss']:.5f} "
        f"val_bpb:{result['sliding_val_bpb']:.5f}"
    )
    if "adapted_val_bpb" in result:
        share = result["adapted_challenge_s"] / CHALLENGE_SECONDS
        print(
            f"with test-time training       val_loss:{result['adapted_val_loss']:.5f} "
            f"val_bpb:{result['adapted_val_bpb']:.5f}, at {share:.0%} of the challenge's seconds"
            f"{_hints_text(result)}"
        )
    if "predicted_gap_bpb" in result:
        gap = result["val_bpb"] - result["pre_quantization_val_bpb"]
        print(f"quantization costs            val_bpb:{gap:.5f}, predicted {result['predicted_gap_bpb']:.5f}")
    print(_bytes_text(result))
    for name, bits in result.get("compressors_bpb", {}).items():
        print(f"the same text by {name:<12} {bits:.5f} bits per byte")
    if "compressed" in result:
        sizes = result["compressed"]
        print(
            f"its first {sizes['bytes']:,} bytes, compressed by the model and restored: {sizes['compressed_bytes']:,} "
            f"bytes; by xz -9: {sizes['xz_bytes']:,}"
        )


def _hints_text(result: dict[str, Any]) -> str:
    """What hints are worth, where there were some."""
    return f"; {result['hints_gained_bpb']:.5f} of it by hints" if "hints_gained_bpb" in result else ""


def _bytes_text(result: dict[str, Any]) -> str:
    """Which bytes the scores are over."""
    counted = f"sliding over {result['bytes']:,} bytes as the challenge counts"
    if result["original_bytes"] is None:
        return f"{counted}; those of the original text are not known"
    if result["original_bytes"] == result["bytes"]:
        return f"{counted}, those of the original text"
    return (
        f"{counted}; over the {result['original_bytes']:,} of the original text original_bpb:"
        f"{result['sliding_original_bpb']:.5f}"
    )
